"""Episodes in a world model, one a row, and the frames that an agent sees of each. Knows tensors; knows no gymnasium.

Everything stays on the model's device, and nothing waits for it.

Shapes: N rows, M frames of a start, K frames in a stack, t context frames, D action dimension, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivideogpt.errors import UserError
from ivideogpt.session import Seed
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class ImaginedStep:
    """One step of every row.

    Attributes:
        frames: (N, 3, H, W) in [0, 1].
        reward: (N,) in environment units; None without a reward head.
        success: (N,) probability that this step succeeds; None without a success head.
    """

    frames: Tensor
    reward: Tensor | None
    success: Tensor | None


class Imagination:
    """Roll out a world model from recorded frames, in all rows at once; rows may begin again one by one.

    Attributes:
        stacks: (N, K, 3, H, W) uint8, the newest frame last: 8-bit as a camera's, so that an agent sees what it would
            see in reality. Not written to by later steps.
    """

    def __init__(
        self,
        model: WorldModel,
        starts: Tensor,
        num_stacked: int = 1,
        *,
        seed: Seed = None,
        max_frames: int | None = None,
        row_numbers: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            starts: (N, M, 3, H, W) uint8; the last one is now. M is at least t and ``num_stacked``.
            seed, max_frames, row_numbers: as ``seed``, ``max_frames`` and ``clip_numbers`` of ``WorldModel.start``.

        Raises:
            UserError: the starts are too short, or do not fit the model.
        """
        self._model, self._num_stacked = model, num_stacked
        starts = self._check(starts)
        context = self._context(starts)
        self._session = model.start(context, seed=seed, max_frames=max_frames, clip_numbers=row_numbers)
        self.stacks = starts[:, -num_stacked:].clone()  # the caller's may be a buffer that is filled again

    @torch.no_grad()
    def step(self, actions: Tensor) -> ImaginedStep:
        """Take actions (N, D) in all rows."""
        step = self._session.step(actions)
        self.stacks = torch.cat([self.stacks[:, 1:], to_bytes(step.frames)], dim=1)
        reward, success = (None if value is None else value[:, 0] for value in (step.reward, step.success))
        return ImaginedStep(step.frames[:, 0], reward, success)

    @torch.no_grad()
    def restart(self, rows: Tensor, starts: Tensor, row_numbers: Sequence[int] | None = None) -> None:
        """Begin some rows, (N,) bool, again with starts (their number, M, 3, H, W) uint8; the others go on.

        ``row_numbers`` are ``clip_numbers`` of ``Session.reset_rows``.
        """
        starts = self._check(starts)
        self._session.reset_rows(rows, self._context(starts), row_numbers)
        numbers = rows.nonzero().flatten().to(starts.device)
        self.stacks = self.stacks.index_copy(0, numbers, starts[:, -self._num_stacked :])

    def _check(self, starts: Tensor) -> Tensor:
        needed = max(self._model.tokenizer.context_length, self._num_stacked)
        if starts.ndim != 5 or starts.shape[1] < needed or starts.dtype != torch.uint8:
            raise UserError(
                f"starts are {starts.dtype} of shape {tuple(starts.shape)}, expected uint8 of shape (rows, frames, 3, "
                f"height, width) with {needed} frames at least: context of the model, and stack of the agent"
            )
        return starts.to(self._model.device, non_blocking=True)

    def _context(self, starts: Tensor) -> Tensor:
        return starts[:, -self._model.tokenizer.context_length :].float() / 255


def to_bytes(frames: Tensor) -> Tensor:
    """Round frames in [0, 1] to uint8."""
    return (frames * 255).round().to(torch.uint8)
