"""A real SLURM of two nodes on this machine, in a folder of its own (slurm-wlm and munge)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

# Node names are addresses: ranks look the first node up by its name, and /etc/hosts stays as it is.
NODES = ("127.0.0.1", "127.0.0.2")

# cred_expire: SLURM holds a requeued job back until the credential of its last start has expired,
# 120 s by default.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdSpoolDir={root}/spool_%n
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd_%n.pid
SlurmUser=root
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd_%n.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
FirstJobId={first_job}
SchedulerParameters=sched_interval=2
NodeName=DEFAULT CPUs=2 RealMemory=8000 Gres=gpu:2
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# SLURM wants character devices as GPUs and never opens them.
GRES = "".join(
    f"NodeName={node} Name=gpu File=/dev/{f}\n" for node in NODES for f in ("null", "zero")
)


def missing() -> str | None:
    """Why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a SLURM of its own is started by root"
    lost = [name for name in PROGRAMS if _program(name) is None]
    return f"not installed: {', '.join(lost)} (apt-get install slurm-wlm munge)" if lost else None


class Cluster:
    """Daemons, started by ``with``.

    They use no file outside of ``root`` and no fixed port, so several clusters may run at once.
    """

    def __init__(self, root: Path):
        self.root = root
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.env["SLURM_CONF"] = str(root / "slurm.conf")

    def __enter__(self) -> Cluster:
        (self.root / "state").mkdir(parents=True)
        ports, first_job = _free_ports(3), 1000 + os.getpid() % 8000
        conf = CONF.format(root=self.root, host=socket.gethostname().split(".")[0], ports=ports,
                           nodes=NODES, first_job=first_job)  # fmt: skip
        (self.root / "slurm.conf").write_text(conf)
        (self.root / "gres.conf").write_text(GRES)
        (self.root / "munge.key").write_bytes(os.urandom(128))
        (self.root / "munge.key").chmod(0o400)
        files = [
            f"--{kind}-file={self.root}/munge.{kind}" for kind in ("key", "pid", "log", "seed")
        ]
        self._daemon("munged", "--force", f"--socket={self.root}/munge.socket", *files)
        try:
            wait_for(lambda: (self.root / "munge.pid").exists() or None, "munged", 60)
            self._daemon("slurmctld")
            for node in NODES:
                self._daemon("slurmd", "-N", node)
            wait_for(lambda: self.states() == {"idle"} or None, "two idle nodes", 60)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the jobs, then the daemons."""
        try:
            self.clear()
        finally:
            self._stop()

    def _stop(self) -> None:
        """End the daemons that this object started, by their pid files."""
        for name in (*(f"slurmd_{node}" for node in NODES), "slurmctld", "munge"):
            file = self.root / f"{name}.pid"
            if file.exists():
                pid = int(file.read_text())
                os.kill(pid, 15)
                wait_for(
                    lambda pid=pid: not Path(f"/proc/{pid}").exists() or None, f"{name}'s end", 60
                )

    def _daemon(self, name: str, *options: str) -> None:
        done = subprocess.run(
            [str(_program(name)), *options],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"

    def run(self, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env or self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def clear(self) -> None:
        """End all jobs at once."""
        for kill in (["--signal=KILL", "--full"], []):
            subprocess.run(["scancel", "--me", *kill], env=self.env, check=False)
        wait_for(lambda: not self.run("squeue", "--noheader") or None, "an empty queue", 60)

    def states(self) -> set[str]:
        """Of the nodes."""
        done = subprocess.run(
            ["sinfo", "-hNo", "%T"], env=self.env, capture_output=True, text=True, check=False
        )
        return set(done.stdout.split())

    def job(self, number: str) -> dict[str, str]:
        """SLURM's account of a job: JobState, ExitCode, Restarts, ..."""
        shown = self.run("scontrol", "show", "job", "--oneliner", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def until(self, number: str, *states: str, bound: float = 300) -> dict[str, str]:
        """The job, once its state is one of ``states``."""

        def look() -> dict[str, str] | None:
            job = self.job(number)
            return job if job["JobState"] in states else None

        return wait_for(look, lambda: f"{states}: {self.job(number)}", bound)


def wait_for(look: Callable[[], T | None], what: str | Callable[[], str], bound: float = 240) -> T:
    """What ``look`` returns, once it is not None; it is asked for ``bound`` seconds."""
    end = time.monotonic() + bound
    while (found := look()) is None:
        if time.monotonic() > end:
            raise AssertionError(
                f"waited {bound:.0f} s for {what if isinstance(what, str) else what()}"
            )
        time.sleep(0.1)
    return found


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
