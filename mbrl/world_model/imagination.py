"""Rollouts of a world model from given starts under a policy. Knows tensors; knows no model.

Shapes: B starts, H imagined agent steps, K frames in a stack, D action dimension, F predicted frames, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ivideogpt.video_io import Pixels

Policy = Callable[[Tensor], Tensor]  # stacks (B, 3 K, h, w) uint8 -> actions (B, D) in [-1, 1]


class ImaginationError(RuntimeError):
    """Raised when the world model returns numbers that are not finite."""


@dataclass(frozen=True)
class Imagined:
    """Episodes of H + 1 rows; row 0 is the start, with a zero action and no reward, as in :mod:`mbrl.replay.episodes`.

    Attributes:
        frames: (B, H + 1, 3, h, w) uint8.
        earlier: (B, K - 1, 3, h, w) uint8, the older frames of the start.
        action: (B, H + 1, D).
        reward: (B, H + 1) in the environment's units.
        discount: (B, H + 1) ones: imagined episodes end by being cut off.
    """

    frames: Tensor
    earlier: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor


@dataclass(frozen=True)
class Validation:
    """Predictions of segments whose ends are known.

    Attributes:
        metrics: mean squared errors of frames in [0, 1] and of rewards in the environment's units.
        videos: one (F, H, W, 3) a segment: truth, prediction, error; both rewards below.
    """

    metrics: dict[str, float]
    videos: list[Pixels]
