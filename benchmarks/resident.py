"""The resident set of this process: what it holds and what it held at most (Linux, see proc(5))."""

from __future__ import annotations

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
