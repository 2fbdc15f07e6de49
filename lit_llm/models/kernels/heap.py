"""Keep freed memory in the process on a CPU, by the settings of glibc's malloc."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_SAID_OTHERWISE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
LARGEST_KEPT = 32 * 2**20
"""Bytes of a block from which glibc maps it separately and returns it when freed.

glibc accepts no higher threshold.
"""


def keep_freed_memory() -> None:
    """Keep the memory that a training step frees for the next step.

    Without this, blocks go back to the system, and a page that comes back is zeroed at its first
    use. With 5M parameters that is 10 to 30 thousand pages a step, 4 to 6% of its time
    (docs/decisions.md, "A training step on a CPU"). Only blocks of less than `LARGEST_KEPT` bytes
    are kept. The setting holds for the whole process. It has no effect if the C library is not
    glibc or if the environment already sets these thresholds.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SAID_OTHERWISE):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
