"""Exceptions that are no faults of the program: "the user can mend this", "go on later", and "another one's fault"."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a config, a file or a machine's set-up, said in one line that names the key or file and the mend.

    The command line prints the message and exits with status 2, without a traceback; in a library it is an ordinary
    ``ValueError``.
    """


@contextmanager
def settings_called(names: Mapping[str, str]) -> Iterator[None]:
    """Have a mistake found inside name settings as the verb that runs calls them.

    Args:
        names: what messages call a setting -> what this verb calls it.

    Raises:
        UserError: the one from inside, in this verb's words.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        for name, called in names.items():
            text = text.replace(name, called)
        raise UserError(text) from error.__cause__


class Preempted(Exception):
    """SIGTERM came, and the optimizer step it came in has been finished and saved.

    The command line exits with `Preempted.status`, 75: "temporary failure, try again" in sysexits.h, for a scheduler to
    requeue the job on. The same command with ``--ckpt_path last`` goes on.
    """

    status = 75


class PeerLost(Exception):
    """Another process of the run ended, and a collective with it: what it said is the reason. Exit status 1."""


# A disk that is full or forbids writing; a name too long, no folder's, or a link to nothing.
_OF_A_PATH = (
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


_UNNAMED = "a file, or what the output goes to"


def told_of_a_path(error: OSError) -> str | None:
    """One line for a path that the user can mend; None for what may be a fault of the program."""
    if error.errno not in _OF_A_PATH:
        return None
    path = str(error.filename) if isinstance(error.filename, str | os.PathLike) else None
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path)[:60]}...: the name is too long for a file system; shorten it"
    if error.errno == errno.EFBIG:
        return f"{path or _UNNAMED}: {more_room()}"
    if path and (said := _link_to_nothing(path)):
        return said
    if error.errno == errno.EEXIST:
        return f"{path}: is there and is no folder; name another or move it"
    return f"{path or _UNNAMED}: {error.strerror}"


def more_room() -> str:
    """What to do where a file cannot grow: the disk is full, or the shell limits the size of files."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return "free some disk"
    return f"files may have {limit:,} bytes at most here: raise that limit (ulimit -f unlimited)"


def check_folder(setting: str, path: str | os.PathLike[str]) -> None:
    """Raise UserError if ``path``, or what it would lie below, is there and is no folder.

    Args:
        setting: what gives the path, for the message.
        path: of the folder, which need not be there yet.
    """
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"{setting}={path}: {folder} is a file, not a folder; name a folder")


def check_no_link_to_nothing(path: str | os.PathLike[str]) -> None:
    """Raise UserError if ``path`` is a link whose target is missing: it looks free and is not."""
    if said := _link_to_nothing(os.fspath(path)):
        raise UserError(said)


def _link_to_nothing(path: str) -> str | None:
    if not os.path.islink(path) or os.path.exists(path):
        return None
    return f"{path}: is a link to {os.readlink(path)}, which is not there; make or remove it"
