"""What an interrupted evaluation had found, so that the same command goes on. Knows arrays and files."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.evaluation.clip_scores import Tally
from ivideogpt.files import atomic_file

FILE = "unfinished.npz"
FACTS = "facts"

logger = logging.getLogger(__name__)


class Unfinished:
    """Sums over the clips scored so far, in a folder; valid for a command that is about the same things.

    Args:
        facts: what these are; JSON can hold them.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self._facts = json.dumps(facts, sort_keys=True)

    def read(self) -> Tally | None:
        """None if nothing was begun here, or something else."""
        try:
            with np.load(self._path, allow_pickle=False) as file:
                if str(file[FACTS]) != self._facts:
                    logger.warning("%s is of another evaluation: beginning anew", self._path)
                    return None
                return Tally.from_arrays({name: file[name] for name in file.files if name != FACTS})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): beginning anew", self._path, error)
            return None

    def write(self, tally: Tally) -> None:
        arrays: dict[str, Any] = {FACTS: np.array(self._facts), **tally.arrays()}
        with atomic_file(self._path) as file:
            np.savez(file, **arrays)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
