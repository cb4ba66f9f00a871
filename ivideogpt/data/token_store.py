"""Clips stored as tokens, so that a transformer trains without its tokenizer. Knows files and layouts; knows no model.

::

    <store>/meta.json                what the tokens are, and how many clips are to come
    <store>/shard-00000/tokens.npy   (n, L) uint16, or uint32 for large vocabularies
                       /actions.npy  (n, T, D) float32, if the episodes have actions
                       /rewards.npy  (n, T) float32, if they have rewards

A shard is written aside and renamed, so every shard that exists is whole; writing again goes on after the last one.
Shapes: B batch, L tokens of a clip, T frames, D action dimension.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.data.position import StreamPosition
from ivideogpt.errors import UserError
from ivideogpt.layout import TokenLayout

TOKENIZE = "python -m ivideogpt.data tokenize"
META = "meta.json"
FORMAT = 1
CLIPS_PER_SHARD = 1024


@dataclass(frozen=True)
class TokenBatch:
    """Tokens (B, L) int64 with the clips' actions (B, T, D) and rewards (B, T), where the store has them."""

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
class TokenStoreMeta:
    """What the tokens of a store are. Two stores with equal meta hold the same clips."""

    layout: TokenLayout
    num_clips: int
    action_dim: int | None
    has_rewards: bool
    datasets: tuple[str, ...]
    split: str
    video_stepsize: int
    stride: int
    episodes: str  # checksum of the names and lengths of the episodes
    tokenizer: str  # state_checksum of the tokenizer's weights

    @property
    def token_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.layout.vocab_size <= 2**16 else np.uint32)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        file = folder / META
        try:
            values = json.loads(file.read_text())
            if values.pop("format") != FORMAT:
                raise ValueError(f"format is not {FORMAT}")
            layout = TokenLayout(**values.pop("layout"))
            return cls(layout=layout, datasets=tuple(values.pop("datasets")), **values)
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no token store: it has no {META}; make one with {TOKENIZE}") from error
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{file}: no description of a token store ({error}); make it again with {TOKENIZE}"
            ) from error


def state_checksum(tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights by names, shapes and values, whatever file or precision of storage they come from."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


class TokenStoreWriter:
    """Appends clips to a store. An existing store goes on if it is to hold the same clips, and is refused otherwise."""

    def __init__(
        self, folder: str | os.PathLike[str], meta: TokenStoreMeta, clips_per_shard: int = CLIPS_PER_SHARD
    ) -> None:
        self.folder = Path(folder)
        self.meta = meta
        self._clips_per_shard = clips_per_shard
        self._waiting: list[TokenBatch] = []
        self._open()
        self._num_shards = len(_shard_folders(self.folder))
        self.num_stored = sum(len(_array(shard, "tokens")) for shard in _shard_folders(self.folder))

    def append(self, batch: TokenBatch) -> None:
        self._waiting.append(batch)
        if sum(len(batch.tokens) for batch in self._waiting) >= self._clips_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one shard."""
        if not self._waiting:
            return
        aside = self.folder / "partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        tokens = torch.cat([batch.tokens for batch in self._waiting]).numpy()
        np.save(aside / "tokens.npy", tokens.astype(self.meta.token_dtype))
        if self.meta.action_dim is not None:
            np.save(aside / "actions.npy", _joined([batch.actions for batch in self._waiting]))
        if self.meta.has_rewards:
            np.save(aside / "rewards.npy", _joined([batch.rewards for batch in self._waiting]))
        os.replace(aside, self.folder / f"shard-{self._num_shards:05d}")
        self._num_shards += 1
        self.num_stored += len(tokens)
        self._waiting.clear()

    def _open(self) -> None:
        if (self.folder / META).exists():
            present = asdict(TokenStoreMeta.read(self.folder))
            different = [name for name, value in asdict(self.meta).items() if present[name] != value]
            if different:
                raise UserError(
                    f"{self.folder} holds another token store (other {', '.join(different)}); "
                    "choose another folder or delete it"
                )
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and no token store; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f"{META}.partial"
        aside.write_text(self.meta.to_json())
        os.replace(aside, self.folder / META)


class TokenStore:
    """A finished store, read through memory maps."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.meta = TokenStoreMeta.read(self.folder)
        shards = _shard_folders(self.folder)
        self._tokens = [_array(shard, "tokens") for shard in shards]
        self._actions = [_array(shard, "actions") for shard in shards] if self.meta.action_dim is not None else None
        self._rewards = [_array(shard, "rewards") for shard in shards] if self.meta.has_rewards else None
        self._ends = np.cumsum([len(tokens) for tokens in self._tokens])
        if len(self) != self.meta.num_clips or len(self) == 0:
            raise UserError(
                f"{self.folder} holds {len(self)} of {self.meta.num_clips} clips; run {TOKENIZE} again to finish it"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, rows: NDArray[np.int64]) -> TokenBatch:
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = self._ends - [len(tokens) for tokens in self._tokens]
        places = list(zip(shards, rows - starts[shards], strict=True))

        def gather(arrays: list[NDArray[Any]], dtype: type[np.generic]) -> Tensor:
            return torch.from_numpy(np.stack([arrays[shard][row] for shard, row in places]).astype(dtype))

        return TokenBatch(
            gather(self._tokens, np.int64),
            gather(self._actions, np.float32) if self._actions is not None else None,
            gather(self._rewards, np.float32) if self._rewards is not None else None,
        )

    def check_tokenizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises UserError unless the tokens were made with these weights."""
        if state_checksum(tensors) != self.meta.tokenizer:
            raise UserError(
                f"the tokens in {self.folder} were made by another tokenizer; give the one that made them, "
                f"or run {TOKENIZE} with this one"
            )


class TokenLoader(StreamPosition):
    """An endless stream of :class:`TokenBatch`: clips shuffled by the seed and epoch; ranks take turns at batches.

    The few clips that do not fill the last step of an epoch are left out of it; the next epoch leaves out others.
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
        """The same batches on every call. Does not move the stream's position."""
        return map(self._batch, range(num_batches))

    def _batch(self, position: int) -> TokenBatch:
        epoch, step = divmod(position, self._steps_per_epoch)
        first = (step * self.world_size + self.rank) * self.batch_size
        return self.store.read(_shuffled(len(self.store), self._seed, epoch)[first : first + self.batch_size])


@lru_cache(maxsize=2)
def _shuffled(num_clips: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_clips)


def _joined(parts: list[Tensor | None]) -> NDArray[np.float32]:
    return torch.cat([part for part in parts if part is not None]).numpy()


def _shard_folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


def _array(shard: Path, name: str) -> NDArray[Any]:
    file = shard / f"{name}.npy"
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); make the store again with {TOKENIZE}") from error
