"""What is taken from a process before it runs foreign code, in the order in which it must happen.

`Features` says what this kernel has. A feature that is said to be there and fails is an error: a
program never runs with less than what was printed.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass

from . import landlock, namespaces, seccomp
from .kernel import die_with_parent, drop_capabilities

_LIBRARIES = ("/lib64", "/usr/lib64", "/usr/share/zoneinfo")
_OPEN_FILES = 64


@dataclass(frozen=True)
class Features:
    """What the kernel offers beside limits. Landlock is its interface's version, 0 without it."""

    namespaces: bool = False
    landlock: int = 0
    seccomp: bool = False


@dataclass(frozen=True)
class Limits:
    """Most that one program may use.

    Args:
        seconds: wall time from its first statement to the end of its tests. Processor time has the
            same limit, in whole seconds.
        memory_bytes: address space.
        disk_bytes: all files of its folder together, and the size of each.
        output_bytes: what it prints.
    """

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20
    output_bytes: int = 1 << 20


def interpreter_paths() -> list[str]:
    """Folders with the standard library and the shared libraries that it needs; none in another."""
    library = os.path.dirname(os.__file__)
    multiarch = getattr(sys.implementation, "_multiarch", "")
    found = {library, "/dev/null", "/dev/urandom"}
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in maps}
    found |= {os.path.dirname(path) for path in mapped if path[:1] == "/" and ".so" in path}
    found |= {path for path in _LIBRARIES if os.path.isdir(path)}
    if multiarch:
        for path in (f"/lib/{multiarch}", f"/usr/lib/{multiarch}"):
            found |= {path} if os.path.isdir(path) else set()
    return [
        path for path in sorted(found) if not any(path.startswith(f"{other}/") for other in found)
    ]


def enter_box(features: Features, limits: Limits, folder: str) -> Callable[[], None]:
    """Confine this process and its children to the interpreter, ``folder`` and the limits.

    It still can fork, and make any system call.

    Returns:
        What confines a child of this process once more, so that it cannot signal its parent.

    Raises:
        OSError: a feature that fails.
    """

    def restrict() -> None:
        if features.landlock:
            landlock.restrict(readable, [work, "/dev/null"])

    confined = features != Features()
    if confined:
        die_with_parent()
        readable = interpreter_paths()
    work = folder
    if features.namespaces:
        namespaces.enter(folder, readable, limits.disk_bytes)
        work = namespaces.WORK
    else:
        os.chdir(folder)
    if confined:
        drop_capabilities()
    restrict()
    seconds = int(limits.seconds) + 1
    _limit("AS", limits.memory_bytes)
    _limit("CPU", seconds)
    _limit("FSIZE", limits.disk_bytes)
    _limit("NOFILE", _OPEN_FILES)
    _limit("CORE", 0)
    _limit("MSGQUEUE", 0)
    _limit("MEMLOCK", 0)
    return restrict


def one_process(features: Features, child: int | None = None) -> None:
    """Take from this process its right to another one, and all calls that it does not need.

    Args:
        features: of this kernel.
        child: a process that it can end and wait for.

    Raises:
        OSError: a feature that fails.
    """
    _limit("NPROC", 0)
    if features.seccomp:
        seccomp.install(child)


def keep_files(*kept: int) -> None:
    """Close all files but the standard three and these."""
    for file in range(3, _OPEN_FILES):
        if file not in kept:
            try:
                os.close(file)
            except OSError:
                continue  # was not open


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, f"RLIMIT_{name}", None)
    if kind is None:
        return  # another system than Linux
    try:
        resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY and hard < value:
            return  # lower already
        if sys.platform == "linux":
            raise
