"""Episodes, and training commands short enough for tests, in float32 whatever accelerate is configured for."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.synthetic import write_episode
from tests.parity.formulas import golden


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
        --mixed_precision no --log_steps 1 --validation_steps 4 --max_eval_iters 1 --log_image_steps 4
        --lr_warmup_steps 1
        --restart_dead_codes 2 --perc_weight 0 --output_dir {tmp_path / "runs"} --exp_name toy
    """.split()


@pytest.fixture
def gpt_command(clips, tmp_path, tiny_world_model) -> list[str]:
    config = tmp_path / "llama.json"
    config.write_text(json.dumps(golden()["transformer"]["ctx2"]["config"]))
    return f"""
        --dataset_path {clips} --oxe_data_mixes_type folder:* --resolution 64 --context_length 2 --segment_length 4
        --pretrained_model_name_or_path {tiny_world_model / "tokenizer"} --config_name {config}
        --per_device_train_batch_size 1 --dataloader_num_workers 0 --seed 0 --report_to none --mixed_precision no
        --log_steps 1 --validation_steps 2 --max_eval_iters 1 --num_warmup_steps 1 --llama_attn_drop 0.1
        --output_dir {tmp_path / "runs"} --exp_name toy
    """.split()
