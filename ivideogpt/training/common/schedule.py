"""Training progress and learning-rate schedules. Knows nothing of models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_POLYNOMIAL_END = 1e-7  # learning rate


def generator_steps(first_step: int, max_steps: int) -> range:
    """Return the numbers of finished steps after which a tokenizer run's generator has its turn.

    Its turns alternate with the discriminator's, and every turn counts as one step, as in the published recipes.
    """
    return range(first_step + first_step % 2, max_steps, 2)


def discriminator_steps(first_step: int, max_steps: int, disc_start: int) -> range:
    """Return those after which the discriminator has its turn; before ``disc_start`` nothing happens in it."""
    return range(max(first_step, disc_start) | 1, max_steps, 2)


@dataclass
class TrainProgress:
    """Progress of a run in steps and clips; part of every checkpoint."""

    step: int = 0
    clips: int = 0

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def validates_at(step: int, interval: int, skip_first: bool) -> bool:
    """Return whether a validation is due: at steps 1, 1 + n, 1 + 2n, ..."""
    return step % interval == 1 % interval and not (skip_first and step == 1)


def within_phase_pair(step: int, interval: int) -> bool:
    """Return whether a multiple of ``interval`` is ``step``, a finished generator phase, or the phase after it."""
    return step % interval in (0, interval - 1)


def build_scheduler(name: str, optimizer: Optimizer, warmup_updates: int, updates: int) -> LambdaLR:
    """Build a learning-rate schedule in updates of its own optimizer, whatever the number of processes.

    The schedules are those of transformers, whose import takes twice as long as all else that training needs.
    """
    rate = optimizer.param_groups[0]["lr"]
    end = _POLYNOMIAL_END / rate if name == "polynomial" and rate else 0.0

    def share(update: int) -> float:
        """Return the share of the full learning rate after so many updates."""
        if name == "constant":
            return 1.0
        if update < warmup_updates:
            return update / warmup_updates
        decaying = max(1, updates - warmup_updates)
        match name:
            case "constant_with_warmup":
                return 1.0
            case "linear" | "polynomial":
                return end + (1 - end) * max(0.0, (updates - update) / decaying)
            case _:  # cosine, and with restarts the same, as there is one cycle
                return 0.5 * (1 + math.cos(math.pi * min((update - warmup_updates) / decaying, 1.0)))

    return LambdaLR(optimizer, share)
