"""Files and folders that appear whole or not at all: they are written under another name, then
renamed."""

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
    """The name under which ``target`` is written."""
    return target.with_name(target.name + ".part")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A name to write a file or folder under, which takes ``target``'s place when the block ends.

    For one writer at a time. What a killed one left is overwritten. A process that is killed loses
    nothing; for power cuts take `published`.
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
    """Write a file of UTF-8 with ``\\n`` at the ends of lines, whole or not at all."""
    with replacing(target) as part:
        # A lone surrogate, as file names of other encodings have, is no reason to lose the rest.
        part.write_text(text, encoding="utf-8", errors="replace", newline="\n")


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """As `replacing`, for any number of writers at once, and on the disk before it has its name."""
    partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, target)
        sync_names(target.parent)
    finally:
        remove(partial)


def build_folder(target: Path, build: Callable[[Path], None]) -> bool:
    """Have ``build`` fill a folder that becomes ``target``, unless it is there; by one process of
    many.

    Returns:
        Whether this process built it.
    """
    if target.is_dir():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with workspace_beside(target, progress=False) as workspace:
        if target.is_dir():  # another process built it while this one waited
            return False
        build(workspace)
        sync(workspace)
        os.rename(workspace, target)
    return True


@contextmanager
def workspace_beside(output: Path, progress: bool) -> Iterator[Path]:
    """An empty hidden folder beside ``output``, held by this process alone.

    It is gone afterwards unless it was renamed. A folder whose lock is free belongs to a process
    that is dead, and is removed.

    Args:
        progress: say on stderr that another process is waited for.
    """
    workspace = output.parent / f".{output.name}{_BUILDING}"
    lock_file = workspace.with_suffix(".lock")
    lock = acquire(lock_file, wait=False)
    if lock is None:
        if progress:
            print(
                f"corpus: waiting for another process that builds {output}",
                file=sys.stderr,
                flush=True,
            )
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
    """Remove a file, a folder with all in it, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Onto the disk, with all that is in it: a power cut must not leave a trusted name over missing
    data."""
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
