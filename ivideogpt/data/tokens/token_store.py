"""Clips stored as tokens, so that a transformer trains without its tokenizer. Knows files and layouts; knows no model.

::

    <store>/meta.json                description of the tokens; in a finished store also the number of clips per shard
    <store>/shard-00000/tokens.npy   (n, L) uint16, or uint32 for large vocabularies
                       /actions.npy  (n, T, D) float32, if the episodes have actions
                       /rewards.npy  (n, T) float32, if they have rewards
                       /skipped.json clips that could not be read, if there are any

Clips are numbered pass after pass, and shard s holds those from ``s * clips_per_shard`` on, so that processes can share
the work. A shard is written under a temporary name and renamed, so that every existing shard is complete.
Shapes: B batch, L tokens of a clip, T frames, D action dimension.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.data.clips.loaders import StreamPosition
from ivideogpt.data.formats.npz_arrays import npy_array
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError
from ivideogpt.files import check_fields, read_json, write_json
from ivideogpt.layout import TokenLayout

TOKENIZE = "python -m ivideogpt.data tokenize"
META = "meta.json"
FORMAT = 2
MAX_VOCABULARY, MAX_SEQUENCE = 2**24, 2**24  # far beyond any model; larger values come from a damaged description
_OPEN_SHARDS = 128  # up to three open files each; a common limit is 1024 per process


@dataclass(frozen=True)
class TokenBatch:
    """Tokens (B, L) int64 with the clips' actions (B, T, D) and rewards (B, T), if stored."""

    tokens: Tensor
    actions: Tensor | None = None
    rewards: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> TokenBatch:
        actions, rewards = (
            part if part is None else part.to(device, non_blocking=non_blocking)
            for part in (self.actions, self.rewards)
        )
        return TokenBatch(self.tokens.to(device, non_blocking=non_blocking), actions, rewards)


@dataclass(frozen=True)
class StoredSource:
    """A stored dataset. The numbers count one pass."""

    name: str
    num_episodes: int
    num_clips: int


@dataclass(frozen=True)
class TokenStoreMeta:
    """Description of the clips of a store. Two stores with equal meta hold the same clips."""

    layout: TokenLayout
    num_clips: int  # over all passes
    num_passes: int
    augmentation: str  # name, for all passes but the first; none with one pass
    seed: int  # for the augmentation
    clips_per_shard: int
    action_dim: int | None
    has_rewards: bool
    sources: tuple[StoredSource, ...]
    split: str
    video_stepsize: int
    stride: int
    episodes: str  # checksum of the names and lengths of the episodes
    tokenizer: str  # state_checksum of the tokenizer's weights
    precision: str  # autocast precision of the tokenizer

    @property
    def token_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.layout.vocab_size <= 2**16 else np.uint32)

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.sources)

    @property
    def num_shards(self) -> int:
        return -(-self.num_clips // self.clips_per_shard)

    def clips_of(self, shard: int) -> range:
        """Return the clip numbers of a shard."""
        return range(self.num_clips)[shard * self.clips_per_shard : (shard + 1) * self.clips_per_shard]

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return row shape and type of each array in a shard, by name. T follows from the layout."""
        num_frames = self.layout.context_frames + self.layout.future_frames
        found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "tokens": ((self.layout.sequence_length,), self.token_dtype)
        }
        if self.action_dim is not None:
            found["actions"] = ((num_frames, self.action_dim), np.dtype(np.float32))
        if self.has_rewards:
            found["rewards"] = ((num_frames,), np.dtype(np.float32))
        return found


@dataclass(frozen=True)
class StoreDescription:
    """``meta.json``: the description of the store and, once it is finished, the number of clips in each shard."""

    meta: TokenStoreMeta
    shards: tuple[int, ...] | None = None

    def write(self, folder: Path) -> None:
        shards = {} if self.shards is None else {"shards": self.shards}
        write_json(folder / META, {"format": FORMAT, **asdict(self.meta), **shards})

    @classmethod
    def read(cls, folder: Path) -> Self:
        file = folder / META
        if not file.is_file():
            raise UserError(f"{folder} is no token store: it has no {META}; make one with {TOKENIZE}")
        values = read_json(file, f"make it again with {TOKENIZE}")
        try:
            number = values.pop("format")
            if number != FORMAT:
                raise ValueError(f"format {number}, expected {FORMAT}")
            shards = values.pop("shards", None)
            layout = TokenLayout(**values.pop("layout"))
            sources = tuple(StoredSource(**source) for source in values.pop("sources"))
            meta = TokenStoreMeta(layout=layout, sources=sources, **values)
            _check_meta(meta)
            return cls(meta, None if shards is None else _checked_shards(meta, shards))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{file}: no description of a token store ({error}); make it again with {TOKENIZE}"
            ) from error


def _check_meta(meta: TokenStoreMeta) -> None:
    check_fields(meta)
    for source in meta.sources:
        check_fields(source)
    check_fields(meta.layout, dict.fromkeys(("context_frames", "context_tokens", "dynamics_tokens"), 1), 2**24)
    if meta.layout.vocab_size > MAX_VOCABULARY or meta.layout.sequence_length > MAX_SEQUENCE:
        raise UserError(
            f"its clips have {meta.layout.sequence_length} tokens of {meta.layout.vocab_size} kinds, expected at most "
            f"{MAX_SEQUENCE} of {MAX_VOCABULARY}"
        )


def _checked_shards(meta: TokenStoreMeta, shards: Any) -> tuple[int, ...]:
    if not isinstance(shards, list | tuple) or not all(type(number) is int and number >= 0 for number in shards):
        raise UserError("shards is no list of numbers of clips")
    if sum(shards) > meta.num_clips:
        raise UserError(f"its shards hold {sum(shards)} clips, more than num_clips {meta.num_clips}")
    return tuple(shards)


def state_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of weights by names, shapes and values, independent of file and storage precision."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


class TokenStore:
    """A finished store, read through memory maps."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        manifest = StoreDescription.read(self.folder)
        self.meta = manifest.meta
        if manifest.shards is None:
            raise UserError(f"{self.folder} is not finished; run {TOKENIZE} again to finish it")
        self._ends = np.cumsum(manifest.shards)
        self._starts = self._ends - manifest.shards
        if len(self) == 0:
            raise UserError(f"{self.folder} holds no clips; run {TOKENIZE} on episodes that have some")
        for shard, number in enumerate(manifest.shards):
            self._check_shard(shard, number)
        self._open_shard = lru_cache(_OPEN_SHARDS)(self._map_shard)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, rows: NDArray[np.int64]) -> TokenBatch:
        shards = np.searchsorted(self._ends, rows, side="right")
        places = [(self._open_shard(int(shard)), row) for shard, row in zip(shards, rows - self._starts[shards])]

        found = {name: np.stack([arrays[name][row] for arrays, row in places]) for name in self.meta.arrays()}
        tokens = found.pop("tokens").astype(np.int64)
        check_clips(self.meta, tokens, found, f"{self.folder}, one of the clips {reprlib.repr(rows.tolist())}")
        tensors = {name: torch.from_numpy(values) for name, values in found.items()}
        return TokenBatch(torch.from_numpy(tokens), tensors.get("actions"), tensors.get("rewards"))

    def check_tokenizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise UserError unless the tokens were made with these weights."""
        if state_checksum(tensors) != self.meta.tokenizer:
            raise UserError(
                f"the tokens in {self.folder} were made by another tokenizer; give the one that made them, "
                f"or run {TOKENIZE} with this one"
            )

    def _map_shard(self, shard: int) -> dict[str, NDArray[Any]]:
        return {name: mapped(shard_folder(self.folder, shard), name) for name in self.meta.arrays()}

    def _check_shard(self, shard: int, number: int) -> None:
        """Raise UserError unless all arrays of a shard exist, complete and in the form that ``meta.json`` describes."""
        folder = shard_folder(self.folder, shard)
        for name, (row_shape, dtype) in self.meta.arrays().items() if number else ():
            array = mapped(folder, name)
            if array.shape != (number, *row_shape) or array.dtype != dtype:
                raise UserError(
                    f"{folder / name}.npy holds {array.shape} {array.dtype}, but {META} says {(number, *row_shape)} "
                    f"{dtype}; make the store again with {TOKENIZE}"
                )


def check_clips(meta: TokenStoreMeta, tokens: NDArray[Any], others: Mapping[str, NDArray[Any]], source: str) -> None:
    """Raise UserError for token ids outside the vocabulary, and for implausible actions and rewards."""
    if tokens.size and (tokens.min() < 0 or tokens.max() >= meta.layout.vocab_size):
        raise UserError(
            f"{source}: token ids from {tokens.min()} to {tokens.max()}, expected 0 to {meta.layout.vocab_size - 1}; "
            f"make the store again with {TOKENIZE}"
        )
    for name, values in others.items():
        check_plausible(values, f"{source}: {name}", f"repair the episodes and run {TOKENIZE} again")


class TokenLoader(StreamPosition):
    """An endless stream of :class:`TokenBatch`: clips shuffled by seed and epoch; ranks take batches in turn.

    The clips that do not fill the last step of an epoch are dropped; each epoch drops different ones.
    """

    def __init__(self, store: TokenStore, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(batch_size, rank, world_size)
        self.store = store
        self._seed = seed
        self._steps_per_epoch = len(store) // self.samples_per_step
        if self._steps_per_epoch == 0:
            raise UserError(
                f"{store.folder} holds {len(store)} clips, fewer than one step of {world_size} x {batch_size}; "
                "lower the batch size"
            )

    def __iter__(self) -> Iterator[TokenBatch]:
        while True:
            batch = self._batch(self.position)
            self.position += 1
            yield batch

    def first(self, num_batches: int) -> Iterator[TokenBatch]:
        """Yield the first batches, the same on every call. The stream's position does not change."""
        return map(self._batch, range(num_batches))

    def _batch(self, position: int) -> TokenBatch:
        epoch, step = divmod(position, self._steps_per_epoch)
        first = (step * self.world_size + self.rank) * self.batch_size
        return self.store.read(_shuffled(len(self.store), self._seed, epoch)[first : first + self.batch_size])


@lru_cache(maxsize=2)
def _shuffled(num_clips: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_clips)


def shard_folder(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}"


def mapped(shard: Path, name: str) -> NDArray[Any]:
    try:
        return npy_array(str(shard / f"{name}.npy")).mapped()
    except UserError as error:
        raise UserError(f"{error}; make the store again with {TOKENIZE}") from error
