"""Jobs that ``lit_llm launch --slurm`` wrote, on a real SLURM: what stops them, what that costs."""

from __future__ import annotations

import os
import signal

import pytest
from cluster import NODES, wait_for
from place import Place

pytestmark = pytest.mark.slow
NOISE = ("Traceback", "sync_dist", "auto-requeue", "does not match")


def finished(place: Place, job: str, restarts: int) -> None:
    """The job came to its end, started again so many times, and did each step once."""
    place.go()
    ended = place.cluster.until(job, "COMPLETED", "FAILED", "CANCELLED")
    said = place.said()
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), said
    assert int(ended["Restarts"]) == restarts and place.made_again() == 0
    assert place.steps()[-1] == 400 and (place.folder / "runs/run/final").exists()
    assert not [words for words in NOISE if words in said], said


def requeued(place: Place, job: str, restarts: int) -> None:
    """Wait for it."""
    wait_for(
        lambda: int(place.cluster.job(job)["Restarts"]) >= restarts or None,
        lambda: f"the job's start {restarts}: {place.cluster.job(job)} {place.said()}",
    )


def test_time_limit_and_a_second_requeue(place: Place) -> None:
    place.launch("--time", "10", "--grace", "60", fit=place.arguments())
    job = place.submit()
    place.trains()
    place.cluster.run("scontrol", "update", f"jobid={job}", "timelimit=2")  # warned a minute before
    requeued(place, job, 1)
    place.cluster.run("scontrol", "update", f"jobid={job}", "timelimit=10")
    saved = place.steps()[-1]
    place.says(f"saved step {saved}")
    assert place.checkpoints()[-1] == f"step-{saved:08d}.ckpt"
    place.trains(saved + 3)
    place.cluster.run("scontrol", "requeue", job)  # as an administrator does, or preemption
    requeued(place, job, 2)
    assert place.steps()[-1] >= saved + 3
    finished(place, job, restarts=2)


def test_a_node_is_taken_away(place: Place) -> None:
    """Its slurmd is still there, so SLURM takes it back within half a minute."""
    place.launch("--time", "10", fit=place.arguments())
    job = place.submit()
    place.trains()
    place.cluster.run("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    requeued(place, job, 1)
    place.says(f"saved step {place.steps()[-1]}")
    finished(place, job, restarts=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_is_killed(place: Place, rank: int) -> None:
    """The other ends itself, long before srun's two minutes are over; the same job file goes on."""
    place.launch("--time", "10", fit=place.arguments())
    job = place.submit()
    place.trains(25)
    os.kill(next(pid for number, pid, _ in place.processes() if number == rank), signal.SIGKILL)
    ended = place.cluster.until(job, "FAILED", "COMPLETED", bound=110)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "137:0"), place.said()
    said = place.said()
    assert (
        "another process of the run ended" in said and "Killed" in said and "Traceback" not in said
    )
    made = place.steps()[-1]
    assert place.checkpoints() == ["step-00000020.ckpt"]
    place.go()
    again = place.submit()
    assert place.cluster.until(again, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", (
        place.said()
    )
    assert place.made_again() == made - 20


def test_scancel(place: Place) -> None:
    """Saves, and stays cancelled."""
    place.launch("--time", "10", fit=place.arguments())
    job = place.submit()
    place.trains()
    place.cluster.run("scancel", job)
    ended = place.cluster.until(job, "CANCELLED", "PENDING", "COMPLETED", "FAILED")
    place.says(f"saved step {place.steps()[-1]}")
    assert ended["JobState"] == "CANCELLED", ended
    assert place.checkpoints() == [f"step-{place.steps()[-1]:08d}.ckpt"]
    assert place.cluster.job(job)["JobState"] == "CANCELLED"
