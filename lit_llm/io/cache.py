"""Where what is made on the way is kept. Imports nothing of the package: everything may use it."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path


def default_cache_dir() -> Path:
    """Where things made on the way are kept: $LIT_LLM_CACHE, or lit_llm in the user's cache folder.

    Without a home folder, or with one that cannot be written to: a folder of the user's under the
    system's temporary one.
    """
    if given := os.environ.get("LIT_LLM_CACHE"):
        return _made(Path(given).expanduser())
    if given := os.environ.get("XDG_CACHE_HOME"):
        return _made(Path(given) / "lit_llm")
    folder = Path.home() / ".cache"
    return folder / "lit_llm" if _writable(folder) else _temporary()


def ensure_home() -> None:
    """Give a process without a home folder (a container's unknown user id) one for its caches.

    Libraries that we import look for one, and for the user's name, and fail.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(_temporary())
        os.environ.setdefault("USER", f"user-{os.getuid()}")
        print(
            f"lit_llm: no home folder: caches go to {os.environ['HOME']}; set HOME to move them",
            file=sys.stderr,
        )


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"lit_llm-{os.getuid()}"


def _writable(folder: Path) -> bool:
    """Whether ``folder`` can be made, or written to if it is there."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return False
    try:  # root may write anywhere, and yet not make a folder in /proc
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _made(folder: Path) -> Path:
    """``folder``, which the user named, made; else an error that says which setting to change."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"no cache can be made here ({error.strerror}); set LIT_LLM_CACHE to another folder"
        raise PermissionError(errno.EACCES, said, str(folder)) from None
    return folder
