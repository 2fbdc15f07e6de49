"""Number of cores this process may use, and how its OpenMP threads wait for each other.

Importing this module does not import torch: OpenMP reads its environment once, when torch loads it.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path

SPINS = 3000
"""How often a waiting thread of libgomp checks again before it sleeps: 60 microseconds on an EPYC.

libgomp's default is 300,000. A training step waits hundreds of times, and each wait is short while
no other program runs. But if another program occupies the core of the thread that is waited for,
long spinning uses up the time that this thread needs (docs/decisions.md, "A busy machine").
"""
_BLOCKTIME = 1
"""Milliseconds that a thread of Intel's or LLVM's OpenMP spins before it sleeps; default 200."""
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_count_is_chosen = any(name in os.environ for name in _COUNTS)  # Lightning sets it later
waits_as_set = False
"""Whether OpenMP has read, or will read, the settings of `wait_briefly` or of the user."""


def wait_briefly() -> None:
    """Let waiting OpenMP threads sleep soon, unless the environment already sets how they wait.

    The setting applies to processes that this one starts, and to this one unless torch is loaded
    already.
    """
    global waits_as_set
    if any(name in os.environ for name in _WAITING):
        waits_as_set = True
        return
    waits_as_set = "torch" not in sys.modules
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    os.environ["KMP_BLOCKTIME"] = str(_BLOCKTIME)


def usable_cores() -> int:
    """Number of cores that this process may use at a time.

    These are the cores that the process is bound to, limited by its control groups' quota.
    """
    return max(1, math.ceil(min(len(_bound_to()), _quota())))


def limit_threads(divide: bool = False) -> None:
    """Limit torch to as many threads as there are cores for this process.

    torch starts a thread for each core that the process is bound to. That is too many under a
    container's quota. It is also too many if several processes of one run are bound to the same
    cores: Lightning divides the cores, but not in the processes that a `ModelParallelStrategy`
    starts, and a scheduler may leave its processes unbound. The number is never raised. It does not
    change if OMP_NUM_THREADS was set before lit_llm was imported.

    Args:
        divide: divide the cores among the processes of torch.distributed that are bound to them.
            All these processes must then call this function.
    """
    import torch
    import torch.distributed as dist

    mine = platform.node(), _bound_to()
    processes = [mine]
    if divide and dist.is_available() and dist.is_initialized():
        processes *= dist.get_world_size()
        dist.all_gather_object(processes, mine)
    if _count_is_chosen:
        return
    # A core that n processes of this machine are bound to counts as 1/n. The quota is divided by
    # the number of processes.
    here = [cores for machine, cores in processes if machine == mine[0]]
    share = sum(1 / sum(core in cores for cores in here) for core in mine[1])
    threads = max(1, int(min(share, _quota() / len(here)) + 1e-6))
    if threads < torch.get_num_threads():
        torch.set_num_threads(threads)


def _bound_to() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quota(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> float:
    """Number of cores that this process's control groups allow; infinite without a limit.

    See https://docs.kernel.org/admin-guide/cgroup-v2.html, and scheduler/sched-bwc.html there for
    version 1.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's. Then only the first folder exists, and it is
        # the container's own.
        folder = mounted / "cpu" if controllers else mounted
        for part in ("", *path.split("/")):
            folder = folder / part
            quota = min(quota, _limit(folder))
    return quota


def _limit(folder: Path) -> float:
    """Return the limit of one control group, of version 2 or 1."""
    try:
        if (folder / "cpu.max").exists():
            time, period = (folder / "cpu.max").read_text().split()
        else:
            time = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
    except OSError:
        return math.inf
    return math.inf if time.strip() in ("max", "-1") else int(time) / int(period)
