"""Runs that users start on a real SLURM without ``lit_llm launch``."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from cluster import wait_for
from place import FIT, Place, quoted

pytestmark = pytest.mark.slow
STEPS = 24
DONE = ("COMPLETED", "FAILED", "CANCELLED")


def fit(place: Place, run: str = "runs/run", **asked: int) -> list[str]:
    """A command that trains for 24 steps; ``asked``: nodes, devices."""
    numbers = [f"--trainer.{key}={value}" for key, value in asked.items()]
    return [*FIT, *place.arguments("--trainer.default_root_dir", run, *numbers, steps=STEPS)]


def made_once(place: Place, processes: int, run: str = "runs/run") -> None:
    """One run of so many processes made all steps, and wrote its table."""
    assert place.steps() == list(range(1, STEPS + 1)), place.said()
    assert sorted((rank, size) for rank, _, size in place.processes()) == [
        (rank, processes) for rank in range(processes)
    ]
    assert rows(place.folder / run) == STEPS


def rows(run: Path) -> int:
    """Of metrics.csv."""
    with open(run / "metrics.csv") as file:
        return len([row for row in csv.DictReader(file) if row["train_loss"]])


def test_srun_within_salloc(place: Place) -> None:
    """The job's name is "interactive", for its steps too."""
    place.go()
    command = fit(place, num_nodes=2, devices=1)
    done = place.call("salloc", "--nodes=2", "--ntasks-per-node=1", "srun", *command)
    assert done.returncode == 0, done.stderr
    made_once(place, 2)


def test_srun_alone_and_a_script(place: Place) -> None:
    """srun names the job after the command: "bash", by which Lightning knows an interactive
    shell."""
    place.go()
    (place.folder / "train.sh").write_text(quoted(fit(place, devices=2)) + "\n")
    done = place.call("srun", "--ntasks=2", "bash", "train.sh")
    assert done.returncode == 0, done.stderr
    made_once(place, 2)


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        (["ntasks=2", "nodes=1"], {"devices": 2}),
        (["ntasks=2", "nodes=2"], {"num_nodes": 2, "devices": 1}),
    ],
    ids=["one-node", "two-nodes"],
)
def test_a_job_file_without_ntasks_per_node(
    place: Place, header: list[str], asked: dict[str, int]
) -> None:
    place.go()
    place.write(*header, commands="srun " + quoted(fit(place, **asked)))
    ended = place.cluster.until(place.submit(), *DONE)
    assert ended["JobState"] == "COMPLETED", place.said()
    made_once(place, 2)


def test_a_step_of_fewer_tasks_than_the_job_has(place: Place) -> None:
    place.go()
    command = "srun --nodes=1 --ntasks=1 " + quoted(fit(place, devices=1))
    place.write("nodes=2", "ntasks-per-node=2", commands=command)
    ended = place.cluster.until(place.submit(), *DONE)
    assert ended["JobState"] == "COMPLETED", place.said()
    made_once(place, 1)


def test_a_job_file_without_srun(place: Place) -> None:
    """The Trainer starts the processes of one node itself."""
    place.go()
    place.write("nodes=1", "ntasks-per-node=2", commands=quoted(fit(place, devices=2)))
    ended = place.cluster.until(place.submit(), *DONE)
    assert ended["JobState"] == "COMPLETED", place.said()
    made_once(place, 2)
    assert "`srun` command is available" not in place.said()


def test_two_nodes_without_srun(place: Place) -> None:
    place.write("nodes=2", "ntasks-per-node=1", commands=quoted(fit(place, num_nodes=2, devices=1)))
    ended = place.cluster.until(place.submit(), *DONE)
    said = place.said()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), said
    assert "srun" in said and "Traceback" not in said


def test_more_tasks_than_were_asked_for(place: Place) -> None:
    place.write("nodes=2", "ntasks-per-node=1", commands="srun " + quoted(fit(place, devices=1)))
    ended = place.cluster.until(place.submit(), *DONE)
    said = place.said()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), said
    assert "trainer.num_nodes=1" in said and "Traceback" not in said
    assert not (place.folder / "runs/run").exists()


def test_a_job_array(place: Place) -> None:
    """Each task is a run of its own, at the same time and on the same node."""
    place.go()
    command = quoted(fit(place, "runs/@", devices=1)).replace("@", "$SLURM_ARRAY_TASK_ID")
    place.write("array=0-1", "ntasks=1", commands="srun " + command)
    job = place.submit()
    for task in (0, 1):
        ended = place.cluster.until(f"{job}_{task}", *DONE)
        assert ended["JobState"] == "COMPLETED", place.said()
        assert rows(place.folder / f"runs/{task}") == STEPS


def test_a_plain_fit_in_the_shell_of_a_job(place: Place) -> None:
    """A job's name other than "interactive" makes Lightning look for tasks."""
    place.go()
    command = fit(place, devices=1)
    done = place.call("salloc", "--nodes=2", "--ntasks-per-node=1", "--job-name=mine", *command)
    assert done.returncode == 0, done.stderr
    made_once(place, 1)


@pytest.mark.parametrize("tasks", [1, 2])
def test_variables_left_from_a_step_that_is_over(place: Place, tasks: int) -> None:
    """As in a tmux that was started in ``srun --pty``. A step of one task is no reason to
    refuse."""
    place.go()
    save = "[ $SLURM_PROCID = 0 ] && export -p > left.sh; true"
    srun = ["srun", "--job-name=mine", f"--ntasks={tasks}"]
    assert place.call(*srun, "bash", "-c", save).returncode == 0
    asked = 3 - tasks
    done = place.call("bash", "-c", f". ./left.sh; {quoted(fit(place, devices=asked))}")
    if tasks == 1:
        assert done.returncode == 0, done.stderr
        made_once(place, asked)
    else:
        assert done.returncode == 2 and "unset SLURM_STEP_ID" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (place.folder / "runs/run").exists()


def test_the_signal_of_lightnings_documentation(place: Place) -> None:
    """SIGUSR1: the run saves, asks to be requeued, and goes on."""
    given = ("--ckpt_path", "auto", "--trainer.num_nodes=2", "--trainer.devices=1")
    command = [*FIT, *place.arguments("--trainer.default_root_dir", "runs/run", *given)]
    place.write(
        "nodes=2",
        "ntasks-per-node=1",
        "signal=SIGUSR1@60",
        "time=10",
        commands="srun " + quoted(command),
    )
    job = place.submit()
    place.trains()
    place.cluster.run("scontrol", "update", f"jobid={job}", "timelimit=2")
    wait_for(
        lambda: int(place.cluster.job(job)["Restarts"]) or None,
        lambda: f"a requeue: {place.said()}",
    )
    place.cluster.run("scontrol", "update", f"jobid={job}", "timelimit=10")
    place.go()
    ended = place.cluster.until(job, *DONE)
    assert ended["JobState"] == "COMPLETED", place.said()
    assert place.made_again() == 0 and place.steps()[-1] == 400
    assert not list((place.folder / "runs/run").glob("hpc_ckpt*"))
