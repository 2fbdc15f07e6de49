"""Locks between processes of one machine. A lock dies with its process.

filelock, which torch brings along, was compared and not taken: it leaves a file beside every folder
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
    """Hold ``folder`` alone among the processes that ask, without a file of its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def acquire(lock_file: Path, wait: bool) -> IO[str] | None:
    """The open, locked file; None if another process has it and ``wait`` is False."""
    while True:
        lock = lock_file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.close()
            return None
        # The holder removes the file when it is done. Then the file that was waited for has lost
        # its name, and the lock is another file's.
        try:
            if os.path.samestat(os.fstat(lock.fileno()), lock_file.stat()):
                return lock
        except FileNotFoundError:
            pass
        lock.close()


def release(lock_file: Path, lock: IO[str]) -> None:
    """Remove the file and give the lock up."""
    lock_file.unlink(missing_ok=True)
    lock.close()
