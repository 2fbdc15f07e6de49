"""A folder appears whole or not at all: it is built under a hidden name, by one process, and then renamed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_SUFFIX = ".corpus-building"


@contextmanager
def workspace_beside(output: Path, progress: bool) -> Iterator[Path]:
    """An empty hidden folder beside ``output``, held by this process alone and gone afterwards unless renamed.

    The lock dies with the process, so a folder whose lock is free belongs to a dead build and is swept away.
    """
    workspace = output.parent / f".{output.name}{_SUFFIX}"
    lock_file = workspace.with_suffix(".lock")
    lock = _acquire(lock_file, wait=False)
    if lock is None:
        if progress:
            print(
                f"corpus: waiting for another process that builds {output}",
                file=sys.stderr,
                flush=True,
            )
        lock = _acquire(lock_file, wait=True)
    assert lock is not None
    try:
        for other in output.parent.glob(f".*{_SUFFIX}"):
            other_file = other.with_suffix(".lock")
            if other != workspace and (other_lock := _acquire(other_file, wait=False)) is not None:
                shutil.rmtree(other, ignore_errors=True)
                _release(other_file, other_lock)
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir()
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    finally:
        _release(lock_file, lock)


def _acquire(lock_file: Path, wait: bool) -> IO[str] | None:
    """The open, locked file; None if another process has it and ``wait`` is False."""
    while True:
        lock = lock_file.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.close()
            return None
        try:
            if os.path.samestat(os.fstat(lock.fileno()), lock_file.stat()):
                return lock
        except FileNotFoundError:
            pass
        lock.close()  # the holder removes the file when done: what was waited for has lost its name, so try the new one


def _release(lock_file: Path, lock: IO[str]) -> None:
    lock_file.unlink(missing_ok=True)
    lock.close()


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under, which gets its real name when all of it is on disk."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync_names(path.parent)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Onto the disk, with all that is in it: a power cut must not leave a trusted name over missing data."""
    if path.is_dir():
        for parent, _, names in os.walk(path):
            for name in names:
                _fsync(os.path.join(parent, name))
            _fsync(parent)
    else:
        _fsync(path)


def sync_names(folder: Path) -> None:
    """A folder's own list of names onto the disk."""
    _fsync(folder)


def _fsync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
