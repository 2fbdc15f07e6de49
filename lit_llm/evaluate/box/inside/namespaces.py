"""A root folder, network and processes of one's own (namespaces(7), pivot_root(2))."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .kernel import call

WORK = "/work"
"""The writable folder in the new root."""

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID = 1, 2
_NOBODY = 65534


def enter(folder: str, readable: Sequence[str], disk_bytes: int) -> None:
    """Move this process into namespaces of its own; its next child is the first of a PID namespace.

    The new root has the readable paths, which cannot be written, and `WORK`, a file system in
    memory. It has neither /proc nor a network. Nothing is written to the host's disk.

    Args:
        folder: an empty folder of the host, where the new root is mounted.
        readable: absolute paths. None may lie inside another one.
        disk_bytes: size of `WORK`.

    Raises:
        OSError: the kernel does not have or permit it.
    """
    user, group = os.geteuid(), os.getegid()
    call("unshare", _NEWUSER | _NEWNS | _NEWNET | _NEWIPC | _NEWUTS | _NEWPID)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{_NOBODY} {group} 1")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in readable:
        place = folder + path
        if os.path.isdir(path):
            os.makedirs(place)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _write(place, "")
        _mount(path, place, None, _MS_BIND | _MS_REC)
    os.mkdir(folder + WORK)
    attributes = struct.pack("=QQQQ", _ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    call("mount_setattr", _AT_FDCWD, os.fsencode(folder), _AT_RECURSIVE, attributes, 32)
    options = f"size={disk_bytes},nr_inodes=4096,mode=700"
    _mount("tmpfs", folder + WORK, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    # The old root is stacked under the new one, and then taken away.
    os.chdir(folder)
    call("pivot_root", b".", b".")
    call("umount2", b".", _MNT_DETACH)
    os.chdir(WORK)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    named = None if kind is None else kind.encode()
    call("mount", os.fsencode(source), os.fsencode(target), named, flags, options.encode())


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
