"""Optimizer updates that skip losses and gradients that are not finite. Knows no model and no loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ivideogpt.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator  # model-based RL runs without it

MAX_SKIPPED = 50  # updates in a row, after which a run ends


class SoundUpdates:
    """The updates of an optimizer, which skips those whose loss or gradients are not finite.

    All processes skip the same ones. Fused optimizers are told on the device, as torch's own gradient scaler tells
    them, so that a GPU is not waited for but once in ``MAX_SKIPPED`` updates; others are asked to step or not. In fp16
    the gradient scaler skips by itself, and lowers its factor for it: that is left to it, and counted.

    Args:
        name: of what learns, for the message.
        optimizer: as it is, or wrapped by ``accelerator``, whose processes exchange gradients before every update.
    """

    def __init__(self, name: str, optimizer: Optimizer, accelerator: Accelerator | None = None) -> None:
        self.name = name
        self.optimizer = optimizer
        self._accelerator = accelerator
        self._in_a_row = torch.zeros(())
        self._updates = 0

    def step(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Update with the gradients that there are, of norm ``norm``. Returns 1 if that was skipped, else 0.

        Raises:
            UserError: in all processes, after ``MAX_SKIPPED`` skipped updates in a row.
        """
        scaler = None if self._accelerator is None else self._accelerator.scaler
        skipped = self._skipped(norm if scaler is not None else loss.detach() + norm)
        own: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if scaler is None and getattr(own, "_step_supports_amp_scaling", False):
            own.grad_scale, own.found_inf = None, skipped
            try:
                self.optimizer.step()
            finally:
                del own.grad_scale, own.found_inf
        elif scaler is not None or not skipped:
            self.optimizer.step()
        self._in_a_row = (self._in_a_row.to(skipped.device) + 1) * skipped
        self._updates += 1
        if skipped.device.type == "cpu" or self._updates % MAX_SKIPPED == 0:
            self._check(MAX_SKIPPED)
        return skipped

    def check_end(self) -> None:
        """Check the updates of a run that may be too short for ``MAX_SKIPPED``.

        Raises:
            UserError: all of its updates were skipped, or the last ``MAX_SKIPPED`` of them.
        """
        if self._updates:
            self._check(min(self._updates, MAX_SKIPPED))

    def _skipped(self, measure: Tensor) -> Tensor:
        skipped = (~measure.isfinite()).float()
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return skipped
        return self._accelerator.reduce(skipped, "sum").clamp(max=1)

    def _check(self, limit: int) -> None:
        if self._in_a_row >= limit:
            raise UserError(
                f"the last {int(self._in_a_row)} updates of the {self.name} had losses or gradients that are not "
                "finite and were skipped; what is saved is from before. Look for bad values in the data, lower the "
                "learning rate, or give gradients a maximal norm"
            )
