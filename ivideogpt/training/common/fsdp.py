"""State dicts of models that FSDP2 shards over processes. All processes call all functions.

What only sharded models need is imported where it is used: it takes a second.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_state_dict(model: nn.Module, only_main: bool = False) -> dict[str, Tensor]:
    """Gather all weights in every process, or in the main process's own memory alone; the others get nothing then."""
    from torch.distributed.checkpoint import state_dict

    _spread(model)
    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=only_main)
    tensors: dict[str, Any] = state_dict.get_model_state_dict(model, options=options)
    return tensors


class ShardedOptimizerState:
    """State of a sharded optimizer: whole moments under the weights' names, for any number of processes.

    The main process has them; each reads its own part of them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.checkpoint import state_dict

        _spread(self._model)
        options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
        return state_dict.get_optimizer_state_dict(self._model, self._optimizer, options=options)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from torch.distributed.checkpoint import state_dict

        _spread(self._model)
        options = state_dict.StateDictOptions(full_state_dict=True)
        state_dict.set_optimizer_state_dict(self._model, self._optimizer, state, options=options)


def _spread(model: nn.Module) -> None:
    """Shard the outermost weights again: after a forward pass without a backward one they are still whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
