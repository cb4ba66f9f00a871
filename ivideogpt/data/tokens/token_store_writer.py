"""Write a token store: shards in any order, by any number of processes. token_store.py describes the format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivideogpt.data.clips.batches import BadEpisode
from ivideogpt.data.tokens.token_store import (
    META,
    StoreDescription,
    TokenBatch,
    TokenStoreMeta,
    check_clips,
    mapped,
    shard_folder,
)
from ivideogpt.errors import UserError
from ivideogpt.files import atomic_path, remove_abandoned, write_json

SKIPPED = "skipped.json"


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
            self._check_same()
            remove_abandoned(self.folder)
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and no token store; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        StoreDescription(self.meta).write(self.folder)

    def missing(self) -> list[int]:
        """Return the shards that are still to be written."""
        return [shard for shard in range(self.meta.num_shards) if not shard_folder(self.folder, shard).exists()]

    def write(self, shard: int, batches: Sequence[TokenBatch], skipped: Sequence[BadEpisode] = ()) -> None:
        """Write all readable clips of a shard.

        Raises:
            UserError: a token is outside the vocabulary, or an action or reward is implausible.
        """
        parts: dict[str, list[Tensor] | list[Tensor | None]] = {
            "tokens": [batch.tokens for batch in batches],
            "actions": [batch.actions for batch in batches],
            "rewards": [batch.rewards for batch in batches],
        }
        forms = self.meta.arrays()
        arrays = {name: _joined(parts[name], row_shape) for name, (row_shape, _) in forms.items()}
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
        StoreDescription(self.meta, tuple(len(mapped(folder, "tokens")) for folder in folders)).write(self.folder)

    def skipped(self) -> dict[str, str]:
        """Return the episodes with unreadable clips, and the cause."""
        files = sorted(self.folder.glob(f"shard-*/{SKIPPED}"))
        return {bad["name"]: bad["cause"] for file in files for bad in json.loads(file.read_text())}

    def _check_same(self) -> None:
        present = asdict(StoreDescription.read(self.folder).meta)
        different = [name for name, value in asdict(self.meta).items() if present[name] != value]
        if different:
            raise UserError(
                f"{self.folder} holds another token store (other {', '.join(different)}); "
                "choose another folder or delete it"
            )


def _joined(parts: Sequence[Tensor | None], row_shape: tuple[int, ...]) -> NDArray[np.generic]:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors).numpy() if tensors else np.zeros((0, *row_shape))


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an npy file; numpy itself hides the cause of errors such as a full disk."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())
