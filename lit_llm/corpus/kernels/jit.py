"""The `kernel` decorator: numba's `njit` without the GIL, compiled once per kernel version."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from lit_llm.io.cache import default_cache_dir

Kernel = TypeVar("Kernel", bound=Callable)


def kernel(function: Kernel) -> Kernel:
    """Compile ``function`` at its first call, or load it from ``kernels/`` in the cache folder.

    numba's default, ``__pycache__`` beside the source, is read-only or shared in many
    installations. If the cache folder cannot be written either, every process compiles anew.
    """
    folder, config = cache_folder(), cast(Any, numba.config)
    previous = config.CACHE_DIR
    # numba reads the setting when a function is decorated. It is restored afterwards, so that other
    # users of numba in this process keep their setting.
    config.CACHE_DIR = str(folder or "")
    try:
        return cast(Any, numba.njit(cache=folder is not None, nogil=True)(function))
    finally:
        config.CACHE_DIR = previous


@functools.cache
def cache_folder() -> Path | None:
    """The folder of this version's compiled kernels; None if it cannot be written.

    The folder's name is a digest of the source of all kernels. numba itself compares only the file
    that a kernel is in. It would run a kernel that was compiled with an older version of a callee
    from another file.
    """
    digest = hashlib.sha256()
    for file in kernel_files():
        digest.update(file.read_bytes())
    try:
        folder = default_cache_dir().expanduser() / "kernels" / digest.hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    # RuntimeError: the home folder is unknown, as for an arbitrary user of a container.
    except (OSError, RuntimeError):
        return None
    return folder


def kernel_files() -> list[Path]:
    """The files of this folder: all kernels, and the constants compiled into them."""
    return sorted(Path(__file__).parent.glob("*.py"))
