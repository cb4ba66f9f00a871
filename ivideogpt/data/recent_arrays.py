"""LRU cache of arrays, limited in bytes. Knows nothing of their content."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray


class RecentArrays:
    """LRU cache of arrays by key. Its content is not pickled into workers."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._arrays: OrderedDict[Any, NDArray[Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type[RecentArrays], tuple[int]]:
        return type(self), (self.max_bytes,)

    def get(self, key: Any) -> NDArray[Any] | None:
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def put(self, key: Any, array: NDArray[Any]) -> None:
        """Store an array under this key, and drop the least recently used ones."""
        before = self._arrays.pop(key, None)
        self._arrays[key] = array
        self.num_bytes += array.nbytes - (0 if before is None else before.nbytes)
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._arrays.popitem(last=False)[1].nbytes
