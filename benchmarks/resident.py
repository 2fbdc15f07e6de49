"""Resident sets: what this process holds and held at most, and what a session does (Linux, see proc(5))."""

from __future__ import annotations

import os
from pathlib import Path


def begin() -> int:
    """Bytes held now; the high-water mark begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _read("VmRSS")


def peak() -> int:
    """Bytes held at most since `begin`."""
    return _read("VmHWM")


def _read(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def of_session(leader: int) -> int:
    """Bytes held now by all processes of the session that ``leader`` began; what they share counts for each."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        if int(fields[3]) == leader:
            pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")
