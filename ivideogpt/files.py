"""Write files and folders atomically; read JSON with a clear error for every defect; keep rows of what is done.

Knows nothing of the package.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import reprlib
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import IO, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from ivideogpt.errors import UserError

PARTIAL_SUFFIX = ".partial"
ABANDONED_AFTER = 60.0  # seconds without a change: the writer may run on another machine
ROWS_FILE, SETTINGS_FILE = "episodes.jsonl", "settings.json"
ADVICE = "remove it to begin anew, or name another folder"

logger = logging.getLogger(__name__)

Row = TypeVar("Row")


def partial_path(path: Path) -> Path:
    """Return a name beside `path` that no other process uses, for what is to be renamed to `path` once complete.

    It is hidden and ends in ``.partial``, so that no pattern for finished files finds it.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def file_stem(text: str) -> str:
    """Return a text as part of a file name: what is not a letter, a digit, ".", "-" or "_" becomes "-"."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".-")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a name for a file or folder that takes the place of `path` once the block has ended without an error.

    The content is on the disk before the name is. After an error or a kill `path` is what it was before. A folder
    takes the place of none, or of an empty one.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        yield partial
        for part in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
            sync(part)
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say for which file
        with suppress(OSError):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder to write to; its files take their places in `path` once the block has ended without an error.

    All of them are on the disk before the first is renamed. Other files in `path` stay, but for what killed processes
    left unfinished.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    partial = partial_path(path / "files")
    try:
        partial.mkdir()
        yield partial
        written = [file for file in partial.rglob("*") if file.is_file()]
        for file in written:
            sync(file)
        for file in written:
            place = path / file.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
            sync_folder(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` as :func:`atomic_path` says; `mode` is ``"wb"`` or ``"w"`` (UTF-8)."""
    with atomic_path(path) as partial, partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


@contextmanager
def going_on_without_room() -> Iterator[None]:
    """Log a failed write and go on: weights are worth more than a log line or a picture."""
    try:
        yield
    except OSError as error:
        logger.error("%s; going on without", error)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder; others may be writing there meanwhile."""
    for path in folder.glob(f".*{PARTIAL_SUFFIX}") if folder.is_dir() else ():
        made_by = re.search(r"\.(\d+)-[0-9a-f]{8}\.partial$", path.name)
        with suppress(OSError):  # without a process it was left by an older version
            if made_by and (_is_running(int(made_by[1])) or time.time() - path.stat().st_mtime < ABANDONED_AFTER):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def sync(path: Path) -> None:
    """Put the content of a file on the disk, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the file system can (a new name may be lost in a power failure)."""
    with suppress(OSError):
        sync(folder)


def check_folder_can_be_written(folder: Path, flag: str) -> None:
    """Check that a folder is writable, or can be created; UserError if not, or if it is a file. Creates nothing."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not existing.is_dir():
        raise UserError(f"{flag}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag}: nothing can be written to {existing}: name another folder")


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, whole or not at all: half a line would spoil the next one, too."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        content = f"{line}\n".encode()
        try:
            written = file.write(content)
            if written < len(content):
                file.write(content[written:])  # says why the rest was not
        except OSError as error:
            file.truncate(size)
            error.filename = error.filename or str(path)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all; ValueError for NaN and infinity, which JSON has no word for."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | Path, advice: str = "") -> dict[str, Any]:
    """Read a JSON file that holds one object; UserError for any other file, and for none.

    ``advice`` ends the message, e.g. "remove it to start again".
    """
    ending = f"; {advice}" if advice else ""
    try:
        value = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing{ending}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}{ending}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{path} is not valid JSON: {reason}{ending}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object, and holds {_kind(value)}{ending}")
    return value


def read_json_lines(path: str | Path, advice: str = "") -> list[dict[str, Any]]:
    """Read a file that holds a JSON object a line, like :func:`read_json`; empty lines do not count."""
    ending = f"; {advice}" if advice else ""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}{ending}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not valid JSON{ending}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} must be one JSON object, and is {_kind(row)}{ending}")
        rows += [row] if line.strip() else []
    return rows


def check_fields(record: Any, lowest: Mapping[str, float] = MappingProxyType({}), highest: float = 2**63 - 1) -> None:
    """Check a dataclass that was made from JSON; UserError if a field has another type (True is no number) or range.

    Numbers, by field, are at least ``lowest``, 0 if it says nothing, and at most ``highest``. NaN is out of any range.
    """
    for name, kind in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not any(_is_a(value, each) for each in (get_args(kind) if isinstance(kind, UnionType) else (kind,))):
            raise UserError(f"{name} is {reprlib.repr(value)}, expected {_described(kind)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not lowest.get(name, 0) <= value <= highest:
            raise UserError(f"{name} is {reprlib.repr(value)}, expected {lowest.get(name, 0)} to {highest:g}")


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return str(getattr(kind, "__name__", kind))


def _is_a(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null", bool: "a truth value"}.get(type(value), "a number")


def check_settings(
    file: Path, settings: Mapping[str, Any], advice: str = ADVICE, changeable: Collection[str] = ()
) -> dict[str, Any]:
    """Return settings as JSON returns them. A setting that only one of two sides has is null on the other.

    ``changeable`` ones may differ from those in the file.

    Raises:
        UserError: the file holds others, or cannot be read, which ``advice`` is for.
    """
    now: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    free = dict.fromkeys(changeable)
    if file.exists() and (differing := _differences(read_json(file, advice) | free, now | free)):
        raise UserError(f"{file.parent} was made with other settings ({'; '.join(differing)}): name another folder")
    return now


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        inside = {key: f"{name}.{key}".lstrip(".") for key in sorted(before.keys() | now.keys())}
        return [text for key, path in inside.items() for text in _differences(before.get(key), now.get(key), path)]
    return [] if before == now else [f"{name} was {before}, is {now}"]


class KeptRows(Generic[Row]):
    """Rows of a folder, one JSON object a line, and beside them the settings that they share: a command's state.

    Attributes:
        rows: those of earlier commands first. Half a line at the end, of a killed process, is none.
    """

    def __init__(self, folder: Path, kind: type[Row], settings: Mapping[str, Any], name: str = ROWS_FILE) -> None:
        """``kind`` is the rows' dataclass.

        Raises:
            UserError: the folder's rows were made with other settings or are damaged, or it is of an evaluation.
        """
        self.folder, self.path, self._kind, self._noted = folder, folder / name, kind, folder / SETTINGS_FILE
        self.settings = check_settings(self._noted, settings)
        if not self._noted.exists() and (folder / "report.json").exists():
            raise UserError(f"{folder} has the report of a finished evaluation: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        if self._noted.exists() and self.path.exists():
            self.rows = self._read()
            write_text(self.path, "".join(f"{self._line(row)}\n" for row in self.rows))

    def add(self, rows: Sequence[Row]) -> None:
        """Write more rows, all of them or none."""
        if not self._noted.exists():
            write_text(self.path, "")
            write_json(self._noted, self.settings)
        append_line(self.path, "\n".join(map(self._line, rows)))
        self.rows += rows

    def from_json(self, line: Mapping[str, Any]) -> Row | None:
        """Return the row of a line, or None if it does not count; ValueError, TypeError or KeyError if damaged."""
        row = self._kind(**line)
        check_fields(row, dict.fromkeys(line, -math.inf))
        return row

    def as_json(self, row: Row) -> dict[str, Any]:
        return asdict(row)  # type: ignore[call-overload]

    def _read(self) -> list[Row]:
        rows = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], 1):
            try:
                rows.append(self.from_json(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{self.path}: line {number} is damaged ({error}); {ADVICE}") from error
        return [row for row in rows if row is not None]

    def _line(self, row: Row) -> str:
        return json.dumps(self.as_json(row), allow_nan=False)
