"""Optimizers: AdamW, parameter groups, norms of gradients, updates that skip what is not finite, EMA of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator  # model-based RL runs without it

NORM_LAYERS = ("LlamaRMSNorm", "RMSNorm", "LayerNorm", "GroupNorm")
MAX_SKIPPED = 50  # updates in a row, after which a run ends
MAX_DECAY = 0.9999
WARM_UP = 9  # update n has decay n / (WARM_UP + n), as in diffusers: a young average forgets its beginning


class UnsoundUpdates(UserError, FloatingPointError):
    """Raised when losses or gradients stay without finite numbers."""


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

        After ``MAX_SKIPPED`` skipped updates in a row all processes raise UnsoundUpdates.
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
        """Raise UnsoundUpdates if the last ``MAX_SKIPPED`` updates were skipped, or all of a run that has fewer."""
        if self._updates:
            self._check(min(self._updates, MAX_SKIPPED))

    def _skipped(self, measure: Tensor) -> Tensor:
        skipped = (~measure.isfinite()).float()
        if self._accelerator is None or self._accelerator.num_processes == 1:
            return skipped
        return self._accelerator.reduce(skipped, "sum").clamp(max=1)

    def _check(self, limit: int) -> None:
        if self._in_a_row >= limit:
            raise UnsoundUpdates(
                f"the last {int(self._in_a_row)} updates of the {self.name} had losses or gradients that are not "
                "finite and were skipped; what is saved is from before. Look for bad values in the data, lower the "
                "learning rate, or give gradients a maximal norm"
            )


def build_adamw(
    groups: Iterable[dict[str, object]] | Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    epsilon: float = 1e-8,
    in_8bit: bool = False,
) -> Optimizer:
    """Build AdamW with one fused kernel, or bitsandbytes' with 8-bit moments."""
    if in_8bit:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay, eps=epsilon)
    return AdamW(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay, eps=epsilon, fused=True)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def weight_decay_groups(model: nn.Module, weight_decay: float, embed_no_wd: bool) -> list[dict[str, object]]:
    """Split the parameters into those with weight decay and, with ``embed_no_wd``, those without.

    Without the flag everything decays, as in the published recipes.
    """
    exempt: set[nn.Parameter] = set()
    for module in model.modules() if embed_no_wd else ():
        if isinstance(module, nn.Embedding) or type(module).__name__ in NORM_LAYERS:
            exempt.update(module.parameters(recurse=False))
        elif isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            exempt.add(bias)
    decaying = [parameter for parameter in trainable_parameters(model) if parameter not in exempt]
    others = [parameter for parameter in trainable_parameters(model) if parameter in exempt]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def accumulating(accelerator: Accelerator, model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Accumulate gradients over the batches of an update; processes exchange them only at the last one."""
    return nullcontext() if is_last else accelerator.no_sync(model)


def advance(updates: SoundUpdates, scheduler: LRScheduler, loss: Tensor, norm: Tensor) -> Tensor:
    """Update with the present gradients of norm ``norm`` and clear them. Returns whether it was skipped (0 or 1)."""
    skipped = updates.step(loss, norm)
    scheduler.step()
    updates.optimizer.zero_grad()
    return skipped


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return the gradient norm of each direct part of a model."""
    norms = {}
    for name, part in model.named_children():
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        if gradients:
            total = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
            norms[f"grad_norm/{name}"] = total.item()
    return norms


class EmaWeights:
    """EMA of the trained weights of ``model``, for ``--use_ema``, updated after its optimizer's updates.

    Weights that do not train, such as codebooks that are running means already, have no average of their own. The state
    is part of every checkpoint and the same in all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().clone() for name, weight in self._trained.items()}
        self._updates = 0

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Update the EMA; the first call copies the weights. Nothing changes after a ``skipped`` (1) update."""
        decay = min(self._updates / (WARM_UP + self._updates), MAX_DECAY)
        share = (1 - decay) * (1 - skipped)  # known to the device alone
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, list(self._trained.values()), [share] * len(averages))
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the EMA into the model for the duration, and its own weights back afterwards."""
        own = self._put(self._averages)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange the model's values, without a copy. Returns those that it had."""
        before = {name: weight.data for name, weight in self._trained.items()}
        for name, weight in self._trained.items():
            weight.data = values[name]
        return before

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self._updates, "averages": self._averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._updates = state["updates"]
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])
