"""Many strings in one buffer. Knows nothing of what they say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class PackedStrings(Sequence[str]):
    """Paths or names, of which there are hundreds of thousands.

    A list of them is copied into every worker page by page, as reading a string writes its reference count.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._buffer[start : self._ends[index]])
