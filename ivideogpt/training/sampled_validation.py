"""Validation by sampled futures of the validation clips: scored and shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ivideogpt.data.batches import ClipBatch
from ivideogpt.evaluation.clip_scorer import ClipScorer
from ivideogpt.evaluation.video_prediction import sample_futures
from ivideogpt.lpips import LINEAR_FILE, LPIPS, VGG_FILE
from ivideogpt.training.args import GptArgs, here_or_in_project
from ivideogpt.training.run import Run
from ivideogpt.utils.frechet import I3D, FeatureStats, frechet_distance
from ivideogpt.utils.video_io import side_by_side, to_pixels, write_gif
from ivideogpt.world_model import WorldModel

logger = logging.getLogger(__name__)


@dataclass
class SampledValidation:
    """Scores of one validation. ``max_rows`` bounds the futures that are sampled at a time."""

    scorer: ClipScorer
    num_samples: int
    max_rows: int | None
    gif_interval: int
    run: Run
    step: int
    seed: int
    batches: int = 0

    def scores(self, world_model: WorldModel, clips: ClipBatch) -> dict[str, Tensor]:
        """Of a batch, all of whose frames are known; every few batches its first clip becomes a GIF."""
        samples = self._sample(world_model, clips)
        if self.batches % self.gif_interval == 0 and self.run.is_main_process:
            self._write_gif(clips.frames[0], samples[0, 0])
        self.batches += 1
        return self.scorer(clips.frames, samples, world_model.metadata.context_length)

    def fvd(self) -> dict[str, float]:
        """Over the clips of all processes, which all call it; nothing without I3D."""
        if self.scorer.i3d is None:
            return {}
        real, generated = (_of_all_processes(stats) for stats in (self.scorer.real, self.scorer.generated))
        return {"fvd": frechet_distance(real, generated)}

    def _sample(self, world_model: WorldModel, clips: ClipBatch) -> Tensor:
        """(B, N, T, C, H, W), reconstructed context first."""
        rows = self.max_rows or len(clips.frames) * self.num_samples
        clips_at_a_time, samples_at_a_time = max(rows // self.num_samples, 1), min(rows, self.num_samples)
        of_clips = []
        for first in range(0, len(clips.frames), clips_at_a_time):
            some = _rows(clips, slice(first, first + clips_at_a_time))
            of_samples = []
            for number in range(0, self.num_samples, samples_at_a_time):
                num_samples = min(samples_at_a_time, self.num_samples - number)
                seed = self.seed + (self.batches * len(clips.frames) + first) * self.num_samples + number
                rollout = sample_futures(world_model, some, seed, num_samples)
                context = rollout.context[:, None].expand(-1, num_samples, -1, -1, -1, -1)
                of_samples.append(torch.cat([context, rollout.frames], dim=2))
            of_clips.append(torch.cat(of_samples, dim=1))
        return torch.cat(of_clips)

    def _write_gif(self, truth: Tensor, sample: Tensor) -> None:
        folder = self.run.directory / "images"
        folder.mkdir(exist_ok=True)
        path = folder / f"validation-{self.step:07d}-clip-{self.batches:03d}.gif"
        write_gif(path, side_by_side([to_pixels(truth), to_pixels(sample)]))
        self.run.log_video(self.step, f"validation-clip-{self.batches:03d}", path)


def build_scorer(args: GptArgs, device: torch.device) -> Callable[[], ClipScorer]:
    """Makes scorers with every metric that was asked for and whose weights are there; the log names the others."""
    lpips = i3d = None
    folder, network = here_or_in_project(args.lpips_path), here_or_in_project(args.i3d_path)
    if all((folder / name).is_file() for name in (VGG_FILE, LINEAR_FILE)):
        lpips = LPIPS.from_folder(folder).to(device)
    else:
        logger.warning("scores WITHOUT LPIPS: its weights %s and %s are not in %s", VGG_FILE, LINEAR_FILE, folder)
    if args.use_fvd and network.is_file():
        i3d = I3D(network, device)
    elif args.use_fvd:
        logger.warning("scores WITHOUT FVD: the I3D network %s is not there", network)
    return partial(ClipScorer, lpips, i3d, args.max_decode_batchsize)


def _rows(clips: ClipBatch, rows: slice) -> ClipBatch:
    return ClipBatch(clips.frames[rows], None if clips.actions is None else clips.actions[rows])


def _of_all_processes(stats: FeatureStats) -> FeatureStats:
    total = FeatureStats(capture_mean_cov=True)
    for part in gather_object([stats]):
        total.merge(part)
    return total
