"""seccomp: the system calls that a program may make. All others answer ENOSYS.

There is no call for a socket, a second process or thread, another program (exec), tracing, mounts,
keys, namespaces, or a signal to somebody else. It is a list of what is allowed, so a call that a
later kernel adds is not allowed either.

Not allowed because Landlock does not restrict them: owner, mode and times of a file by its path.
Not allowed so that whoever removes the folder has an easy time: folders and links in it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping, Sequence

from .kernel import MACHINES, call, machine

ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # Files
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "open": (2, None), "openat": (257, 56),
    "creat": (85, None), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None),
    "pipe2": (293, 59), "flock": (73, 32), "fsync": (74, 82),
    "fdatasync": (75, 83), "truncate": (76, 45), "ftruncate": (77, 46), "fallocate": (285, 47),
    "fadvise64": (221, 223), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "getdents": (78, None), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "unlink": (87, None), "unlinkat": (263, 35), "readlink": (89, None),
    "readlinkat": (267, 78), "umask": (95, 166), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72),
    # Memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216),
    "madvise": (28, 233), "brk": (12, 214), "membarrier": (324, 283),
    # Time and waiting
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None),
    "pause": (34, None), "futex": (202, 98), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    # The process itself
    "exit": (60, 93), "exit_group": (231, 94), "getpid": (39, 172), "gettid": (186, 178),
    "getppid": (110, 173), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "getrusage": (98, 165), "getrlimit": (97, 163),
    "sysinfo": (99, 179), "uname": (63, 160), "getrandom": (318, 278),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "arch_prctl": (158, None), "set_tid_address": (218, 96),
    "set_robust_list": (273, 99), "rseq": (334, 293),
}  # fmt: skip
"""Name -> number on each of `MACHINES`; None where the processor has no such call."""

CHECKED = {
    "tgkill": (234, 131), "prlimit64": (302, 261), "ioctl": (16, 29), "fcntl": (72, 25),
    "kill": (62, 129), "wait4": (61, 260),
}  # fmt: skip
"""Calls of which one argument is checked."""

# Whether a file is a terminal, and the flags that Python sets on new files
_IOCTLS = (0x5401, 0x5421, 0x5450, 0x5451)
# Copies, flags and locks; not the owner of a file, to whom the kernel sends a signal of choice
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_REFUSE = _ERRNO | errno.ENOSYS
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_X32 = 0x40000000  # bit of the calls of x86's third interface
_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def install(child: int | None = None) -> None:
    """Restrict this process, for ever. It must have given up new privileges.

    Args:
        child: a process that it can end and wait for.

    Raises:
        OSError: no seccomp filters here.
    """
    here = machine()
    children = [] if child is None else [child]
    # A signal to itself (abort), and its own limits.
    checked: dict[str, tuple[int, Sequence[int]]] = {
        "tgkill": (0, [os.getpid()]), "prlimit64": (0, [0]), "ioctl": (1, _IOCTLS),
        "fcntl": (1, _FCNTLS), "kill": (0, children), "wait4": (0, children),
    }  # fmt: skip
    plain = [numbers[here] for numbers in ALLOWED.values()]
    load(build(
        here,
        [number for number in plain if number is not None],
        {CHECKED[name][here]: how for name, how in checked.items()},
    ))  # fmt: skip


def build(
    here: int, allowed: Iterable[int], checked: Mapping[int, tuple[int, Iterable[int]]]
) -> list[bytes]:
    """A filter as classic BPF.

    Args:
        here: index in `MACHINES`.
        allowed: numbers of calls.
        checked: number of a call -> index of an argument, and the values allowed there.

    Returns:
        Instructions (struct sock_filter).
    """
    refuse, allow = _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW)
    found = [
        _op(_LOAD, _ARCH), _op(_EQUAL, _AUDIT_ARCH[here], 1, 0), _op(_RETURN, _KILL),
        _op(_LOAD, _NR),
    ]  # fmt: skip
    if MACHINES[here] == "x86_64":
        found += [_op(_AT_LEAST, _X32, 0, 1), refuse]
    for number in allowed:
        found += [_op(_EQUAL, number, 0, 1), allow]
    for number, (argument, values) in checked.items():
        # The low half of the argument: all of these are 32 bits wide.
        tests = [_op(_LOAD, _ARGUMENTS + 8 * argument)]
        for value in values:
            tests += [_op(_EQUAL, value, 0, 1), allow]
        tests.append(refuse)
        found += [_op(_EQUAL, number, 0, len(tests)), *tests]
    return [*found, refuse]


def load(instructions: list[bytes]) -> None:
    """Give a filter to the kernel.

    Raises:
        OSError: no seccomp filters here.
    """
    code = ctypes.create_string_buffer(b"".join(instructions))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(code))
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
