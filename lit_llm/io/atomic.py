"""Atomic writes of files and folders: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_llm.io.locks import acquire, release

_BUILDING = ".corpus-building"


def part_of(target: Path) -> Path:
    """Temporary name under which ``target`` is written."""
    return target.with_name(target.name + ".part")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to ``target`` when the block ends.

    Use it for a single writer. A file that a killed writer left is overwritten. The old ``target``
    survives a killed process. Use `published` if the write must also survive a power cut.
    """
    part = part_of(target)
    try:
        if part.is_dir():
            shutil.rmtree(part)
        yield part
        part.replace(target)
    finally:
        remove(part)


def write_text(target: Path, text: str) -> None:
    """Write a UTF-8 file with ``\\n`` line ends atomically."""
    with replacing(target) as part:
        # File names in other encodings give lone surrogates, which UTF-8 cannot hold. They are
        # replaced, so that the rest of the text is kept.
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Like `replacing`, for several concurrent writers, and synced to disk before the rename."""
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, target)
        sync_names(target.parent)
    finally:
        remove(partial)


def build_folder(target: Path, build: Callable[[Path], None]) -> bool:
    """Build the folder ``target`` atomically unless it exists, in one of several processes.

    Args:
        target: the folder.
        build: fills the empty folder that it is given.

    Returns:
        Whether this process built it.
    """
    if target.is_dir():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with workspace_beside(target) as workspace:
        if target.is_dir():  # another process built it during the wait for the lock
            return False
        build(workspace)
        sync(workspace)
        os.rename(workspace, target)
    return True


@contextmanager
def workspace_beside(output: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``output``, which this process alone uses.

    The folder is removed afterwards unless the caller renamed it. Workspaces of other outputs whose
    lock is free belong to dead processes and are removed too. While another process holds the lock
    this one waits, and says so on stderr.

    Args:
        output: the folder that is being built.
    """
    workspace = output.parent / f".{output.name}{_BUILDING}"
    lock_file = workspace.with_suffix(".lock")
    lock = acquire(lock_file, wait=False)
    if lock is None:
        print(f"waiting for another process that builds {output}", file=sys.stderr, flush=True)
        lock = acquire(lock_file, wait=True)
    assert lock is not None
    try:
        for other in output.parent.glob(f".*{_BUILDING}"):
            other_file = other.with_suffix(".lock")
            if other != workspace and (other_lock := acquire(other_file, wait=False)) is not None:
                shutil.rmtree(other, ignore_errors=True)
                release(other_file, other_lock)
        shutil.rmtree(workspace, ignore_errors=True)
        workspace.mkdir()
        try:
            yield workspace
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    finally:
        release(lock_file, lock)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content. A missing path is ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder with its content, to disk.

    Without it, a power cut could leave a final name with missing data.
    """
    if path.is_dir():
        for parent, _, names in os.walk(path):
            for name in names:
                _fsync(os.path.join(parent, name))
            _fsync(parent)
    else:
        _fsync(path)


def sync_names(folder: Path) -> None:
    """Flush a folder's list of file names to disk."""
    _fsync(folder)


def _fsync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
