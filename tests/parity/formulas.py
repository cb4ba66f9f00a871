"""The formulas behind ``golden.json``: weights, inputs, and how a tensor is compared with its record.

``golden.json`` holds what the released implementation computes (float32, CPU, eval mode) on small models that are
filled by :func:`fill`; ``checkpoint_keys.json`` maps model -> tensor name -> shape of every released size, layers
written once as ``{i}``. Nothing here imports the package, so the reference cannot drift with it.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TOLERANCE = 1e-4
HERE = Path(__file__).parent
Module = TypeVar("Module", bound=nn.Module)


def golden() -> dict[str, Any]:
    """Read anew every time: a test that changes what it got must not change the reference of another."""
    return json.loads((HERE / "golden.json").read_text())


def checkpoint_keys() -> dict[str, dict[str, list[int]]]:
    return json.loads((HERE / "checkpoint_keys.json").read_text())


def weight(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The value of tensor ``name``: random numbers seeded by the name, scaled by its kind."""
    x = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))
    if x.ndim == 0:
        return x
    if x.ndim == 1:
        if name.endswith(("weight_u", "weight_v")):
            return x / np.linalg.norm(x)
        return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    if name.endswith("pos_emb"):
        return 0.1 * x
    if name.endswith("embedding.weight"):
        return 0.7 * x
    return x / math.sqrt(math.prod(shape[1:]))


@torch.no_grad()
def fill(module: Module) -> Module:
    """Fill every floating-point tensor of the state dict (buffers included) in place; eval mode from then on."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(weight(name, tuple(tensor.shape)))))
    return module.eval()


def clip(batch: int, num_frames: int, height: int, width: int, phase: float = 0.0) -> Tensor:
    """(B, T, 3, H, W) float32 waves."""
    b, t, c, y, x = np.ogrid[:batch, :num_frames, :3, :height, :width]
    s = 64 / height
    waves = (
        0.5
        + 0.25 * np.sin(0.3 * s * x + 0.7 * c + 0.2 * t * (b + 1) + phase)
        + 0.25 * np.cos(0.2 * s * y - 0.5 * c + 0.1 * t * (1 + 0.5 * b) - phase)
    )
    return torch.from_numpy(waves.astype(np.float32))


def actions(batch: int, num_frames: int, dim: int) -> Tensor:
    """(B, T, D) float32."""
    b, t, d = np.ogrid[:batch, :num_frames, :dim]
    return torch.from_numpy(np.sin(0.9 * t + 1.3 * d + 0.5 * b).astype(np.float32))


def assert_record(tensor: Tensor, record: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    """Compare shape, mean, sample standard deviation and the recorded values with a tensor."""
    values = tensor.detach().double().flatten()
    assert list(tensor.shape) == record["shape"]
    assert_close(values[record["at"]], record["values"], tolerance)
    assert_close(values.mean(), record["mean"], tolerance)
    assert_close(values.std(), record["std"], tolerance)


def assert_close(actual: Tensor, expected: Any, tolerance: float = TOLERANCE) -> None:
    actual = torch.as_tensor(actual).detach().double()
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), atol=tolerance, rtol=tolerance)


def assert_state_dict_matches(module: nn.Module, model: str) -> None:
    """Names and shapes of a module equal those of a released checkpoint."""
    listed = checkpoint_keys()[model]
    actual = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    expected: dict[str, list[int]] = {}
    layers = {name.split("layers.")[1].split(".")[0] for name in actual if ".layers." in name}
    for name, shape in listed.items():
        expected |= {name.replace("{i}", i): shape for i in layers} if "{i}" in name else {name: shape}
    assert actual == expected
