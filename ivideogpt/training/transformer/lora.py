"""Low-rank adapters of the language model (LoRA, Hu et al. 2021), through peft, which is optional."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from torch import Tensor

from ivideogpt.pretrained import Transformer, language_model
from ivideogpt.state_dicts import save_tensors

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
NAME = "default"  # peft's, of the one adapter that there is
PEFT_PREFIX = "base_model.model."  # prefix of tensor names in peft's files
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Adapters:
    """Adapters in the language model of ``transformer``, which they are put into; they add nothing at first.

    The language model's own weights are frozen; actions' and other heads train as they are. The state is all that
    trains.
    """

    def __init__(self, transformer: Transformer, rank: int, alpha: float, dropout: float) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self._transformer = transformer
        self._llm = language_model(transformer)
        self._config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(ADAPTED), task_type="CAUSAL_LM"
        )
        inject_adapter_in_model(self._config, self._llm, NAME)

    def merged(self) -> Transformer:
        """Return a copy of the transformer with the adapters merged into its weights."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        merged = deepcopy(self._transformer)
        for name, module in list(merged.named_modules()):
            if isinstance(module, BaseTunerLayer):
                layer = module.get_base_layer()
                layer.weight.data += module.get_delta_weight(NAME)
                parent, _, own_name = name.rpartition(".")
                setattr(merged.get_submodule(parent), own_name, layer)
        return merged

    def save(self, folder: Path) -> None:
        """Write the adapters alone, for ``PeftModel.from_pretrained`` with the weights that they started from."""
        from peft import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        self._config.save_pretrained(folder)
        tensors = get_peft_model_state_dict(self._llm, adapter_name=NAME, save_embedding_layers=False)
        save_tensors({PEFT_PREFIX + name: tensor for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)

    def state_dict(self) -> dict[str, Tensor]:
        parameters = self._transformer.named_parameters()
        return {name: parameter.detach() for name, parameter in parameters if parameter.requires_grad}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
