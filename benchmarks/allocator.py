"""Keeps freed memory in the process, so that nobody's time is that of the operating system handing out fresh pages.

glibc gives large blocks back to the system when they are freed and gets zeroed pages, one fault each, for the next:
an op that returns a fresh tensor then takes several times as long as its work. Here large blocks come from the heap and
the heap is never trimmed, for ours and for every peer. Page faults are counted per call all the same and shown.
"""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks; returns whether it agreed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 64 << 20)])


def release() -> None:
    """Gives freed memory back all the same, between two rows: what one row needs must not add up over all."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
