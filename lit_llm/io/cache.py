"""Default cache directory.

This module imports nothing of the package, so that every module may import it.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from pathlib import Path


def default_cache_dir() -> Path:
    """Default cache directory: $LIT_LLM_CACHE, or lit_llm in the user's cache folder.

    Without a home folder, or if it is not writable, this is a folder of the user below the system's
    temporary directory.
    """
    if given := os.environ.get("LIT_LLM_CACHE"):
        return _create(Path(given).expanduser())
    if given := os.environ.get("XDG_CACHE_HOME"):
        return _create(Path(given) / "lit_llm")
    folder = Path.home() / ".cache"
    return folder / "lit_llm" if _writable(folder) else _temporary()


def ensure_home() -> None:
    """Set HOME for a process that has no home folder, such as an unknown user id in a container.

    Libraries that we import need a home folder and a user name, and fail without them.
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
    """Whether ``folder`` can be created, or is writable if it exists."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return False
    try:  # root has write permission everywhere, but cannot create folders in /proc
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _create(folder: Path) -> Path:
    """Create ``folder``, which the user named; on failure the error names the setting to change."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"no cache can be made here ({error.strerror}); set LIT_LLM_CACHE to another folder"
        raise PermissionError(errno.EACCES, said, str(folder)) from None
    return folder
