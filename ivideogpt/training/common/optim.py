"""Optimizers: parameter groups, AdamW, norms of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ivideogpt.training.common.updates import SoundUpdates

if TYPE_CHECKING:
    from accelerate import Accelerator  # model-based RL runs without it

NORM_LAYERS = ("LlamaRMSNorm", "RMSNorm", "LayerNorm", "GroupNorm")


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
    exempt = _exempt_parameters(model) if embed_no_wd else set()
    decaying = [parameter for parameter in trainable_parameters(model) if parameter not in exempt]
    others = [parameter for parameter in trainable_parameters(model) if parameter in exempt]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _exempt_parameters(model: nn.Module) -> set[nn.Parameter]:
    exempt: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or type(module).__name__ in NORM_LAYERS:
            exempt.update(module.parameters(recurse=False))
        elif isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            exempt.add(bias)
    return exempt


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
            norms[f"grad_norm/{name}"] = _total_norm(gradients).item()
    return norms


def _total_norm(gradients: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
