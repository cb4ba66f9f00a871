"""Passes of few positions on a CPU, and draws, by compiled code: ``native_pass.cpp``, built at first use and kept.

Knows weights, cache and positions; knows no layout of tokens. Where it cannot be built, torch's own kernels do the same
(:mod:`ivideogpt.transformer.llama`), after one line in the log.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ivideogpt.precision import forced_bfloat16
from ivideogpt.user_cache import user_cache

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native_pass.cpp")
SWITCH = "IVIDEOGPT_NATIVE"  # 0 turns compiled passes off
COMPILE_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")
VECTOR_WIDTH = 16  # floats; all widths must be multiples of it
MAX_HEAD_DIM = 256
# Above so many positions a general matrix product is faster (two cores with AVX-512, 138M parameters).
MAX_LANES = 64


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "width", "heads", "key_value_heads", "head_dim", "mlp_width")),
        *((name, ctypes.c_int32) for name in ("threads", "batch", "capacity", "lanes", "shared_length")),
        ("epsilon", ctypes.c_float),
    ]


LAYER_TENSORS = ("input_norm", "qkv", "output", "mlp_norm", "gate_up", "down")


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in LAYER_TENSORS]


class _Cache(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "cos", "sin", "rows", "owners", "positions")]


@dataclass(frozen=True)
class LayerWeights:
    """One layer of a LLaMA, with the projections that read the same input joined into one matrix."""

    input_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    def float(self) -> LayerWeights:
        """A copy in float32."""
        return LayerWeights(*(getattr(self, name).to(torch.float32, copy=True) for name in LAYER_TENSORS))

    def copy_(self, other: LayerWeights) -> LayerWeights:
        for name in LAYER_TENSORS:
            getattr(self, name).copy_(getattr(other, name))
        return self


class Heads(NamedTuple):
    """Numbers of query heads and of key and value heads, and their size."""

    queries: int
    keys_values: int
    dim: int


class Lanes:
    """The new positions of one pass, one lane each, and the cache that they are written to.

    Args:
        keys, values: (layers, B, G, C, d).
        positions: (B, n); what comes before them is filled.
        owners, shared_length: see :class:`~ivideogpt.transformer.llama.KVCache`.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, positions: Tensor, owners: Tensor | None, shared_length: int
    ) -> None:
        batch, length = positions.shape
        self.keys, self.values = keys, values
        self.positions = positions.to(torch.int32).flatten()
        self.rows = torch.arange(batch, dtype=torch.int32, device="cpu").repeat_interleave(length)
        if owners is None:  # a row's own past is shared by its new positions
            self.owners, self.shared_length = self.rows, int(self.positions.min())
        else:
            self.owners, self.shared_length = owners.repeat_interleave(length), shared_length

    @property
    def count(self) -> int:
        """All new positions of all rows."""
        return len(self.positions)


class NativePass:
    """The passes of one set of weights. Holds their addresses: make a new one when they have moved."""

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: list[LayerWeights],
        final_norm: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: Heads,
        epsilon: float,
    ) -> None:
        self._library = library
        self._kept = layers  # their memory is read by address
        self._final_norm = final_norm
        self._cos, self._sin = cos, sin
        self._is_bfloat16 = final_norm.dtype == torch.bfloat16
        self._heads, self._epsilon = heads, epsilon
        self._layers = (_Layer * len(layers))(
            *(_Layer(*(getattr(layer, name).data_ptr() for name in LAYER_TENSORS)) for layer in layers)
        )
        self._width = len(final_norm)
        self._mlp_width = layers[0].down.shape[1]

    def forward(self, embeddings: Tensor, lanes: Lanes) -> Tensor:
        """Embeddings (B, n, D) to last hidden states after the final norm, (B, n, D) float32. Fills the cache."""
        count, heads = lanes.count, self._heads
        hidden = embeddings.reshape(count, self._width).to(torch.float32, copy=True).contiguous()
        normed = torch.empty_like(hidden)
        of_lane = 2 * (heads.queries + heads.keys_values) * heads.dim + 3 * self._mlp_width + self._width
        scratch, scores = _room(count * of_lane), self._room_for_scores(lanes)
        self._library.llama_pass(
            *self._arguments(lanes),
            self._layers,
            _pointer(self._final_norm),
            *map(_pointer, (hidden, normed, scratch, scores)),
        )
        return normed.view(embeddings.shape)

    def attend(self, layer: int, qkv: Tensor, lanes: Lanes) -> Tensor:
        """Joined projections (B, n, (H + 2 G) d) of one layer to what attention finds, (B, n, H d). Fills the cache."""
        projected = qkv.reshape(lanes.count, -1).float().contiguous()
        attended = _room(lanes.count, self._heads.queries * self._heads.dim)
        scores = self._room_for_scores(lanes)
        self._library.llama_attention(*self._arguments(lanes), layer, *map(_pointer, (projected, attended, scores)))
        return attended.view(*qkv.shape[:2], -1).to(qkv.dtype)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """``F.linear`` of few rows: x (..., K), weight (O, K) of the pass's precision, to (..., O) float32."""
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        out = _room(len(rows), len(weight))
        self._library.llama_linear(
            _pointer(rows),
            _pointer(weight),
            int(self._is_bfloat16),
            _pointer(out),
            len(rows),
            weight.shape[1],
            len(weight),
            torch.get_num_threads(),
        )
        return out.view(*x.shape[:-1], len(weight))

    def _arguments(self, lanes: Lanes) -> tuple[Any, ...]:
        """What passes and attention alone have in common."""
        shape = _Shape(
            len(self._layers),
            self._width,
            *self._heads,
            self._mlp_width,
            torch.get_num_threads(),
            lanes.keys.shape[1],
            lanes.keys.shape[3],
            lanes.count,
            lanes.shared_length,
            self._epsilon,
        )
        tensors = (
            lanes.keys,
            lanes.values,
            self._cos,
            self._sin,
            lanes.rows,
            lanes.owners,
            lanes.positions,
        )
        cache = _Cache(*(tensor.data_ptr() for tensor in tensors))
        return ctypes.byref(shape), ctypes.byref(cache), int(self._is_bfloat16)

    def _room_for_scores(self, lanes: Lanes) -> Tensor:
        """Of every head of every lane."""
        return _room(lanes.count * self._heads.queries * (lanes.keys.shape[3] + VECTOR_WIDTH))


def sample(library: ctypes.CDLL, logits: Tensor, draws: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """As :func:`ivideogpt.transformer.sampling.sample`: logits (B, V) and draws (B,) int64 to ids (B,)."""
    assert len(draws) == len(logits), f"{len(draws)} draws for {len(logits)} rows"
    logits, draws = logits.float().contiguous(), draws.contiguous()
    room, chosen = torch.empty_like(logits), torch.empty_like(draws)
    library.llama_sample(
        _pointer(logits),
        _pointer(draws),
        ctypes.c_float(temperature),
        top_k or 0,
        *logits.shape,
        torch.get_num_threads(),
        _pointer(room),
        _pointer(chosen),
    )
    return chosen


def supports(layers: list[LayerWeights], others: list[Tensor], head_dim: int) -> bool:
    """Can compiled code run these weights? ``others`` are those outside of layers."""
    first = layers[0]
    tensors = [*(getattr(layer, name) for layer in layers for name in LAYER_TENSORS), *others]
    return (
        {tensor.device.type for tensor in tensors} == {"cpu"}
        and {tensor.dtype for tensor in tensors} in ({torch.float32}, {torch.bfloat16})
        and all(size % VECTOR_WIDTH == 0 for size in (head_dim, *first.qkv.shape, *first.down.shape))
        and head_dim <= MAX_HEAD_DIM
        and all(tensor.is_contiguous() for tensor in tensors)
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled code; None, after one line in the log, where there is none."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(_built()))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        logger.warning("decoding with torch's own kernels, slower on a CPU: no compiled ones (%s)", reason)
        return None
    for function in (loaded.llama_pass, loaded.llama_attention, loaded.llama_linear, loaded.llama_sample):
        function.restype = None
    return loaded


def _built() -> Path:
    """The shared library, compiled unless an earlier process has left it.

    Raises:
        OSError: there is no compiler, or nowhere to write.
        CalledProcessError: the compiler refuses the code.
    """
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no {compiler[0]}: install g++, or name another compiler in CXX")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    made_of = [SOURCE.read_text(), version, *COMPILE_FLAGS, _processor()]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    folder = user_cache()
    if folder is None:
        raise OSError("no folder to keep them in: set HOME or XDG_CACHE_HOME")
    built = folder / f"native_pass-{digest}.so"
    if built.exists():
        return built
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("compiling the decoder for this processor, once: %s", built)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        made, linked = Path(aside) / "pass.o", Path(aside) / "pass.so"
        # Linked without OpenMP's library: its symbols are those that torch has loaded, so that both share one set of
        # threads. A second one would fight over the cores.
        for command in (
            [*compiler, *COMPILE_FLAGS, "-c", str(SOURCE), "-o", str(made)],
            [*compiler, "-shared", str(made), "-o", str(linked)],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True)
        os.replace(linked, built)
    return built


def multiplies_bfloat16() -> bool:
    """Return whether this CPU has units for products of bfloat16 matrices. Without them float32 is the faster one."""
    forced = forced_bfloat16()
    return "amx_bf16" in _processor() if forced is None else forced


@functools.cache
def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _room(*shape: int) -> Tensor:
    """What compiled code writes floats to, whatever torch's defaults are."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Whoever calls must hold the tensor until the address is no longer used: nothing else does."""
    return ctypes.c_void_p(tensor.data_ptr())
