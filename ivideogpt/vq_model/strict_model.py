"""Networks that are built from a config and saved beside it in folders of diffusers' format, strictly."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import write_text
from ivideogpt.model_configs import CONFIG_FILE, described_by, read_config
from ivideogpt.state_dicts import load_strict, read_tensors, resolve_folder, save_tensors, weights_file, without_values

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
FORMAT_VERSION = "0.42.0"  # the diffusers version that is written into config.json; the format is stable


class Config(dict[str, Any]):
    """The arguments that a network was built with, as entries and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Make an ``__init__`` note its arguments, defaults included, in ``self.config``."""

    @wraps(init)
    def noting(self: StrictModel, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        bound = inspect.signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        self.config = Config(arguments)

    return noting


class StrictModel(nn.Module):
    """A network that loads weights strictly: a missing, unexpected or misshapen tensor is an error."""

    kind = "model"
    config: Config

    if TYPE_CHECKING:

        def to(self, *args: Any, **kwargs: Any) -> Self:
            """Declare that any arguments go, ``memory_format`` among them, which torch's own declaration lacks."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each block in the backward pass, which takes time and saves memory."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True  # type: ignore[assignment]

    # ---- config

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """Build a network with random weights. Values that are no arguments of it are ignored."""
        known = inspect.signature(cls.__init__).parameters
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_json_string(self) -> str:
        """Return the text of ``config.json``."""
        marks = {"_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION}
        return json.dumps(self.config | marks, indent=2, sort_keys=True) + "\n"

    # ---- folders

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, tensors: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write config and weights: these ``tensors`` or its own, as ``dtype`` if that is given."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_FILE, self.to_json_string())
        save_tensors(self.state_dict() if tensors is None else tensors, folder / WEIGHTS_FILE, dtype)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        **ignored: Any,
    ) -> Self:
        """Load a local folder or hub id strictly, from safetensors only, in float32 and eval mode.

        Args:
            ignored: other arguments of diffusers' method, the released scripts' ``use_safetensor`` among them. None
                of them changes what is loaded.

        Raises:
            UserError: a file is missing or unreadable, or a tensor is missing, unexpected or of another shape.
        """
        source = f"{pretrained_model_name_or_path}"
        try:
            folder = resolve_folder(source, revision) / (subfolder or "")
            values = read_config(folder)
            tensors = read_tensors(weights_file(folder, WEIGHTS_FILE), torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"cannot load a {cls.kind} from {source}: {first_line(error)}") from error
        config = folder / CONFIG_FILE
        with described_by(config), without_values():
            model = cls.from_config(values)
        described, held = (sum(tensor.numel() for tensor in some.values()) for some in (model.state_dict(), tensors))
        if described > 2 * held:  # less of a difference gets a message that names the tensors
            raise UserError(f"{config} describes a network of {described} parameters, {WEIGHTS_FILE} holds {held}")
        load_strict(model, tensors, f"{source}, read as a {cls.kind},", assign=True)
        return model.eval()
