"""Parts of a run that every checkpoint holds: random generators, and optimizers whose settings may have changed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim import Optimizer


class Stateful(Protocol):
    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class RandomState:
    """This process's global generators, as one piece of state."""

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state(legacy=True)
        numpy_state = (name, torch.tensor(np.asarray(keys, np.int64)), *rest)
        return {"python": random.getstate(), "numpy": numpy_state, **torch_random_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss_next = state["python"]
        random.setstate((version, tuple(internal), gauss_next))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        load_torch_random_state(state)


def torch_random_state() -> dict[str, Any]:
    """Return the state of torch's global generators."""
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def load_torch_random_state(state: Mapping[str, Any]) -> None:
    """Restore torch's global generators; those of GPUs only on as many GPUs."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's moments, and keep learning rate, decay and betas as they are asked for now."""
    asked = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, asked, strict=True):
        group.update(settings)
