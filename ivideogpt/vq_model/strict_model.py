"""Saving and loading in diffusers' folders, strictly."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin

from ivideogpt.errors import UserError


class StrictModel(ModelMixin, ConfigMixin):
    """A diffusers model that never goes on with weights that are not its own. ``kind`` names it in messages."""

    kind = "model"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a local folder or hub id strictly, from safetensors only, in float32.

        Raises:
            UserError: a file is missing or unreadable, or a tensor is missing, unexpected or of another shape.
        """
        kwargs.pop("use_safetensor", None)  # the released scripts' spelling
        kwargs.update(torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False)
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cannot load a {cls.kind} from {pretrained_model_name_or_path}: {reason}") from error
        kinds = ("missing", "unexpected", "mismatched")
        problems = {kind: ", ".join(map(str, info[f"{kind}_keys"])) for kind in kinds}
        if any(problems.values()):
            listed = "; ".join(f"{kind} tensors {names}" for kind, names in problems.items() if names)
            raise UserError(f"{pretrained_model_name_or_path} does not hold this {cls.kind}: {listed}")
        return model
