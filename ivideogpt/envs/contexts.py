"""Frames that episodes in a world model begin with: sampled from recorded episodes, or given.

Shapes: E starts, M frames of a start, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.data.catalog import Split, has_npz_files, stepsize_as_trained
from ivideogpt.data.clips.dataset import ClipDataset, DataConfig, PickByWeight, build_sources
from ivideogpt.data.clips.segments import SegmentSpec
from ivideogpt.data.clips.transforms import resize
from ivideogpt.data.dataset_mixes import resolve_mix
from ivideogpt.data.formats.registry import find_format
from ivideogpt.errors import UserError
from ivideogpt.metadata import ModelMetadata
from ivideogpt.world_model import WorldModel

SampleStart = Callable[[np.random.Generator], Tensor]  # -> (M, 3, H, W) uint8


class Contexts(Protocol):
    """A source of starts."""

    def sampler(self, metadata: ModelMetadata, num_frames: int) -> SampleStart:
        """Return a function that samples ``num_frames`` frames of the model's size.

        Raises:
            UserError: there are none for this model.
        """


@dataclass(frozen=True)
class RecordedContexts:
    """Any place in recorded episodes, of any format that training reads; frames as far apart as the model knows them.

    Attributes:
        dataset_path: folder of npz episodes or of such folders, ``lerobot:<folder>[@<camera>]`` or ``lance:<uri>``.
        mix: datasets in it, as ``--oxe_data_mixes_type``.
        action_space: robot of a model of several; datasets of the others are left out.
    """

    dataset_path: str
    mix: str = "folder:*"
    split: Split = "all"
    action_space: str | None = None

    def sampler(self, metadata: ModelMetadata, num_frames: int) -> SampleStart:
        path, mix = self._path_and_mix()
        names = resolve_mix(mix, path)
        if metadata.action_spaces is not None:
            own = metadata.action_spaces.of_robot([name for name, _ in names], self.action_space, self.dataset_path)
            names = tuple(each for each in names if each[0] in own)
        config = DataConfig(
            dataset_path=path,
            mix=names,
            segment=SegmentSpec(length=num_frames),
            video_stepsize=stepsize_as_trained([name for name, _ in names], metadata.dataset_step),
            image_size=metadata.resolution,
        )
        clips = ClipDataset(config, PickByWeight(build_sources(config, self.split)), seed=0)
        return lambda rng: clips[int(rng.integers(2**62))].pixels[0].float().round().byte()

    def _path_and_mix(self) -> tuple[str, str]:
        """Return the folder of folders that datasets are looked for in, where the path holds episodes itself."""
        folder = Path(self.dataset_path).resolve()
        if find_format(self.dataset_path) is None and folder.is_dir() and has_npz_files(folder):
            return str(folder.parent), f"folder:{folder.name}"
        return self.dataset_path, self.mix


@dataclass(frozen=True)
class GivenContexts:
    """Frames (E, M, H, W, 3) uint8; of a longer start the last ones are taken. Other sizes are resized."""

    frames: NDArray[np.uint8]

    def __post_init__(self) -> None:
        kind = getattr(self.frames, "dtype", type(self.frames).__name__)
        shape = getattr(self.frames, "shape", ())
        if not isinstance(self.frames, np.ndarray) or kind != np.uint8 or shape[4:] != (3,) or 0 in shape:
            expected = "an array of uint8 of shape (starts, frames, height, width, 3)"
            raise UserError(f"contexts are {kind} of shape {tuple(shape)}, expected {expected}")

    def sampler(self, metadata: ModelMetadata, num_frames: int) -> SampleStart:
        starts = self.all(metadata, num_frames)
        return lambda rng: starts[int(rng.integers(len(starts)))]

    def all(self, metadata: ModelMetadata, num_frames: int) -> Tensor:
        """Return all of them, (E, num_frames, 3, S, S) uint8.

        Raises:
            UserError: they are too short.
        """
        if self.frames.shape[1] < num_frames:
            raise UserError(f"contexts of {self.frames.shape[1]} frames were given, at least {num_frames} are needed")
        starts = [resize(start[-num_frames:], metadata.resolution) for start in self.frames]
        return torch.stack(starts).float().round().byte()


def start_sampler(
    contexts: Contexts | str | Path | NDArray[np.uint8], model: WorldModel, num_frames: int
) -> SampleStart:
    """Return a function that samples ``num_frames`` frames for a model, of its own robot if it knows several."""
    source = as_contexts(contexts)
    if isinstance(source, RecordedContexts) and source.action_space is None:
        source = replace(source, action_space=model.action_space)
    return source.sampler(model.metadata, num_frames)


def as_contexts(contexts: Contexts | str | Path | NDArray[np.uint8]) -> Contexts:
    """Return a source of starts for a path of recorded episodes, for given frames, or itself."""
    if isinstance(contexts, str | Path):
        return RecordedContexts(str(contexts))
    return contexts if hasattr(contexts, "sampler") else GivenContexts(contexts)
