"""Resident sets: of this process, what it holds and held at most; of another and its children
(Linux, see proc(5))."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SAMPLE = 0.02  # seconds between looks at the processes


def begin() -> int:
    """Bytes held now; the high-water mark begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _read("VmRSS")


def peak() -> int:
    """Bytes held at most since `begin`."""
    return _read("VmHWM")


def watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for ``process``; bytes that it and all its descendants held at most at a time.

    The sum of their resident sets, so that pages which they share (a fork's, mapped files') count
    for each of them.
    """
    most = 0
    while True:
        most = max(most, sum(_resident(pid) for pid in _descendants(process.pid)))
        try:
            process.wait(_SAMPLE)
            return most
        except subprocess.TimeoutExpired:
            continue


def _descendants(pid: int) -> list[int]:
    """``pid`` and its children, theirs and so on."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:  # ended meanwhile
            continue
    return found


def _resident(pid: int) -> int:
    try:
        return _read("VmRSS", str(pid))
    except (OSError, StopIteration):  # ended meanwhile
        return 0


def _read(field: str, pid: str = "self") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
