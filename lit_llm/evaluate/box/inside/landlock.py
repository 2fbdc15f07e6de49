"""Landlock: which files this process can open (docs.kernel.org/userspace-api/landlock.html)."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .kernel import call

_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
# Number of file rights that each version of the interface knows
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_REMOVE_FILE, _MAKE_REG = 1 << 5, 1 << 8
_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE
_FOLDER = _FILE | _READ_DIR | _REMOVE_FILE | _MAKE_REG


def version() -> int:
    """Version of the kernel's Landlock interface.

    Raises:
        OSError: the kernel has none, or does not permit it.
    """
    return call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Take from this process every file but these, for ever. It must not have capabilities to gain.

    Later versions of the interface also take away TCP (4), abstract Unix sockets and signals to
    processes outside (6). A second call makes a domain inside the first one.

    Args:
        readable: files and folders that can be read.
        writable: files and folders that can be read and written. A folder can get files, and
            nothing else.

    Raises:
        OSError: no Landlock, or a path that does not exist.
    """
    abi = version()
    files = (1 << _FILE_RIGHTS[min(abi, max(_FILE_RIGHTS))]) - 1
    network = 0b11 if abi >= 4 else 0
    scoped = 0b11 if abi >= 6 else 0
    # A kernel that knows fewer fields accepts the longer struct if they are zero.
    rules = call("landlock_create_ruleset", struct.pack("=QQQ", files, network, scoped), 24, 0)
    try:
        for paths, rights in (
            (readable, _READ_FILE | _READ_DIR),
            (writable, _FOLDER),
        ):
            for path in paths:
                _allow(rules, path, rights & files)
        call("landlock_restrict_self", rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _FILE
        call("landlock_add_rule", rules, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, folder), 0)
    finally:
        os.close(folder)
