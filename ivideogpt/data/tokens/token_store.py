"""Clips stored as tokens, so that a transformer trains without its tokenizer. Knows files and layouts; knows no model.

::

    <store>/meta.json                description of the tokens; in a finished store also the number of clips per shard
    <store>/shard-00000/tokens.npy   (n, L) uint16, or uint32 for large vocabularies
                       /actions.npy  (n, T, D) float32, if the episodes have actions
                       /rewards.npy  (n, T) float32, if they have rewards
                       /successes.npy  (n, T) float32, 0 or 1, if they have successes
                       /skipped.json clips that could not be read, if there are any

Clips are numbered pass after pass, and shard s holds those from ``s * clips_per_shard`` on, so that processes can share
the work. A shard is written under a temporary name and renamed, so that every existing shard is complete.
Shapes: B batch, L tokens of a clip, T frames, D action dimension.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.action_spaces import ActionSpaces, same_encoding, with_all_datasets
from ivideogpt.data.clips.batches import BadEpisode, moved
from ivideogpt.data.clips.loaders import StreamPosition
from ivideogpt.data.formats.npz_arrays import npy_array
from ivideogpt.data.plausible import check_plausible
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_path, check_fields, read_json, remove_abandoned, write_json
from ivideogpt.layout import TokenLayout
from ivideogpt.paths import split_paths

DECODER_PARTS = ("decoder", "cond_decoder", "post_quant_conv", "post_quant_linear")  # no token depends on them

TOKENIZE = "python -m ivideogpt.data tokenize"
META, SKIPPED = "meta.json", "skipped.json"
FORMAT = 2
# fields that must be equal in stores that are read as one
SAME_IN_ALL = "layout", "action_dim", "has_rewards", "has_successes", "tokenizer", "precision", "video_stepsize"
OTHER_EPISODES = "some were added, removed or written again, or an older version, which noted no contents, made it"
_OPEN_SHARDS = 128  # up to three open files each; a common limit is 1024 per process


@dataclass(frozen=True)
class TokenBatch:
    """Tokens (B, L) int64 with the clips' actions (B, T, D), rewards and successes (B, T), if stored."""

    tokens: Tensor
    actions: Tensor | None = None
    rewards: Tensor | None = None
    successes: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> TokenBatch:
        return TokenBatch(*moved(device, non_blocking, self.tokens, self.actions, self.rewards, self.successes))


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
    episodes: str  # checksum of the names, lengths and contents of the episodes
    tokenizer: str  # token_checksum of the tokenizer's weights
    precision: str  # autocast precision of the tokenizer
    has_successes: bool = False
    action_spaces: ActionSpaces | None = None  # the stored actions are encoded by them

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

    def first_frames(self, num_frames: int | None) -> TokenStoreMeta:
        """Describe the same clips, cut to so many frames where they are longer: no token depends on later frames."""
        layout = self.layout
        if num_frames is None or num_frames >= layout.num_frames or num_frames < layout.context_frames:
            return self
        return replace(self, layout=layout.with_future_frames(num_frames - layout.context_frames))

    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return row shape and type of each array in a shard, by name. T follows from the layout."""
        num_frames, single = self.layout.num_frames, np.dtype(np.float32)
        actions = {} if self.action_dim is None else {"actions": ((num_frames, self.action_dim), single)}
        numbers = {"rewards": self.has_rewards, "successes": self.has_successes}
        single_numbers = {name: ((num_frames,), single) for name, is_stored in numbers.items() if is_stored}
        return {"tokens": ((self.layout.sequence_length,), self.token_dtype), **actions, **single_numbers}


def write_meta(folder: Path, meta: TokenStoreMeta, shards: Sequence[int] | None = None) -> None:
    """Write ``meta.json``: the description of the store and, once it is finished, the number of clips in each shard."""
    finished = {} if shards is None else {"shards": shards}
    write_json(folder / META, {"format": FORMAT, **asdict(meta), **finished})


def read_meta(folder: Path) -> tuple[TokenStoreMeta, list[int] | None]:
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
        if (spaces := values.pop("action_spaces", None)) is not None:
            spaces = ActionSpaces.from_json(spaces)
        meta = TokenStoreMeta(layout=layout, sources=sources, action_spaces=spaces, **values)
        for part in (meta, *sources):
            check_fields(part)
        check_fields(layout, dict.fromkeys(("context_frames", "context_tokens", "dynamics_tokens"), 1), 2**24)
        if spaces is not None and spaces.length != meta.action_dim:
            raise UserError(f"action_spaces encode to {spaces.length} numbers, but action_dim is {meta.action_dim}")
        if not all(type(number) is int and number >= 0 for number in shards or ()):
            raise UserError("shards is no list of numbers of clips")
        if sum(shards or ()) > meta.num_clips:
            raise UserError(f"its shards hold {sum(shards)} clips, more than num_clips {meta.num_clips}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: no description of a token store ({error}); make it again with {TOKENIZE}") from error
    return meta, shards


def state_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of weights by names, shapes and values, independent of file and storage precision."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def token_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the checksum of those weights of a tokenizer that decide its tokens: all but the decoders'."""
    return state_checksum({name: tensors[name] for name in tensors if name.partition(".")[0] not in DECODER_PARTS})


def store_folders(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folder of a store, or those of several that are read as one: ``<folder>[,<folder>...]``.

    Raises:
        UserError: none is named, or one twice.
    """
    folders = [Path(part) for part in split_paths(os.fspath(path))]
    if not folders:
        raise UserError(f"token store {os.fspath(path)!r} names no folder; expected <folder>[,<folder>...]")
    places = [folder.resolve() for folder in folders]
    if twice := [folder for number, folder in enumerate(folders) if places[number] in places[:number]]:
        raise UserError(f"{path}: {twice[0]} is named twice, which would give its clips twice the weight: name it once")
    return folders


def read_description(path: str | os.PathLike[str], num_frames: int | None = None) -> TokenStoreMeta:
    """Return the ``meta`` of :class:`TokenStore` without opening its shards."""
    return _description_of_all(
        [(folder, read_meta(folder)[0].first_frames(num_frames)) for folder in store_folders(path)]
    )


class TokenStore:
    """A finished store, or several that are read as one (:func:`store_folders`), through memory maps.

    ``meta`` of several has all of their clips and sources; what else may differ, such as strides, is the first one's.
    ``num_frames``: read only so many frames of each clip, the first ones, where a store has more.
    """

    def __init__(self, folder: str | os.PathLike[str], num_frames: int | None = None) -> None:
        self.folder = Path(folder)
        parts, shards, numbers = [], list[Path](), list[int]()
        for part in store_folders(folder):
            meta, clips = read_meta(part)
            if clips is None:
                raise UserError(f"{part} is not finished; run {TOKENIZE} again to finish it")
            if not any(clips):
                raise UserError(f"{part} holds no clips; run {TOKENIZE} on episodes that have some")
            shards += [shard_folder(part, shard) for shard in range(len(clips))]
            numbers += clips
            for shard, number in zip(shards[-len(clips) :], clips, strict=True):
                _check_shard(meta, shard, number)
            parts.append((part, meta.first_frames(num_frames)))
        self.meta = _description_of_all(parts)
        self._ends = np.cumsum(numbers)
        self._starts = self._ends - numbers
        self._open_shard = lru_cache(_OPEN_SHARDS)(
            lambda shard: {name: mapped(shards[shard], name) for name in self.meta.arrays()}
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: NDArray[np.int64]) -> TokenBatch:
        shards = np.searchsorted(self._ends, rows, side="right")
        places = [(self._open_shard(int(shard)), row) for shard, row in zip(shards, rows - self._starts[shards])]
        found = {
            name: np.stack([arrays[name][row][:length] for arrays, row in places])
            for name, ((length, *_), _) in self.meta.arrays().items()
        }
        tokens = found.pop("tokens").astype(np.int64)
        check_clips(self.meta, tokens, found, f"{self.folder}, one of the clips {reprlib.repr(rows.tolist())}")
        series = {name: torch.from_numpy(values) for name, values in found.items()}
        return TokenBatch(torch.from_numpy(tokens), **series)

    def check_tokenizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise UserError unless the tokens were made with these weights."""
        known = token_checksum(tensors), state_checksum(tensors)  # older stores have the latter
        if self.meta.tokenizer not in known:
            told = f"the tokens in {self.folder} were made by another tokenizer"
            raise UserError(f"{told}; give that one, or run {TOKENIZE} with this one")


def _check_shard(meta: TokenStoreMeta, folder: Path, number: int) -> None:
    """Raise UserError unless all arrays of a shard exist, complete and in the form that ``meta.json`` describes."""
    for name, (row_shape, dtype) in meta.arrays().items() if number else ():
        array = mapped(folder, name)
        if array.shape != (number, *row_shape) or array.dtype != dtype:
            raise UserError(
                f"{folder / name}.npy holds {array.shape} {array.dtype}, but {META} says {(number, *row_shape)} "
                f"{dtype}; make the store again with {TOKENIZE}"
            )


def _description_of_all(parts: Sequence[tuple[Path, TokenStoreMeta]]) -> TokenStoreMeta:
    """Return the description of stores that are read as one; UserError if their clips are of different kinds."""
    (folder, first), *others = parts
    for other, meta in others:
        different = [name for name in SAME_IN_ALL if getattr(meta, name) != getattr(first, name)]
        if not same_encoding(meta.action_spaces, first.action_spaces):
            different.append("action_spaces")
        if different:
            raise UserError(
                f"{other} cannot be read with {folder} (other {', '.join(different)}): make both with the same flags "
                "and tokenizer, from episodes with the same arrays"
            )
    metas = [meta for _, meta in parts]
    return replace(
        first,
        num_clips=sum(meta.num_clips for meta in metas),
        sources=tuple(source for meta in metas for source in meta.sources),
        action_spaces=with_all_datasets([meta.action_spaces for meta in metas]),
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
            step = f"one step of {world_size} x {batch_size}"
            raise UserError(f"{store.folder} holds {len(store)} clips, fewer than {step}; lower the batch size")

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


@dataclass(frozen=True)
class TokenStoreWriter:
    """A store that is being written. One process begins and finishes it; each shard is written by one process."""

    folder: Path
    meta: TokenStoreMeta

    def begin(self) -> None:
        """Make the folder, or check that it holds a part of the same store.

        Raises:
            UserError: the folder holds something else.
        """
        if (self.folder / META).exists():
            present = asdict(read_meta(self.folder)[0])
            different = [name for name, value in asdict(self.meta).items() if present[name] != value]
            if different:
                reason = f": {OTHER_EPISODES}" * ("episodes" in different)
                told = f"{self.folder} holds another token store (other {', '.join(different)}{reason})"
                raise UserError(f"{told}; choose another folder")
            remove_abandoned(self.folder)
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and no token store; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_meta(self.folder, self.meta)

    def missing(self) -> list[int]:
        """Return the shards that are still to be written."""
        return [shard for shard in range(self.meta.num_shards) if not shard_folder(self.folder, shard).exists()]

    def write(self, shard: int, batches: Sequence[TokenBatch], skipped: Sequence[BadEpisode] = ()) -> None:
        """Write all readable clips of a shard.

        Raises:
            UserError: a token is outside the vocabulary, or an action or reward is implausible.
        """
        arrays: dict[str, NDArray[Any]] = {}
        forms = self.meta.arrays()
        for name, (row_shape, _) in forms.items():
            tensors = [getattr(batch, name) for batch in batches]
            arrays[name] = torch.cat(tensors).numpy() if tensors else np.zeros((0, *row_shape))
        others = {name: array for name, array in arrays.items() if name != "tokens"}
        # before the cast, which wraps values that are too large
        check_clips(self.meta, arrays["tokens"], others, f"shard {shard} of {self.folder}")
        with atomic_path(shard_folder(self.folder, shard)) as partial:
            partial.mkdir()
            for name, array in arrays.items():
                save_array(partial / f"{name}.npy", array.astype(forms[name][1]))
            if skipped:
                write_json(partial / SKIPPED, [asdict(bad) for bad in skipped])

    def finish(self) -> None:
        """Write the number of clips of each shard into ``meta.json``, once all shards exist."""
        assert not self.missing()
        folders = [shard_folder(self.folder, shard) for shard in range(self.meta.num_shards)]
        write_meta(self.folder, self.meta, [len(mapped(folder, "tokens")) for folder in folders])

    def skipped(self) -> dict[str, str]:
        """Return the episodes with unreadable clips, and the cause."""
        files = sorted(self.folder.glob(f"shard-*/{SKIPPED}"))
        return {bad["name"]: bad["cause"] for file in files for bad in json.loads(file.read_text())}


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an npy file; numpy itself hides the cause of errors such as a full disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())
