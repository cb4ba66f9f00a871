"""Damage files at random, and see that reading gives a result or a UserError. Knows bytes, JSON and zip; no format.

Mutant i of a seed is always the same one, so that a failure is repeated by its number.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.errors import UserError

SECONDS = 10  # of processor time: a mutant that takes more hangs, on a busy machine, too
PATIENCE = 30  # times as many seconds on the clock may pass: then it waits for something, or loops in a library
ADDRESS_SPACE = 1 << 30  # bytes that reading mutants may take beyond what the process has
GROWTH = 100 << 20  # bytes that may stay after all of them
WARM_UP = 30  # mutants before growth counts: imports and caches

NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63), 10**12, 10**30)
ODD_VALUES = (*NUMBERS, 1e308, -0.5, float("nan"), float("inf"), None, True, False, "", "a", "{x:999999999d}", "é\0",
              [], {}, [[]], [1, "a"], {"a": 1}, "../../x", "1" * 400)  # fmt: skip
ODD_BYTES = (0x00, 0x01, 0x28, 0x7F, 0x80, 0xFF)
ODD_TEXTS = (b"nan", b"-1", b"1e999", b"9" * 30, b"", b'"', b"'", b"\xff\xfe", b"(", b"{", b"\n", b",", b"\0", b"inf")


class Hang(BaseException):
    """A mutant took too long. No `except Exception` of a reader swallows it."""


@dataclass(frozen=True)
class Outcome:
    """How many mutants were read, and how many were refused with a UserError."""

    read: int
    refused: int


def check_mutants(
    folder: Path, read: Callable[[Path], object], number: int, pattern: str = "*", seed: int = 0, leak: int = 0
) -> Outcome:
    """Damage one file of a folder after another and read the folder each time; the files are put back at the end.

    Args:
        read: is given the folder, and reads everything in it as the project does. It may raise UserError, nothing else.
        number: of mutants.
        pattern: the files (at any depth) to damage.
        leak: bytes that a library is known to leave behind for each mutant.

    Raises:
        AssertionError: naming the mutant that raised something else, hung, or took too much memory.
    """
    whole = {path: path.read_bytes() for path in sorted(folder.rglob(pattern)) if path.is_file()}
    assert whole, f"no {pattern} in {folder}"
    read(folder)
    num_refused, before = 0, 0
    for i in range(number):
        path = sorted(whole)[i % len(whole)]
        rng = np.random.default_rng((seed, i))
        path.write_bytes(mutant(path.suffix, whole[path], rng))
        os.utime(path, ns=(i, i))  # the clock of a file system is slow, and caches go by the time of a change
        try:
            with bounded():
                read(folder)
        except UserError:
            num_refused += 1
        except (Exception, Hang) as error:
            raise AssertionError(f"mutant {i} of seed {seed}, {path}: {type(error).__name__}: {error}") from error
        finally:
            path.write_bytes(whole[path])
        if i == WARM_UP:
            before = resident_bytes()
    grown = resident_bytes() - before if number > WARM_UP else 0
    assert grown < GROWTH + number * leak, f"{number} mutants left {grown >> 20} MB behind"
    return Outcome(number - num_refused, num_refused)


@contextmanager
def bounded(seconds: float = SECONDS, num_bytes: int = ADDRESS_SPACE) -> Iterator[None]:
    """Raise Hang after some seconds, and MemoryError where the block takes more memory than this.

    A library that loops outside Python cannot be interrupted: it ends the process.
    """

    def hang(*_: object) -> None:
        raise Hang(f"longer than {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, hang)
    resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + num_bytes, limits[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    faulthandler.dump_traceback_later(PATIENCE * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def resident_bytes() -> int:
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


# ---- mutants


def mutant(suffix: str, content: bytes, rng: np.random.Generator) -> bytes:
    """Damage content: half of the JSON and zip files within their form, everything else byte by byte."""
    if rng.random() < 0.6:
        if suffix in (".json", ".jsonl"):
            return damaged_json(content, rng)
        if suffix == ".npz":
            return damaged_zip(content, rng)
    return damaged_bytes(content, rng)


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four damages: flipped bits, odd bytes, size fields, texts, cuts, insertions; most where headers are."""
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not damaged:
            break
        place = _place(len(damaged), rng)
        match rng.integers(8):
            case 0:
                damaged[place] ^= 1 << int(rng.integers(8))
            case 1:
                damaged[place] = int(rng.choice(ODD_BYTES))
            case 2:
                width, number = int(rng.choice([2, 4, 8])), NUMBERS[rng.integers(len(NUMBERS))]
                damaged[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
            case 3:
                text = ODD_TEXTS[rng.integers(len(ODD_TEXTS))]
                damaged[place : place + len(text)] = text
            case 4:
                del damaged[place:]
            case 5:
                damaged[place:place] = rng.bytes(int(rng.integers(1, 20)))
            case 6:
                del damaged[place : place + int(rng.integers(1, 20))]
            case _:
                damaged = _with_other_number(damaged, place)
    return bytes(damaged)


def _place(length: int, rng: np.random.Generator) -> int:
    """Anywhere, or near either end."""
    place = int(rng.integers(min(length, 256) if rng.random() < 0.6 else length))
    return length - 1 - place if rng.random() < 0.4 else place


def _with_other_number(content: bytearray, place: int) -> bytearray:
    """Let the next decimal number after a place grow far."""
    for start in range(place, min(place + 200, len(content))):
        if chr(content[start]).isdecimal() and content[start] < 128:
            return content[:start] + b"99999999999" + content[start:]
    return content


def damaged_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, remove or rename one value of a JSON text, or of one line of a text of JSON lines."""
    lines = content.decode().splitlines()
    try:
        values = [json.loads(content)]
    except ValueError:
        values = [json.loads(line) for line in lines if line.strip()]
    chosen = int(rng.integers(len(values)))
    places = list(_json_places(values[chosen]))
    if not places or rng.random() < 0.03:
        values[chosen] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    else:
        parent, key = places[rng.integers(len(places))]
        match rng.integers(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[f"{key}x"] = parent.pop(key)
            case _:
                parent[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return "\n".join(map(json.dumps, values)).encode()


def _json_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with a key or number in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _json_places(value[key])


def damaged_zip(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage one member of a zip file and pack it again, so that checksums and directory fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen = int(rng.integers(len(members)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for i, (info, values) in enumerate(members):
            damaged = damaged_bytes(values, rng) if i == chosen else values
            archive.writestr(info.filename, damaged, compress_type=info.compress_type)
    return packed.getvalue()
