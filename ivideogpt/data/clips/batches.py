"""Batches of clips: packed by data workers, and unpacked for models. Knows tensors; knows no files.

Shapes: B batch, T frames, S frame size, D action dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ivideogpt.data.clips.colour import Colour
from ivideogpt.data.clips.transforms import unit_range
from ivideogpt.errors import UserError


@dataclass(frozen=True)
class ClipBatch:
    """Frames (B, T, 3, S, S) float32 in [0, 1]; optional actions (B, T, D), rewards and successes (B, T), float32."""

    frames: Tensor
    actions: Tensor | None = None
    rewards: Tensor | None = None
    successes: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ClipBatch:
        return ClipBatch(*moved(device, non_blocking, self.frames, self.actions, self.rewards, self.successes))


@dataclass(frozen=True)
class BadEpisode:
    """A bad episode that was replaced by another one. ``cause`` is the error message and names the file."""

    name: str
    cause: str


@dataclass(frozen=True)
class PackedClips:
    """A compact batch for the transfer to the training device, where its pixels are finished.

    Pixels (B, T, 3, S, S) are in 0..255: 8-bit, or float32 if resized without augmentation.
    """

    pixels: Tensor
    colour: Colour | None = None
    actions: Tensor | None = None
    rewards: Tensor | None = None
    successes: Tensor | None = None
    skipped: tuple[BadEpisode, ...] = ()

    @classmethod
    def concatenate(cls, clips: Sequence[PackedClips]) -> Self:
        """Join batches along B. All of them have the same optional fields."""
        dims = {clip.actions.shape[-1] for clip in clips if clip.actions is not None}
        if len(dims) > 1:
            raise UserError(
                f"the mix holds actions of {sorted(dims)} dimensions; choose datasets of one dimension, or give each "
                "robot its action space: --action_spaces"
            )
        colours = [clip.colour or Colour.unchanged(len(clip.pixels)) for clip in clips]
        return cls(
            torch.cat([clip.pixels for clip in clips]),
            Colour.concatenate(colours) if any(clip.colour for clip in clips) else None,
            _cat_present([clip.actions for clip in clips]),
            _cat_present([clip.rewards for clip in clips]),
            _cat_present([clip.successes for clip in clips]),
            tuple(bad for clip in clips for bad in clip.skipped),
        )

    def pin_memory(self) -> Self:
        """Copy the batch into pinned memory, for asynchronous copies to an accelerator. Data loaders call it."""
        tensors: dict[str, Any] = {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items()})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> ClipBatch:
        """Return the finished batch on this device."""
        pixels, *series = moved(device, non_blocking, self.pixels, self.actions, self.rewards, self.successes)
        return ClipBatch(unit_range(pixels) if self.colour is None else self.colour(pixels), *series)


def _cat_present(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def moved(device: torch.device | str, non_blocking: bool, *tensors: Any) -> list[Any]:
    """Move tensors to the device; None for those that are None."""
    return [None if tensor is None else tensor.to(device, non_blocking=non_blocking) for tensor in tensors]
