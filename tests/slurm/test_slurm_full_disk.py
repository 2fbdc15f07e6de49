"""Disks that are full, on a real SLURM: told in a line, nobody waits, nothing whole is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from place import FIT, Place, quoted

pytestmark = pytest.mark.slow
DONE = ("COMPLETED", "FAILED", "CANCELLED")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_disk_of_the_run(place: Place, small_disk: Path, strategy: str) -> None:
    """The job fails and is not requeued: another start would meet the same disk."""
    run = ("--trainer.default_root_dir", "disk/run", "--trainer.strategy", strategy)
    place.launch("--time", "10", fit=place.arguments(*run))
    job = place.submit()
    place.trains(25)
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    ended = place.cluster.until(job, *DONE)
    said = place.said()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), said
    assert "step-00000040.ckpt: the checkpoint could not be written" in said
    assert "Traceback" not in said and place.checkpoints("disk/run") == ["step-00000020.ckpt"]
    made = place.steps()[-1]
    (small_disk / "filler").unlink()
    place.go()
    ended = place.cluster.until(place.submit(), *DONE)
    assert ended["JobState"] == "COMPLETED", place.said()
    assert place.made_again() == made - 20


def test_the_disk_of_one_node(place: Place, small_disk: Path, text_folder: Path) -> None:
    """Each node makes the corpus in a cache of its own; the second has no room for it."""
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
    given = (
        "--trainer.num_nodes=2",
        "--trainer.devices=1",
        "--data.sources",
        str(text_folder / "a*.py"),
    )
    command = [*FIT, *place.arguments("--trainer.default_root_dir", "runs/run", *given)]
    at = command.index("--data.corpus")
    del command[at : at + 2]
    (place.folder / "disk-0").mkdir()
    (place.folder / "disk-1").symlink_to(small_disk)
    (place.folder / "task.sh").write_text(
        f"export LIT_LLM_CACHE=$PWD/disk-$SLURM_NODEID\nexec {quoted(command)}\n"
    )
    place.write("nodes=2", "ntasks-per-node=1", commands="srun bash task.sh")
    ended = place.cluster.until(place.submit(), *DONE)
    said = place.said()
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0"), said
    assert "/disk-1/" in said and "the disk is full" in said
    assert "another process of the run ended" in said
    assert "Traceback" not in said
