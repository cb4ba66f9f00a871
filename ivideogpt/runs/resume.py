"""Comparison of a resumed run's settings with those of the run that it continues."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ivideogpt.errors import UserError
from ivideogpt.files import read_json, write_json
from ivideogpt.paths import split_paths

RECORD = "run.json"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
MODEL_PARTS = ("tokenizer", "transformer", "unwrapped_model")  # folders of a model's folder, or of a run's
ON_HUB = "hub:"  # begins digests of what a hub has, whose commits follow
WITH_ENDS = "ends:"  # begins digests of data; without it, those of earlier versions, which read no content
END = 4096  # bytes of a data file that are compared: those of npz files hold the checksums of all arrays
_THREADS, _FILES_AT_ONCE = 16, 256  # over a network a file takes milliseconds

Changes = dict[str, list[Any]]  # setting -> [before, now]
FindOnHub = Callable[[str], str | None]  # name of a data set -> commit on the hub and further choices, None for folders
FindPath = Callable[[str, Mapping[str, Any]], Any]  # name of a setting, settings -> path or list of paths


@dataclass(frozen=True)
class ResumeRules:
    """Rules for the settings of a resumed run; a setting that is not named here decides the results and may not change.

    Attributes:
        may_change: settings that say how long to train, what to write and where, and how to fit into the machine.
        data: paths of data folders, which may move: the names, sizes and ends of their files must stay.
        weights: paths of weights and configurations, which may move: the contents of their files must stay.
        allow: what the user adds to change other settings on purpose.
        find_on_hub: tells what a name of a ``lerobot:`` path means on the hub now.
        find_path: tells what is read at the path of a setting, such as some of the data sets in a folder.
    """

    may_change: frozenset[str]
    data: Collection[str]
    weights: Collection[str]
    allow: str
    find_on_hub: FindOnHub = lambda name: None
    find_path: FindPath = lambda name, settings: settings.get(name)

    def digests(self, settings: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, str]:
        """Return digests of the contents that a run reads, by setting, for :meth:`changes` when it resumes."""
        chosen = (*self.data, *self.weights) if names is None else names
        found = {name: self._digest(name, settings) for name in chosen}
        return {name: digest for name, digest in found.items() if digest is not None}

    def changes(
        self, asked: Mapping[str, Any], recorded: Mapping[str, Any], digests: Mapping[str, str] | None = None
    ) -> Changes:
        """Return the settings that are known to both sides and differ in a way that can change the results.

        For a path that has none of the recorded ``digests``, its old place is compared if it is still there.
        """
        changes: Changes = {}
        for name, now in asked.items():
            if name in self.may_change or name not in recorded:
                continue
            old = (digests or {}).get(name)
            if old is not None and name in self.data and not old.startswith((ON_HUB, WITH_ENDS)):
                old = None
            if recorded[name] != now:
                old = old or self._digest(name, recorded)
                differs = old is None or old != self._digest(name, asked)
            else:  # missing files are for their reader to report
                differs = old is not None and self._digest(name, asked) not in (None, old)
            if differs:
                changes[name] = [recorded[name], now]
        return changes

    def note(self, file: Path, changes: Changes, step: int, asked: Mapping[str, Any], args: str | None = None) -> None:
        """Add changes that the user allowed to a run's record, and to its entry ``args``, which holds the settings."""
        record = read_json(file) if file.exists() else {}
        if args is not None:
            record[args] |= {name: now for name, (_, now) in changes.items()}
        unchanged = {name: digest for name, digest in record.get("contents", {}).items() if name not in changes}
        record["contents"] = self.digests(asked, changes) | unchanged
        noted = {name: {"before": before, "now": now} for name, (before, now) in changes.items()}
        record["changes"] = [*record.get("changes", []), {"step": step, **noted}]
        write_json(file, record)

    def _digest(self, name: str, settings: Mapping[str, Any]) -> str | None:
        if name not in self.data and name not in self.weights:
            return None
        path = self.find_path(name, settings)
        return digest_of(str(path), name in self.weights, self.find_on_hub) if path else None


def refuse(changes: Changes, allow: str, describe: Callable[[str, Any, Any], str], otherwise: str) -> None:
    """Raise UserError if there are changes that are not allowed."""
    if changes:
        listed = ", ".join(
            describe(name, before, now) + ", which has other contents now" * (before == now)
            for name, (before, now) in changes.items()
        )
        raise UserError(
            f"a resumed run keeps its settings, but given {listed}: {otherwise}, or add {allow} to go on with them"
        )


def digest_of(path: str, with_contents: bool, find_on_hub: FindOnHub = lambda name: None) -> str | None:
    """Return a digest of what a path names, wherever it lies; None if nothing is there, as under a model's hub id.

    Args:
        path: file, ``<folder>[,<folder>...]``, ``lerobot:<folder or hub id>[@<camera>][,<folder>...]`` or
            ``lance:<uri>[,<uri>...]``.
        with_contents: read the weights and configurations directly in a folder. Otherwise names, sizes and ends of all
            files count, hidden ones excepted.
    """
    digest, commits = hashlib.blake2b(digest_size=16), list[str]()
    known, _, rest = path.partition(":")
    listed = rest if known in ("lerobot", "lance") else path
    for part in split_paths(listed):
        if known == "lerobot" and (found := find_on_hub(part)) is not None:
            commits.append(found.split()[0])
            digest.update(f"{found}\n".encode())
            continue
        folder, _, camera = part.partition("@") if known == "lerobot" else (part, "", "")
        digest.update(f"camera {camera}\n".encode())
        if not (files := _weight_files(Path(folder)) if with_contents else _data_files(Path(folder))):
            return None
        for file, end in zip(files, [b""] * len(files) if with_contents else _ends(files), strict=True):
            name = "" if file == Path(folder) else file.relative_to(folder)
            digest.update(f"{name} {file.stat().st_size}\n".encode() + end)
            if with_contents:
                with file.open("rb") as content:
                    hashlib.file_digest(content, lambda: digest)  # adds to it
    if commits:
        return f"{ON_HUB}{','.join(commits)} {digest.hexdigest()}"
    return WITH_ENDS * (not with_contents) + digest.hexdigest()


def _ends(files: Sequence[Path]) -> list[bytes]:
    """Return a digest of the last bytes of each file."""
    parts = [files[start : start + _FILES_AT_ONCE] for start in range(0, len(files), _FILES_AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda part: list(map(_end, part)), parts)))


def _end(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - END, 0))
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:  # for its reader to report, if there is one
        return b""


def _data_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [
        file
        for file in files
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


def _weight_files(path: Path) -> list[Path]:
    folders = [path, *(path / part for part in MODEL_PARTS)]
    files = [path] if path.is_file() else sorted(file for folder in folders for file in folder.glob("*"))
    named = [file for file in files if file == path or file.suffix in WEIGHT_SUFFIXES or file.name == "config.json"]
    # a folder's configuration alone says nothing about weights
    return named if any(file == path or file.suffix in WEIGHT_SUFFIXES for file in named) else []
