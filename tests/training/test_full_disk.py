"""A file system that fills up, and a run that ended without finishing: older checkpoints serve,
resuming mends it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from driver import STEPS, consumed, metrics, output, run, weights

from lit_llm.training.callbacks.checkpoint_folder import checkpoints, damage


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_costs_the_steps_since(
    tmp_path: Path, small_disk: Path, corpus: Path, ranks: int
) -> None:
    shape = {"ranks": ranks, "accumulation": 2 // ranks}
    whole, folder = tmp_path / "whole", small_disk / "run"
    assert run(whole, corpus, **shape) == 0
    assert run(folder, corpus, "--trainer.max_steps", "8", **shape) == 0
    older = {file: file.read_bytes() for file in checkpoints(folder / "checkpoints")}
    filler = small_disk / "filler"
    size = next(iter(older)).stat().st_size
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(bytes(free - size // 2))  # half of the next one has room
    assert run(folder, corpus, "--ckpt_path", "last", **shape) == 2
    last = next(line for line in output(folder).splitlines() if line.startswith("lit_llm fit: /"))
    assert ".ckpt: the checkpoint could not be written" in last
    assert (
        "resume with --ckpt_path last from step-00000008.ckpt" in last
        and "Traceback" not in output(folder)
    )
    assert {file: file.read_bytes() for file in checkpoints(folder / "checkpoints")} == older
    assert not list((folder / "checkpoints").glob("*.part")) and all(
        damage(file) is None for file in older
    )
    filler.unlink()
    assert run(folder, corpus, "--ckpt_path", "last", **shape) == 0
    assert metrics(folder)[8:] == metrics(whole)[8:] and consumed(folder) == consumed(whole)
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(
    "shape",
    [{}, pytest.param({"ranks": 2, "strategy": "fsdp2"}, marks=pytest.mark.slow)],
    ids=["one", "fsdp2"],
)
def test_a_run_that_ended_without_its_model_writes_it_when_resumed(
    tmp_path: Path, corpus: Path, shape: dict
) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, **shape) == 0
    model = weights(folder)
    shutil.rmtree(folder / "final")  # killed just before
    assert run(folder, corpus, "--ckpt_path", "auto", **shape) == 0
    assert weights(folder) == model


def test_the_model_of_fewer_steps_is_not_left_as_the_result(tmp_path: Path, corpus: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert run(whole, corpus) == 0
    assert run(folder, corpus, "--trainer.max_steps", "12") == 0
    assert run(folder, corpus, "--ckpt_path", "last", kill=["final", 1]) == -signal.SIGKILL
    state = folder / "final" / "trainer_state.json"
    assert json.loads(state.read_text())["global_step"] == 12
    assert run(folder, corpus, "--ckpt_path", "last") == 0
    assert weights(folder) == weights(whole)
    assert json.loads(state.read_text())["global_step"] == STEPS
    written = state.stat()
    assert run(folder, corpus, "--ckpt_path", "last") == 0  # nothing is left to do
    assert state.stat() == written
