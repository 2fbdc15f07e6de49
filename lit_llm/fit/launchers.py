"""Detection of the launcher that started this process, from environment variables.

A launcher (torchrun, srun, jsrun, or a script of the user) starts one process per device. It sets
environment variables that give each process its rank. The same variables can be left over from
elsewhere: the shell of an interactive SLURM job, an earlier run, or a container image. Lightning
trusts such variables. It then waits for processes that nobody started, or treats this process as a
rank that writes nothing. This module therefore compares the variables with the requested number of
devices and nodes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from lit_llm.errors import UserError

# Process id of a run's first process, for the processes that it starts
FIRST = "LIT_LLM_FIRST_PROCESS"

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS")
_JSRUN = ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE")
_NUMBERS = (*_RANKS, *_SIZES, *_SLURM, *_JSRUN, "MASTER_PORT")
_ALL = (*_NUMBERS, "MASTER_ADDR", "TORCHELASTIC_RUN_ID")
# SLURM's reserved step ids start here: batch scripts, shells of interactive jobs
_SLURMS_OWN_STEPS = 0xFFFF0000


@dataclass(frozen=True)
class Launcher:
    """The launcher that started this process as one of several.

    Attributes:
        name: "torchrun", "srun", "jsrun"; "Lightning" for processes that a run's first process
            started; "a script" for others.
        size: number of processes of the run.
        rank: rank of this process; for "Lightning" never 0.
        variables: the environment variables that show this launcher.
    """

    name: str
    size: int
    rank: int
    variables: tuple[str, ...] = ()

    @property
    def from_outside(self) -> bool:
        """Whether several processes existed before one could choose settings for the others."""
        return self.name != "Lightning" and self.size > 1

    @property
    def parent(self) -> int | None:
        """Id of the process whose end must end this process; None if the launcher handles it."""
        if self.name == "torchrun":
            return os.getppid()
        return int(os.environ[FIRST]) if self.name == "Lightning" else None


def drop_unreadable() -> None:
    """Remove variables from the environment that should be numbers and are not, and report them.

    Lightning reads ranks when it is imported, and fails on such values.
    """
    _drop(name for name in _NUMBERS if not os.environ.get(name, "0").isdecimal())


def run_alone() -> None:
    """Remove the variables of all launchers from the environment.

    Variables that claim other processes are reported.
    """
    _drop(_ALL)


def settle(devices: int, num_nodes: int) -> Launcher | None:
    """Find the launcher that started this process as one of ``devices * num_nodes``.

    A launcher counts if it started as many processes as requested. The variables of other launchers
    are removed from the environment. If they contradict the request, this is reported.

    Args:
        devices: requested processes per node.
        num_nodes: requested nodes.

    Returns:
        The launcher, or None for a process without one: the Trainer then starts the other
            processes, if there are any.

    Raises:
        UserError: a launcher started several processes, but not as many as requested; or several
            nodes are requested and no variable gives the rank of this node.
    """
    asked = devices * num_nodes
    if FIRST in os.environ and _number("LOCAL_RANK"):
        return Launcher("Lightning", asked, _number("LOCAL_RANK"))
    wanted = f"trainer.devices={devices} and trainer.num_nodes={num_nodes} ask for {asked}"
    found = [] if FIRST in os.environ else _launchers(devices)
    for launcher in found:
        if launcher.size == asked:
            _make_lightning_see(launcher, devices, num_nodes)
            return launcher
    for launcher in found:
        if launcher.size > 1:
            raise UserError(
                f"{launcher.name} started {launcher.size} processes, but {wanted}: make them "
                f"agree, or unset {' '.join(launcher.variables)} if another job left them"
            )
    if num_nodes > 1:
        return _one_a_node(devices, num_nodes, wanted)
    run_alone()
    return None


def _launchers(devices: int) -> list[Launcher]:
    """Launchers whose variables are all set, in the order in which Lightning checks for them."""
    found = []
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if _there("TORCHELASTIC_RUN_ID", *ranks):
        found.append(_launcher("torchrun", "WORLD_SIZE", "RANK", ("TORCHELASTIC_RUN_ID", *ranks)))
    # A batch script and the shell of salloc have SLURM_NTASKS too, but are not tasks of a step.
    step = os.environ.get("SLURM_STEP_ID", "")
    if step.isdecimal() and int(step) < _SLURMS_OWN_STEPS and _there("SLURM_PROCID"):
        size = "SLURM_STEP_NUM_TASKS" if _there("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
        found.append(_launcher("srun", size, "SLURM_PROCID", ("SLURM_STEP_ID",)))
    if _there("LSB_JOBID", "LSB_DJOB_RANKFILE", *_JSRUN):
        found.append(_launcher("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", _JSRUN))
    # Without MASTER_PORT, each process would choose a port of its own and find no other process.
    by_hand = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    if _there(*by_hand) and _number("WORLD_SIZE") > 1 and not _there("TORCHELASTIC_RUN_ID"):
        rank = _number("RANK", _node_rank() * devices + _number("LOCAL_RANK"))
        found.append(Launcher("a script", _number("WORLD_SIZE"), rank, by_hand))
    return [launcher for launcher in found if launcher.rank < launcher.size]


def _launcher(name: str, size: str, rank: str, variables: tuple[str, ...]) -> Launcher:
    return Launcher(name, _number(size), _number(rank), variables)


def _make_lightning_see(launcher: Launcher, devices: int, num_nodes: int) -> None:
    """Change the environment so that Lightning detects ``launcher`` and no other."""
    if launcher.name != "torchrun":
        os.environ.pop("TORCHELASTIC_RUN_ID", None)
    if launcher.name != "srun":
        if launcher.name != "torchrun":
            os.environ.pop("SLURM_NTASKS", None)
        return
    if (nodes := _number("SLURM_STEP_NUM_NODES", num_nodes)) != num_nodes:
        raise UserError(
            f"srun started {launcher.size} processes on {nodes} nodes, but trainer.devices="
            f"{devices} and trainer.num_nodes={num_nodes}: make them agree"
        )
    # Lightning reads the variables of the job, but a step may use only part of the job. It also
    # ignores SLURM if the job's name is "interactive", which holds for steps of salloc too.
    os.environ |= {
        "SLURM_NTASKS": str(launcher.size),
        "SLURM_NTASKS_PER_NODE": str(devices),
        "SLURM_NNODES": str(num_nodes),
    }
    if "SLURM_STEP_NODELIST" in os.environ:
        os.environ["SLURM_NODELIST"] = os.environ["SLURM_STEP_NODELIST"]
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        del os.environ["SLURM_JOB_NAME"]


def _one_a_node(devices: int, num_nodes: int, wanted: str) -> Launcher:
    """The user started one process per node, and each of them starts the others of its node."""
    node = _node_rank()
    told = _there("MASTER_PORT") and (_there("NODE_RANK") or _there("GROUP_RANK"))
    if not told or (node and not _there("MASTER_ADDR")):
        raise UserError(
            f"{wanted} processes, and nothing started them: begin the command with srun or "
            "torchrun, or set NODE_RANK, MASTER_ADDR and MASTER_PORT on each node"
        )
    if node >= num_nodes:
        raise UserError(f"NODE_RANK={node}: must be below trainer.num_nodes={num_nodes}")
    _drop({*_ALL} - {"NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"})
    return Launcher("a script", devices * num_nodes, node * devices)


def _drop(names: Iterable[str]) -> None:
    """Remove variables from the environment; report values that contradict a single process."""
    found = {name: os.environ.pop(name) for name in sorted(names) if name in os.environ}
    told = [f"{name}={value}" for name, value in found.items() if _contradicts(name, value)]
    if told:
        print(
            f"lit_llm: not used, as this run was started without a launcher: {' '.join(told)}",
            file=sys.stderr,
        )


def _contradicts(name: str, value: str) -> bool:
    """Whether the value of a variable contradicts that this is the only process."""
    if name == "MASTER_ADDR":
        return value not in ("127.0.0.1", "localhost")
    if name == "MASTER_PORT":
        return not value.isdecimal()
    if name == "TORCHELASTIC_RUN_ID":
        return False
    return value != ("1" if name.endswith(("_SIZE", "_NTASKS")) else "0")


def _there(*names: str) -> bool:
    return all(name in os.environ for name in names)


def _number(name: str, default: int = 0) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def _node_rank() -> int:
    return _number("NODE_RANK", _number("GROUP_RANK"))
