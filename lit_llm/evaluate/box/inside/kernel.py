"""System calls of Linux that Python's standard library does not have.

The numbers are those of the kernel's arch/x86/entry/syscalls/syscall_64.tbl and of
include/uapi/asm-generic/unistd.h (aarch64). Calls since Linux 5.1 have the same number on both.
"""

from __future__ import annotations

import ctypes
import os
import platform

MACHINES = ("x86_64", "aarch64")
NUMBERS = {
    "capset": (126, 91),
    "mount": (165, 40),
    "pivot_root": (155, 41),
    "prctl": (157, 167),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
"""Name -> number on each of `MACHINES`."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 38, 9
_CAPABILITY_VERSION_3 = 0x20080522


def machine() -> int:
    """Index of this processor in `MACHINES`.

    Raises:
        OSError: another processor, whose system calls have other numbers.
    """
    try:
        return MACHINES.index(platform.machine())
    except ValueError:
        raise OSError(f"no table of system calls for {platform.machine()}") from None


def call(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call of `NUMBERS`.

    Args:
        name: the call.
        arguments: integers, bytes (passed by address), None for a null pointer.

    Raises:
        OSError: with the kernel's error number.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = libc.syscall(ctypes.c_long(NUMBERS[name][machine()]), *passed)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def drop_capabilities() -> None:
    """Give up all capabilities of this process, and every way to get one."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    call("capset", header, bytes(24))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
