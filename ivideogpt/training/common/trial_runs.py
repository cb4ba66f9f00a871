"""Trial runs: ``--debug``, with a tiny model, a few steps and stand-ins for missing files, and ``--dry_run``."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivideogpt.data.catalog import OWN_SPLITS, DatasetPaths
from ivideogpt.data.dataset_mixes import DATASET_NAMED_MIXES
from ivideogpt.data.formats.registry import find_format
from ivideogpt.data.tokens.token_store import store_folders
from ivideogpt.files import atomic_file, atomic_path, write_json
from ivideogpt.metrics.lpips import missing_weights
from ivideogpt.paths import here_or_in_project
from ivideogpt.pretrained import (
    TOKENIZER_WEIGHTS,
    TRANSFORMER_WEIGHTS,
    build_transformer,
    load_tokenizer,
    read_llama_config,
    save_transformer,
)
from ivideogpt.training.common.args import GptArgs, TokenizerArgs
from ivideogpt.training.common.optim import trainable_parameters
from ivideogpt.training.tokenizer.build import read_config
from ivideogpt.training.tokenizer.trainer import TokenizerTrainer
from ivideogpt.training.transformer.trainer import GptTrainer
from ivideogpt.vq_model import CompressiveVQModel

logger = logging.getLogger(__name__)

STEPS = 4
MOST_STEPS = 100  # limit of a trial run
CLIPS = 2
EPISODES = 4  # the first is the test split
TINY_TOKENIZER = dict(
    layers_per_block=1, norm_num_groups=4, latent_channels=8, num_vq_embeddings=64, num_dyn_embeddings=64,
    max_att_resolution=16,
)  # fmt: skip
TINY_TRANSFORMER = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)
FEW = dict(log_steps=1, validation_steps=2, max_eval_iters=1, checkpointing_steps=2, dataloader_num_workers=0)
GRADIENT_AND_MOMENTS = 3  # tensors of its own size that a trained weight comes with
GIGABYTE = 2**30


def tiny_tokenizer_run(args: TokenizerArgs) -> TokenizerArgs:
    """Return the ``--debug`` settings of train_tokenizer.py."""
    stand_ins = _StandIns(args)
    start, config = args.pretrained_model_name_or_path, args.model_config_name_or_path
    without_lpips = missing_weights(here_or_in_project(args.lpips_path)) if args.perc_weight else None
    if without_lpips:
        logger.warning("--debug: --perc_weight 0 instead of %s. %s", args.perc_weight, without_lpips)
    if start is None or not Path(start).exists():
        start = None if start is None else stand_ins.tokenizer(start)
        config = None if start is not None else stand_ins.write(stand_ins.tokenizer_config(config), "tokenizer")
    return replace(
        stand_ins.with_episodes(args, max(args.segment_length, args.segment_horizon)),
        **stand_ins.settings,
        start_global_step=0,
        perc_weight=0.0 if without_lpips else args.perc_weight,
        pretrained_model_name_or_path=start,
        model_config_name_or_path=config,
        train_batch_size=min(args.train_batch_size, CLIPS),
        disc_start=1 if args.disc_start < args.max_train_steps else args.disc_start,
        lr_warmup_steps=1,
        log_grad_norm_steps=2,
        log_image_steps=2,
        restart_dead_codes=min(args.restart_dead_codes, 2),
    )


def tiny_gpt_run(args: GptArgs) -> GptArgs:
    """Return the ``--debug`` settings of train_gpt.py."""
    stand_ins = _StandIns(args)
    tokenizer = stand_ins.tokenizer(args.pretrained_model_name_or_path)
    start = args.pretrained_transformer_path
    config_name = args.config_name
    if start is None or not Path(start).exists():
        config = read_llama_config(args.config_path).to_dict() | TINY_TRANSFORMER | {"head_dim": None}
        config_name = stand_ins.write(config, "transformer")
        start = None if start is None else stand_ins.transformer(args, tokenizer, config_name)
    return replace(
        stand_ins.with_episodes(args, args.segment_length),
        **stand_ins.settings,
        start_completed_steps=0,
        pretrained_model_name_or_path=tokenizer,
        pretrained_transformer_path=start,
        config_name=config_name,
        per_device_train_batch_size=min(args.per_device_train_batch_size, CLIPS),
        per_device_eval_batch_size=CLIPS,
        eval_generate_times=min(args.eval_generate_times, 2),
        num_warmup_steps=1,
    )


class _StandIns:
    """Episodes and models in ``<output_dir>/debug``, made where the ones that a command names do not exist.

    Their content depends on what they stand for alone, and each is written aside and renamed, so that several
    processes may make the same one.
    """

    def __init__(self, args: TokenizerArgs | GptArgs) -> None:
        self.folder = Path(args.output_dir) / "debug"
        self.resolution, self.context_length = args.resolution, args.context_length
        asked = args.max_train_steps
        steps = asked if asked <= MOST_STEPS else STEPS
        accumulated = min(args.gradient_accumulation_steps, 2)
        shared = {"max_train_steps": steps, "output_dir": str(self.folder), "gradient_accumulation_steps": accumulated}
        self.settings: dict[str, Any] = FEW | shared
        logger.warning(
            "--debug: a tiny model and %d steps%s; the run, and what stands in, are in %s",
            steps,
            "" if steps == asked else f" (not --max_train_steps {asked}, which is taken up to {MOST_STEPS})",
            self.folder,
        )

    def with_episodes(self, args: Any, num_frames: int) -> Any:
        """Return settings with the run's own data if they exist, else with squares that actions move."""
        if isinstance(args, GptArgs) and args.token_store is not None:
            if all(folder.is_dir() for folder in store_folders(args.token_store)):
                return args
            logger.warning("--debug: no token store %s; clips are read as pixels", args.token_store)
            args = replace(args, token_store=None, eval_token_store=None)
        elif _has_data(args):
            return args
        action_dim = args.action_dim if isinstance(args, GptArgs) else 4
        folder = self.folder / f"episodes-{self.resolution}-{num_frames}-{action_dim}"
        for number in range(EPISODES):
            file = folder / "squares" / f"{number:05d}.npz"
            _write_episode(file, number, num_frames + 4, self.resolution, action_dim)
        named = f"{args.oxe_data_mixes_type} of {args.dataset_path}"
        logger.warning("--debug: %s is not there, %s stands in for it", named, folder)
        args = replace(args, dataset_path=str(folder), oxe_data_mixes_type="folder:squares", sthsth_root_path=None)
        if isinstance(args, GptArgs):  # no action space names what stands in
            return replace(args, use_eval_dataset=False, action_spaces=None, action_adapters=False)
        return args

    def tokenizer_config(self, path: str | None) -> dict[str, Any]:
        config = read_config(path, self.resolution)
        widths = [8] * (len(config["block_out_channels"]) - 2) + [32, 32]
        return config | TINY_TOKENIZER | {"block_out_channels": widths}

    def write(self, config: dict[str, Any], name: str) -> str:
        path = self.folder / f"{name}-{self.resolution}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, config)
        return str(path)

    def tokenizer(self, path: str) -> str:
        """Return the folder of a trained tokenizer, or of an untrained one in its place."""
        if Path(path).exists():
            return path
        folder = self.folder / f"tokenizer-{self.resolution}-{self.context_length}"
        shape = {"resolution": self.resolution, "context_length": self.context_length}
        if not (folder / TOKENIZER_WEIGHTS).is_file():
            with _made_in(folder) as unfinished:
                model = CompressiveVQModel.from_config(self.tokenizer_config(None) | shape)
                model.dynamics_quantize.embedding.weight.data[0] = 0  # the still code, for --history own
                model.save_pretrained(unfinished)
        logger.warning("--debug: %s is not there, %s stands in for it", path, folder)
        return str(folder)

    def transformer(self, args: GptArgs, tokenizer: str, config_name: str) -> str:
        """Return the folder of an untrained transformer, action-free unless the run wants actions in it."""
        action_dim = args.action_dim if args.action_conditioned and not args.load_internal_llm else None
        layout = load_tokenizer(tokenizer).layout(args.segment_length - args.context_length)
        folder = self.folder / f"transformer-{layout.vocab_size}-{layout.num_frames}-{action_dim or 'free'}"
        if not (folder / TRANSFORMER_WEIGHTS).is_file():
            with _made_in(folder) as unfinished:
                save_transformer(build_transformer(read_llama_config(config_name), layout, action_dim), unfinished)
        logger.warning("--debug: %s is not there, %s stands in for it", args.pretrained_transformer_path, folder)
        return str(folder)


def _has_data(args: TokenizerArgs | GptArgs) -> bool:
    """Return whether there is a folder of datasets, or a benchmark whose folders DATASET.yaml names."""
    path = args.dataset_path
    if path is not None and (find_format(path) or Path(path).is_dir()):
        return True
    names = [str(name) for name, _ in DATASET_NAMED_MIXES.get(args.oxe_data_mixes_type, [])]
    if not names or not OWN_SPLITS.keys() >= set(names):
        return False
    folders = DatasetPaths.load()
    return all(getattr(folders, key) for name in names for key, _ in OWN_SPLITS[name].values())


@contextmanager
def _made_in(folder: Path) -> Iterator[Path]:
    """Yield a folder to write the content of ``folder`` to, under a fixed seed."""
    with torch.random.fork_rng(), atomic_path(folder) as partial:
        torch.manual_seed(0)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)  # another process was first, or one before did not finish


def _write_episode(path: Path, seed: int, num_frames: int, resolution: int, action_dim: int) -> None:
    """Write an episode of a square that the first two action components push around."""
    if path.exists():
        return
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, size=(num_frames, action_dim)).astype(np.float32)
    frames = np.full((num_frames, resolution, resolution, 3), 60, np.uint8)
    size = resolution // 4
    place = rng.uniform(0, resolution - size, size=2)
    for frame, action in zip(frames, actions, strict=True):
        y, x = place.astype(int)
        frame[y : y + size, x : x + size] = (250, 120, 30)
        place = np.clip(place + action[:2] * size / 2, 0, resolution - size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        np.savez(file, image=frames, action=actions, reward=actions[:, 0], success=actions[:, 0] > 0)


def report(trainer: TokenizerTrainer | GptTrainer) -> str:
    """Describe a training run from its parts, which are built and checked but never used."""
    args, run = trainer.args, trainer.run
    start = f"go on from {run.checkpoint}" if run.checkpoint is not None else f"write {run.directory}"
    lines = [
        f"dry run: the command fits together; it would {start}",
        f"clips: {args.segment_length} frames of {args.resolution} px, of which {args.context_length} context",
        f"each update: {trainer.clips_per_update} clips",
        f"processes: {run.accelerator.num_processes} on {run.accelerator.device}, precision {run.args.mixed_precision}",
    ]
    size = 0
    for name, part in trainer.networks():
        weights, trained = list(part.parameters()), trainable_parameters(part)
        size += sum(weight.nbytes for weight in weights + trained * GRADIENT_AND_MOMENTS)
        all_numbers, trained_numbers = (sum(weight.numel() for weight in some) / 1e6 for some in (weights, trained))
        training = f"{trained_numbers:.1f} M of them trained" if trained else "frozen"
        lines.append(f"{name}: {all_numbers:.1f} M parameters, {training}")
    lines += [
        f"memory per process: {size / GIGABYTE:.2f} GB for weights, gradients and moments, plus activations",
        f"steps: {trainer.progress.step} to {args.max_train_steps}",
    ]
    return "\n".join(lines)
