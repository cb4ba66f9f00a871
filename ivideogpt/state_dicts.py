"""Find, read, check and write weight files: strict about names and shapes, and never through pickle.

Knows tensors and files; knows no model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivideogpt.errors import UserError, first_line
from ivideogpt.files import atomic_file, atomic_path

Shapes = Mapping[str, tuple[int, ...]]
NAMES_SHOWN = 10
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


def resolve_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """Return a local folder as it is, and a hub id's after downloading its configs and safetensors, or from the cache.

    A UserError says if it is neither.
    """
    name = str(path_or_hub_id)
    try:
        folder = Path(path_or_hub_id).expanduser()
    except RuntimeError as error:  # a user that there is not
        raise UserError(f"no checkpoint folder {name}: {first_line(error)}") from error
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise UserError(f"no checkpoint folder {name}")
    import huggingface_hub  # here, as it takes a fifth of a second

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds: a proxy's errors are no OSError
        raise UserError(
            f"{name} is neither a local folder nor a model that the hub gives us: {first_line(error)}"
        ) from error


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_state_dict(expected: Shapes, found: Shapes, source: str, may_lack: Collection[str] = ()) -> None:
    """Compare the names and shapes that a model has with those that a file has.

    A UserError names each missing, unexpected and wrongly shaped tensor of the ``source``. It may lack ``may_lack``.
    """
    misshapen = [name for name, shape in expected.items() if name in found and tuple(found[name]) != tuple(shape)]
    problems = {
        "missing": [name for name in expected if name not in found and name not in may_lack],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": [f"{name} is {list(found[name])}, expected {list(expected[name])}" for name in misshapen],
    }
    if any(problems.values()):
        listed = "; ".join(_listed(kind, names) for kind, names in problems.items() if names)
        raise UserError(f"{source} does not fit the model; {listed}")


def _listed(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{kind}: {', '.join(names[:NAMES_SHOWN])}{more}"


class _SkipInitialisation(TorchFunctionMode):
    """Leave tensors as they are where ``torch.nn.init`` would fill them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Build modules on the meta device: shapes alone, to be loaded with ``assign=True``.

    Filling such a tensor from a normal distribution would import torch._dynamo, which takes as long as torch itself.
    """
    with torch.device("meta"), _SkipInitialisation():
        yield


def load_strict(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, may_lack: Collection[str] = (), assign: bool = False
) -> None:
    """Load ``tensors`` into a module after :func:`check_state_dict`.

    ``assign`` makes the tensors themselves the module's parameters, as a module on the meta device needs; otherwise
    they are copied and the module keeps its dtype and device.
    """
    check_state_dict(shapes_of(module.state_dict()), shapes_of(tensors), source, may_lack)
    module.load_state_dict(tensors, strict=False, assign=assign)


def weights_file(folder: Path, name: str) -> Path:
    """Return the safetensors file ``name`` inside ``folder``; a UserError says if there are pickled weights instead."""
    file = folder / name
    if file.is_file():
        return file
    found = next((path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES), None)
    advice = f", and {found} is a pickle, which is never loaded: convert it to safetensors" if found else ""
    raise UserError(f"{file} is missing{advice}")


def tensor_names(file: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file, without reading them."""
    with _reading(file), safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def read_tensors(file: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file; floating-point ones as ``dtype`` if that is given.

    A tensor that is not finite is a UserError: a rollout would hide it, as the likeliest of NaN is a token, too.
    """
    with _reading(file):
        tensors = _cast(load_file(file), dtype)
    if bad := _not_finite(tensors, dtype):
        raise UserError(f"{file} is damaged, or its training went wrong; {bad}")
    return tensors


def _not_finite(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    # The sum first: it takes no memory, and is finite wherever weights make sense.
    finite = (tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all() for tensor in tensors.values())
    bad = [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]
    beyond = "" if dtype is None else f", or beyond {str(dtype).removeprefix('torch.')}"
    return _listed(f"not finite{beyond}", bad) if bad else ""


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{file} is no safetensors file or is damaged ({first_line(error)})") from error


def read_foreign_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of somebody else's ``.pth`` file without running any code that it may hold."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is damaged or holds more than tensors
        raise UserError(f"{file} cannot be read as plain tensors: {first_line(error)}") from error
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(f"{file} must hold a mapping of names to tensors, nothing else")
    return dict(tensors)


def read_any_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of one written by torch, told apart by their first bytes."""
    with file.open("rb") as content:
        is_torchs = content.read(2) in (b"PK", b"\x80\x02")  # a zip archive, or a pickle as before torch 1.6
    return read_foreign_tensors(file) if is_torchs else read_tensors(file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file, whole or not at all, floating-point tensors as ``dtype`` if that is given.

    A tensor that is not finite, as after a training that has gone wrong, is a UserError; a full disk is an OSError.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in _cast(tensors, dtype).items()}
    if bad := _not_finite(contiguous, dtype):
        raise UserError(f"{file} is not written; {bad}")
    with atomic_path(file) as partial:
        try:
            save_file(contiguous, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written: {error}") from error
        umask = os.umask(0)  # can only be read by setting it
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # safetensors makes files that nobody else may read


def save_state(state: Mapping[str, Any], file: Path) -> None:
    """Write a state with ``torch.save``, whole or not at all; OSError if the disk is full or read-only."""
    with atomic_file(file) as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch reports its own confusion after a failed write
                raise error.__context__ from error
            raise


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
