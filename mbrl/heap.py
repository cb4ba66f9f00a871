"""Settings of this process's memory allocator."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Use freed memory again instead of giving it back to the system: for commands to call before anything else.

    The buffers of a CPU update, some tens of megabytes each, would otherwise be fetched anew and zeroed page by page
    every time, which is a quarter of an update of DrQ-v2. Does nothing without GNU's C library.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
