"""Signals that come when nothing is trained are not lost, do not end a run unsaved, and are given
back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from driver import together
from lightning.pytorch.plugins.environments import SLURMEnvironment
from test_spike_guard import TINY, fit

from lit_llm import Checkpoint, PretrainModule
from lit_llm.errors import Preempted


@pytest.fixture
def before() -> Iterator[Any]:
    """The handler of somebody else, which a run must neither call nor lose."""

    def handler(number: int, frame: Any) -> None:
        raise AssertionError("not caught")

    found = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, found)


class Sends(L.Callback):
    """Sends this process signals in one of a run's hooks, before `Checkpoint` has its turn in
    it."""

    def __init__(self, hook: str, *numbers: int) -> None:
        def send(*_: Any) -> None:
            for number in numbers or (signal.SIGTERM,):
                signal.raise_signal(number)

        setattr(self, hook, send)


def module() -> PretrainModule:
    return PretrainModule(TINY, compile=False)


@pytest.mark.parametrize("hook", ["on_load_checkpoint", "on_sanity_check_start", "on_train_start"])
def test_sigterm_before_the_first_batch_saves_where_the_run_stands(
    tmp_path: Path, corpus: Path, before: Any, hook: str
) -> None:
    start = None
    if hook == "on_load_checkpoint":
        fit(tmp_path, corpus, module(), max_steps=1)
        start = tmp_path / "checkpoints" / "step-00000001.ckpt"
    with pytest.raises(Preempted, match=f"saved step {int(start is not None)}"):
        fit(
            tmp_path,
            corpus,
            module(),
            start,
            callbacks=[Sends(hook), Checkpoint()],
            limit_val_batches=1,
        )
    assert [f.stem for f in (tmp_path / "checkpoints").iterdir()] == [
        f"step-{int(start is not None):08d}"
    ]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_the_model_is_written_changes_nothing(
    tmp_path: Path, corpus: Path, before: Any
) -> None:
    class Told(PretrainModule):
        def save_pretrained(self, folder: str | Path) -> None:
            signal.raise_signal(signal.SIGTERM)
            super().save_pretrained(folder)

    trainer = fit(tmp_path, corpus, Told(TINY, compile=False), max_steps=1)
    assert (tmp_path / "final" / "model.safetensors").exists() and not trainer.received_sigterm
    assert signal.getsignal(signal.SIGTERM) is before


def test_after_ctrl_c_sigterm_is_still_heard(tmp_path: Path, corpus: Path, before: Any) -> None:
    both = Sends("on_train_batch_start", signal.SIGINT, signal.SIGTERM)
    with pytest.raises(Preempted, match="saved step 0"):
        fit(tmp_path, corpus, module(), callbacks=[both, Checkpoint()])
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_not_for_a_job_in_the_background(tmp_path: Path, corpus: Path) -> None:
    found = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sends = Sends("on_train_batch_start", signal.SIGINT)
        fit(tmp_path, corpus, module(), callbacks=[sends, Checkpoint()], max_steps=2)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, found)
    assert (tmp_path / "final" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("scontrol", "said"),
    [
        ("exit 0", "requeued job 7"),
        ("echo job 7 may not >&2; exit 1", "job 7 may not"),
        (None, "scontrol requeue 7:"),
    ],
)
def test_slurms_signal_to_requeue(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str | None, said: str
) -> None:
    """SIGUSR1 saves where a step ends and has SLURM requeue the job; Lightning saves nothing."""
    if scontrol:
        (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{scontrol}\n')
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in {
        "NTASKS": 1,
        "NTASKS_PER_NODE": 1,
        "JOB_ID": 7,
        "PROCID": 0,
        "LOCALID": 0,
        "NODEID": 0,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    slurm, found = SLURMEnvironment(), signal.getsignal(signal.SIGUSR1)
    told = Sends("on_train_batch_start", signal.SIGUSR1)
    with pytest.raises(Preempted, match=said):
        fit(tmp_path, corpus, module(), callbacks=[told, Checkpoint()], plugins=slurm)
    if scontrol:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert (tmp_path / "checkpoints" / "step-00000000.ckpt").exists()
    assert not list(tmp_path.glob("hpc_ckpt*"))
    assert signal.getsignal(signal.SIGUSR1) is found and slurm.auto_requeue


def fit_told(rank: int, folder: Path, corpus: Path) -> int:
    told = [Sends("on_train_start")] if rank == 1 else []
    try:
        fit(folder, corpus, module(), callbacks=[*told, Checkpoint()], devices=2, strategy="ddp")
    except Preempted as ended:
        return ended.status
    return 0


def test_sigterm_to_the_second_of_two_processes_before_the_first_batch(
    tmp_path: Path, corpus: Path
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    assert together(2, out, fit_told, folder, corpus) == Preempted.status, out.read_text()[-3000:]
    assert (folder / "checkpoints" / "step-00000000.ckpt").exists()
