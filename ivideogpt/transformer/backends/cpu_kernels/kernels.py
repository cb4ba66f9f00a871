"""Compiled CPU passes of few positions, and sampling: ``native_pass.cpp``, built at first use and cached.

Knows weights, cache and positions; knows no layout of tokens. Where it cannot be built, torch's own kernels do the same
(:mod:`ivideogpt.transformer.backends.torch`), after one line in the log.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivideogpt.devices import processor_flags
from ivideogpt.files import write_text
from ivideogpt.paths import user_cache
from ivideogpt.precision import forced_bfloat16
from ivideogpt.transformer.llama import LayerWeights, LlamaWeights

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native_pass.cpp")
SWITCH = "IVIDEOGPT_NATIVE"  # 0 turns compiled passes off
COMPILE_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")
VECTOR_WIDTH = 16  # floats; all widths must be multiples of it
MAX_HEAD_DIM = 256
# Above so many positions a general matrix product is faster (two cores with AVX-512, 138M parameters).
MAX_LANES = 64
FUNCTIONS = ("llama_pass", "llama_attention", "llama_linear", "llama_sample")
COMPILE_SECONDS = 300
LIBRARIES_KEPT = 4


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "width", "heads", "key_value_heads", "head_dim", "mlp_width")),
        *((name, ctypes.c_int32) for name in ("threads", "batch", "capacity", "lanes", "shared_length")),
        ("epsilon", ctypes.c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_void_p) for field in fields(LayerWeights)]


class _Cache(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("keys", "values", "cos", "sin", "rows", "owners", "positions")]


class Lanes:
    """The new positions of one pass, one lane each, and the cache that they are written to.

    Args:
        keys, values: (layers, B, G, C, d).
        positions: (B, n); what comes before them is filled.
        owners, shared_length: see :class:`~ivideogpt.transformer.backends.cpu_kernels.backend.SharedPromptCache`.
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
        """Number of new positions of all rows."""
        return len(self.positions)


class NativePass:
    """The passes of one set of weights. Holds their addresses: make a new one when they have moved."""

    def __init__(self, library: ctypes.CDLL, weights: LlamaWeights) -> None:
        self._library = library
        self._kept = layers = weights.layers  # keeps alive the memory that is read by address
        self._final_norm = weights.final_norm
        self._cos, self._sin = weights.cos, weights.sin
        self._is_bfloat16 = weights.final_norm.dtype == torch.bfloat16
        self._heads = (weights.num_heads, weights.num_key_value_heads, weights.head_dim)
        self._epsilon = weights.norm_epsilon
        self._layers = (_Layer * len(layers))(
            *(_Layer(*(tensor.data_ptr() for tensor in layer.tensors)) for layer in layers)
        )
        self._width = weights.width
        self._mlp_width = layers[0].down.shape[1]

    def forward(self, embeddings: Tensor, lanes: Lanes) -> Tensor:
        """Run embeddings (B, n, D) to last hidden states after the final norm, (B, n, D) float32. Fills the cache."""
        count, (num_heads, num_key_value_heads, head_dim) = lanes.count, self._heads
        hidden = embeddings.reshape(count, self._width).to(torch.float32, copy=True).contiguous()
        normed = torch.empty_like(hidden)
        lane_size = 2 * (num_heads + num_key_value_heads) * head_dim + 3 * self._mlp_width + self._width
        scratch, scores = _room(count * lane_size), self._room_for_scores(lanes)
        addresses = map(_pointer, (self._final_norm, hidden, normed, scratch, scores))
        self._library.llama_pass(*self._arguments(lanes), self._layers, *addresses)
        return normed.view(embeddings.shape)

    def attend(self, layer: int, qkv: Tensor, lanes: Lanes) -> Tensor:
        """Attention of one layer: joined projections (B, n, (H + 2 G) d) to outputs (B, n, H d). Fills the cache."""
        projected = qkv.reshape(lanes.count, -1).float().contiguous()
        attended = _room(lanes.count, self._heads[0] * self._heads[2])
        scores = self._room_for_scores(lanes)
        self._library.llama_attention(*self._arguments(lanes), layer, *map(_pointer, (projected, attended, scores)))
        return attended.view(*qkv.shape[:2], -1).to(qkv.dtype)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Compute ``F.linear`` of few rows: x (..., K), weight (O, K) of the pass's precision, to (..., O) float32."""
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        out = _room(len(rows), len(weight))
        addresses = _pointer(rows), _pointer(weight), int(self._is_bfloat16), _pointer(out)
        self._library.llama_linear(*addresses, len(rows), weight.shape[1], len(weight), torch.get_num_threads())
        return out.view(*x.shape[:-1], len(weight))

    def _arguments(self, lanes: Lanes) -> tuple[Any, ...]:
        """Return the arguments that passes and attention alone share."""
        model = len(self._layers), self._width, *self._heads, self._mlp_width, torch.get_num_threads()
        batch, capacity = lanes.keys.shape[1], lanes.keys.shape[3]
        shape = _Shape(*model, batch, capacity, lanes.count, lanes.shared_length, self._epsilon)
        tensors = lanes.keys, lanes.values, self._cos, self._sin, lanes.rows, lanes.owners, lanes.positions
        cache = _Cache(*(tensor.data_ptr() for tensor in tensors))
        return ctypes.byref(shape), ctypes.byref(cache), int(self._is_bfloat16)

    def _room_for_scores(self, lanes: Lanes) -> Tensor:
        """Allocate attention scores for every head of every lane."""
        return _room(lanes.count * self._heads[0] * (lanes.keys.shape[3] + VECTOR_WIDTH))


def sample(library: ctypes.CDLL, logits: Tensor, draws: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Sample ids (B,) from logits (B, V) and draws (B,) as :func:`ivideogpt.transformer.sampling.sample` does."""
    assert len(draws) == len(logits), f"{len(draws)} draws for {len(logits)} rows"
    logits, draws = logits.float().contiguous(), draws.contiguous()
    room, chosen = torch.empty_like(logits), torch.empty_like(draws)
    options = ctypes.c_float(temperature), top_k or 0, *logits.shape, torch.get_num_threads()
    library.llama_sample(_pointer(logits), _pointer(draws), *options, _pointer(room), _pointer(chosen))
    return chosen


def supports(weights: LlamaWeights) -> bool:
    """Return whether compiled code can run these weights."""
    first, tensors = weights.layers[0], weights.tensors
    return (
        {tensor.device.type for tensor in tensors} == {"cpu"}
        and {tensor.dtype for tensor in tensors} in ({torch.float32}, {torch.bfloat16})
        and all(size % VECTOR_WIDTH == 0 for size in (weights.head_dim, *first.qkv.shape, *first.down.shape))
        and weights.head_dim <= MAX_HEAD_DIM
        and all(tensor.is_contiguous() for tensor in tensors)
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled code; None, after one line in the log, where there is none."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        file = _library_file()
        return _load_cached(file) or _build(file)
    except (OSError, subprocess.SubprocessError) as error:
        output = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        reason = output.partition("\n")[0] or error
        logger.warning("decoding with torch's own kernels, slower on a CPU: no compiled ones (%s)", reason)
        return None


def _library_file() -> Path:
    """Return the file of the compiled library. Its name depends on code, flags and processor, not on the compiler.

    Raises:
        OSError: the user has no folder for it.
    """
    folder = user_cache()
    if folder is None:
        raise OSError("no folder to keep them in: set HOME or XDG_CACHE_HOME")
    made_of = "\n".join([SOURCE.read_text(), *COMPILE_FLAGS, processor_flags()])
    return folder / f"native_pass-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"


def _checksum_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _load_cached(file: Path) -> ctypes.CDLL | None:
    """Load what an earlier process has left; None if it is missing, damaged, or may be somebody else's.

    Loading a library runs its code, and mapping a truncated one can end the process.
    """
    try:
        if not (_is_private(file.parent) and _is_private(file) and not file.is_symlink()):
            return None
        if hashlib.sha256(file.read_bytes()).hexdigest() != _checksum_file(file).read_text().strip():
            return None
        return _load(file)
    except (OSError, UnicodeDecodeError):
        return None


def _is_private(path: Path) -> bool:
    """Return whether a file or folder belongs to the user, and nobody else may write it."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _load(file: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(file))
    for name in FUNCTIONS:
        if not hasattr(loaded, name):
            raise OSError(f"{file} has no function {name}")
        getattr(loaded, name).restype = None
    return loaded


def _build(file: Path) -> ctypes.CDLL:
    """Compile and load the library, and keep it for later processes.

    Raises:
        OSError: there is no compiler, it makes nothing that can be loaded, or the folder is not the user's own.
        SubprocessError: the compiler refuses the code or does not end.
    """
    compiler = _compiler()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(file.parent):
        file.parent.chmod(file.parent.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    if not _is_private(file.parent):  # root may change what is not its own
        raise OSError(f"{file.parent} belongs to another user: set XDG_CACHE_HOME to a folder of your own")
    logger.info("compiling the decoder for this processor, once: %s", file)
    with tempfile.TemporaryDirectory(dir=file.parent) as build_folder:
        made, linked = Path(build_folder) / "pass.o", Path(build_folder) / "pass.so"
        # Linked without OpenMP's library: its symbols are those that torch has loaded, so that both share one set of
        # threads. A second one would fight over the cores.
        for command in (
            [*compiler, *COMPILE_FLAGS, "-c", str(SOURCE), "-o", str(made)],
            [*compiler, "-shared", str(made), "-o", str(linked)],
        ):
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)
        if not linked.is_file():
            raise OSError(f"{' '.join(compiler)} made no library")
        linked.chmod(0o700)
        loaded = _load(linked)
        write_text(_checksum_file(file), hashlib.sha256(linked.read_bytes()).hexdigest() + "\n")
        os.replace(linked, file)
    # Keep a few libraries, as machines that share a home have different processors.
    built = sorted(file.parent.glob("native_pass-*.so"), key=lambda library: library.lstat().st_mtime)
    for library in built[:-LIBRARIES_KEPT]:
        library.unlink(missing_ok=True)
        _checksum_file(library).unlink(missing_ok=True)
    return loaded


def _compiler() -> list[str]:
    try:
        compiler = shlex.split(os.environ.get("CXX") or "") or ["g++"]
    except ValueError as error:
        raise OSError(f"CXX is {os.environ['CXX']!r}, which is no command: {error}") from error
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no {compiler[0]}: install g++, or name another compiler in CXX")
    return compiler


def multiplies_bfloat16() -> bool:
    """Return whether this CPU has units for products of bfloat16 matrices. Without them float32 is the faster one."""
    forced = forced_bfloat16()
    return "amx_bf16" in processor_flags() if forced is None else forced


def _room(*shape: int) -> Tensor:
    """Allocate float32 memory on the CPU for compiled code to write to, whatever torch's defaults are."""
    return torch.empty(*shape, dtype=torch.float32, device="cpu")


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Return a tensor's address. The caller must keep the tensor alive while the address is used."""
    return ctypes.c_void_p(tensor.data_ptr())
