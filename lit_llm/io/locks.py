"""Locks between processes of one machine. A lock ends with its process.

filelock, which torch depends on, was compared and not used: it leaves a file beside every folder
that was ever locked, and it cannot lock a folder itself, as `lock_folder` does for corpora.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock ``folder`` against other processes that call this, without a lock file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def acquire(lock_file: Path, wait: bool) -> IO[str] | None:
    """Return the open, locked file, or None if another process holds it and ``wait`` is False."""
    while True:
        lock = lock_file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.close()
            return None
        # The holder removes the file on release. Then this process holds a lock on a file without a
        # name, while another process may lock a new file of that name. In this case try again.
        try:
            if os.path.samestat(os.fstat(lock.fileno()), lock_file.stat()):
                return lock
        except FileNotFoundError:
            pass
        lock.close()


def release(lock_file: Path, lock: IO[str]) -> None:
    """Remove the lock file and release the lock."""
    lock_file.unlink(missing_ok=True)
    lock.close()
