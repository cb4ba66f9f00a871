"""Loaders of training and validation clips, and the stream of training batches. Knows flags and loaders, no model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import torch
from accelerate.utils import gather_object

from ivideogpt.data.clips.dataset import DataConfig
from ivideogpt.data.clips.loaders import ClipLoader, build_benchmark_loader, build_loader
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import STRONG_AUGMENTATION, Augmentation
from ivideogpt.data.tokens.token_store import TokenLoader
from ivideogpt.training.common.args import GptArgs, TokenizerArgs
from ivideogpt.training.common.run import Run

Loader: TypeAlias = ClipLoader | TokenLoader  # endless, with a position, and a fixed beginning for validation

VALIDATION_SEED = 0
CAUSES_LISTED = 20

logger = logging.getLogger(__name__)


def clip_config(args: TokenizerArgs | GptArgs, segment: SegmentSpec, batch_size: int) -> DataConfig:
    """Return the configuration of clips without actions, from the flags that both scripts have."""
    augmentation = STRONG_AUGMENTATION if args.strong_aug else Augmentation()
    return DataConfig(
        dataset_path=args.dataset_path,
        mix=args.oxe_data_mixes_type,
        segment=segment,
        video_stepsize=args.video_stepsize,
        image_size=args.resolution,
        batch_size=batch_size,
        num_workers=args.dataloader_num_workers,
        augmentation=None if args.no_aug else augmentation,
        dataset_size=args.dataset_size,
        sthsth_root_path=args.sthsth_root_path,
        on_bad_episode=args.on_bad_episode,  # type: ignore[arg-type]
        cache_mb=args.cache_mb,
    )


def build_clip_loaders(
    config: DataConfig, run: Run, eval_batch_size: int, benchmark: bool = False
) -> tuple[ClipLoader, ClipLoader]:
    """Build the loaders of training and validation clips."""
    train = build_loader(config, "train", run.seed, run.accelerator.process_index, run.accelerator.num_processes)
    validation = build_validation_loader(config, run, eval_batch_size, benchmark)
    if config.on_bad_episode == "skip":
        run.at_end.append(partial(report_bad_episodes, (train, validation)))
    return train, validation


def build_validation_loader(config: DataConfig, run: Run, batch_size: int, benchmark: bool = False) -> ClipLoader:
    """Build a loader of the same clips every time: random ones of the test split, or the benchmark's."""
    rank, world_size = run.accelerator.process_index, run.accelerator.num_processes
    config = replace(config, batch_size=batch_size)
    if benchmark:
        return build_benchmark_loader(config, rank, world_size)
    return build_loader(config, "test", VALIDATION_SEED, rank, world_size)


def report_bad_episodes(loaders: Iterable[ClipLoader]) -> None:
    """Log how many distinct episodes all processes have skipped, and why. All of them call it."""
    found = gather_object([bad for loader in loaders for bad in loader.bad_episodes.items()])
    causes = dict(sorted(found))
    logger.info("skipped %d bad episodes", len(causes))
    for cause in islice(causes.values(), CAUSES_LISTED):
        logger.info("skipped: %s", cause)


class BatchStream:
    """Training batches on the device, one after another. Its state is its position.

    On a GPU they are copied and finished on a stream of their own, beside the step that the GPU is still busy with:
    Python asks for a batch well before that step ends. Nothing is fetched ahead, so the position needs no correction.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = iter(self._loader)
        batch: Any = next(self._batches)
        if self._beside is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._beside):
            finished = batch.to(self._device)
        training = torch.cuda.current_stream(self._device)
        training.wait_stream(self._beside)
        for part in vars(finished).values():
            if part is not None:
                part.record_stream(training)  # the next batch must not reuse the memory before the step is done
        return finished

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.load_state_dict(state)
