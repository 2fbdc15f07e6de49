"""Exceptions that do not mean a bug in lit_llm, and checks of paths that raise them.

- `UserError`: a mistake that the user can correct
- `Preempted`: a run that SIGTERM ended and that can be resumed
- `PeerLost`: another process of the run failed
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a config, a file or the set-up of a machine.

    The message is one line. It names the key or the file, and says how to correct the mistake. The
    command line prints the message and exits with status 2, without a traceback. In a library it is
    an ordinary ``ValueError``.
    """


@contextmanager
def settings_called(names: Mapping[str, str]) -> Iterator[None]:
    """Translate setting names in error messages to the names that the running verb uses.

    Args:
        names: name of a setting in messages -> its name in this verb.

    Raises:
        UserError: an error from the ``with`` block, with the names replaced.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for name, called in names.items():
            text = text.replace(name, called)
        raise UserError(text) from error.__cause__


class Preempted(Exception):
    """SIGTERM arrived, and the optimizer step in progress was finished and saved.

    The command line exits with `Preempted.status`, 75 ("temporary failure, try again" in
    sysexits.h), so that a scheduler can requeue the job. The same command with ``--ckpt_path last``
    resumes the run.
    """

    status = 75


class PeerLost(Exception):
    """Another process of the run ended, so a collective operation failed.

    The other process printed the reason. The exit status is 1.
    """


# Errors of a path: the disk is full or read-only, the name is too long, a parent is not a folder,
# or a link has no target.
_PATH_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EFBIG,
)


_UNKNOWN_PATH = "a file, or what the output goes to"


def told_of_a_path(error: OSError) -> str | None:
    """Return a one-line message for a path error that the user can correct, else None.

    None means that the error may be a bug in lit_llm.
    """
    if error.errno not in _PATH_ERRORS:
        return None
    path = str(error.filename) if isinstance(error.filename, str | os.PathLike) else None
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path)[:60]}...: the name is too long for a file system; shorten it"
    if error.errno == errno.EFBIG:
        return f"{path or _UNKNOWN_PATH}: {more_room()}"
    if path and (said := _broken_link(path)):
        return said
    if error.errno == errno.EEXIST:
        return f"{path}: exists and is not a folder; name another path or move it"
    return f"{path or _UNKNOWN_PATH}: {error.strerror}"


_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
)
# torch's zip writer and safetensors have their own exception types for a full disk.
_DISK_MESSAGES = (
    "No space left",
    "file write failed",
    "unexpected pos",
    "Disk quota",
    "too large",
)


def is_of_the_disk(error: BaseException) -> bool:
    """Whether ``error``, raised while a file was written, comes from the disk and is not a bug."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return any(words in str(error) for words in _DISK_MESSAGES)


def more_room() -> str:
    """Say what to do when a file cannot grow.

    The disk is full, or the shell limits the size of files (``ulimit -f``).
    """
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return "free some disk"
    return f"files may have {limit:,} bytes at most here: raise that limit (ulimit -f unlimited)"


def check_folder(setting: str, path: str | os.PathLike[str]) -> None:
    """Raise UserError if ``path`` or one of its parents exists and is not a folder.

    Args:
        setting: name of the setting that holds the path, for the message.
        path: path of the folder. It need not exist.
    """
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{setting}={path}: {folder} is a file, not a folder; name a folder")


def check_no_link_to_nothing(path: str | os.PathLike[str]) -> None:
    """Raise UserError if ``path`` is a link whose target is missing.

    Such a path seems to be free, but nothing can be created there.
    """
    if said := _broken_link(os.fspath(path)):
        raise UserError(said)


def _broken_link(path: str) -> str | None:
    if not os.path.islink(path) or os.path.exists(path):
        return None
    target = os.readlink(path)
    return f"{path}: is a link to {target}, which is not there; create it or remove the link"
