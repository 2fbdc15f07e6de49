"""numba's `njit` as the corpus kernels use it: without the GIL, and compiled once for each version
of the kernels."""

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
    """``function`` compiled at its first call, or read from ``kernels/`` in the cache folder if it
    was compiled before.

    numba's own place, ``__pycache__`` beside the source, is read-only or shared in many
    installations. Where the cache folder cannot be written either, every process compiles for
    itself.
    """
    folder, config = cache_folder(), cast(Any, numba.config)
    theirs = config.CACHE_DIR
    # Read when a function is decorated, so other users of numba in this process keep their setting.
    config.CACHE_DIR = str(folder or "")
    try:
        return cast(Any, numba.njit(cache=folder is not None, nogil=True)(function))
    finally:
        config.CACHE_DIR = theirs


@functools.cache
def cache_folder() -> Path | None:
    """The folder of this version's compiled kernels; None if it cannot be written.

    It is named by the source of all of them: numba compares only the file that a kernel is in, and
        would run a kernel
    compiled with an older version of one that it calls from another file.
    """
    digest = hashlib.sha256()
    for file in kernel_files():
        digest.update(file.read_bytes())
    try:
        folder = default_cache_dir().expanduser() / "kernels" / digest.hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (
        OSError,
        RuntimeError,
    ):  # RuntimeError: no home folder is known, as for a container's arbitrary user
        return None
    return folder


def kernel_files() -> list[Path]:
    """The files of this folder: all kernels, and the constants that are compiled into them."""
    return sorted(Path(__file__).parent.glob("*.py"))
