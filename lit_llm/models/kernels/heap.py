"""What the C library does with a step's freed memory on a CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_SAID_OTHERWISE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
LARGEST_KEPT = 32 * 2**20
"""Bytes of a block from which glibc maps it apart, and gives it back when freed; it takes no higher
threshold."""


def keep_freed_memory() -> None:
    """Keep what a training step frees for the next step, instead of giving it back to the system;
    blocks of less than `LARGEST_KEPT` bytes.

    A page that comes back is zeroed at its first use: at 5M parameters 10 to 30 thousand of them a
        step, 4 to 6% of its
    time (docs/decisions.md, "A training step on a CPU"). For the whole process. Without effect
    where the C library is not glibc, or where the environment says otherwise.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SAID_OTHERWISE):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
