"""Episodes, and training commands short enough for tests."""

import json
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.training.args import GptArgs, TokenizerArgs, parse
from ivideogpt.training.build_gpt import build_gpt_trainer
from ivideogpt.training.build_tokenizer import build_tokenizer_trainer
from ivideogpt.training.gpt_trainer import GptTrainer
from ivideogpt.training.tokenizer_trainer import TokenizerTrainer
from tests.data.synthetic import write_episode
from tests.parity.formulas import golden

TIMINGS = {"clips_per_s", "step_s", "data_s", "tokenize_s", "memory_gb", "eta_min"}


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A dataset folder with one test episode and three to train on: a square moves as the action says."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for number in range(4):
        places = rng.integers(0, 56, size=12)
        frames = np.full((12, 64, 64, 3), 60, dtype=np.uint8)
        for frame, place in zip(frames, places):
            frame[place : place + 8, 20:28] = (250, 120, 30)
        actions = rng.normal(size=(12, 4)).astype(np.float32)
        write_episode(folder / "squares" / f"{number}.npz", 12, image=frames, action=actions)
    return folder


@pytest.fixture
def tokenizer_command(clips, tokenizer_config, tmp_path) -> list[str]:
    return f"""
        --dataset_path {clips} --oxe_data_mixes_type folder:* --resolution 64 --context_length 2 --segment_length 4
        --model_config_name_or_path {tokenizer_config} --train_batch_size 1 --disc_start 100 --seed 0 --report_to none
        --log_steps 1 --validation_steps 4 --max_eval_iters 1 --log_image_steps 4 --lr_warmup_steps 1
        --restart_dead_codes 2 --output_dir {tmp_path / "runs"} --exp_name toy
    """.split()


@pytest.fixture
def gpt_command(clips, tmp_path, tiny_world_model) -> list[str]:
    config = tmp_path / "llama.json"
    config.write_text(json.dumps(golden()["transformer"]["ctx2"]["config"]))
    return f"""
        --dataset_path {clips} --oxe_data_mixes_type folder:* --resolution 64 --context_length 2 --segment_length 4
        --pretrained_model_name_or_path {tiny_world_model / "tokenizer"} --config_name {config}
        --per_device_train_batch_size 1 --dataloader_num_workers 0 --seed 0 --report_to none
        --log_steps 1 --validation_steps 2 --max_eval_iters 1 --num_warmup_steps 1 --llama_attn_drop 0.1
        --output_dir {tmp_path / "runs"} --exp_name toy
    """.split()


def without(argv: list[str], *flags: str) -> list[str]:
    """A command less some flags with their values."""
    argv = argv.copy()
    for flag in flags:
        place = argv.index(flag)
        del argv[place : place + 2]
    return argv


def build_tokenizer(argv: list[str]) -> TokenizerTrainer:
    return build_tokenizer_trainer(parse(TokenizerArgs, argv))


def build_gpt(argv: list[str]) -> GptTrainer:
    return build_gpt_trainer(parse(GptArgs, argv))


def fit(trainer: TokenizerTrainer | GptTrainer) -> Path:
    """Returns the run's folder."""
    with trainer.run:
        trainer.fit()
    return trainer.run.directory


def metrics_of(run: Path) -> list[dict]:
    """The record without what differs from machine to machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
