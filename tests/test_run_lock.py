"""RunLock: one fit at a time in a run folder; a lock that was left behind holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_cli import config_file, fit, in_a_folder_of_its_own  # noqa: F401

from lit_llm.errors import UserError
from lit_llm.io import run_lock
from lit_llm.io.run_lock import NAME, RunLock

HOLD = """
import sys
from pathlib import Path
from lit_llm.errors import UserError
from lit_llm.io.run_lock import RunLock
try:
    lock = RunLock(Path(sys.argv[1]))
    print("held", flush=True)
except UserError as error:
    print("refused", error, flush=True)
sys.stdin.read()
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen]:
    process = start(folder)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def write_lock(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    file = folder / NAME
    file.write_text(json.dumps({"host": "elsewhere", "pid": 7, "job": None, **changes}))
    return file


def test_a_live_run_is_left_alone_and_a_killed_one_gone_on_from(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "mine"
    config = config_file(tmp_path, corpus, trainer__default_root_dir=str(folder))
    with holder(folder) as process:
        for arguments in ([], ["--ckpt_path", "auto"]):
            status, error = fit(config, *arguments, capsys=capsys)
            assert status == 2 and f"process {process.pid} on " in error, error
            assert len(error.splitlines()) == 1 and [f.name for f in folder.iterdir()] == [NAME]
    status, error = fit(config, capsys=capsys)  # what the killed one left is no run
    assert status == 0, error
    assert not (folder / NAME).exists()
    before = (folder / "metrics.csv").read_bytes()
    with holder(folder):
        for checkpoint in ("last", "auto"):
            status, error = fit(config, "--ckpt_path", checkpoint, capsys=capsys)
            assert status == 2 and "trains in this run folder now" in error
    assert (folder / "metrics.csv").read_bytes() == before


def test_of_several_started_together_one_holds_the_lock(tmp_path: Path) -> None:
    processes = [start(tmp_path / "run") for _ in range(4)]
    said = [process.stdout.readline().split()[0] for process in processes if process.stdout]
    for process in processes:
        process.communicate("")
    assert sorted(said) == ["held", "refused", "refused", "refused"]


def test_the_lock_moves_with_the_name_of_a_folder_that_is_set_aside(tmp_path: Path) -> None:
    folder, aside = tmp_path / "run", tmp_path / "aside"
    lock = RunLock(folder)
    folder.rename(aside)
    lock.move(aside)
    assert not (aside / NAME).exists()
    process = start(folder)
    assert process.communicate("")[0].startswith("refused")
    (folder / "kept").touch()
    lock.release()
    assert [file.name for file in folder.iterdir()] == ["kept"]


def test_a_folder_made_for_a_lock_goes_with_it(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.release()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("beats", [True, False])
def test_a_lock_of_another_machine_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    file, ended = write_lock(tmp_path / "run"), threading.Event()

    def beat(time: int = 0) -> None:
        while not ended.wait(0.001):
            os.utime(file, ns=(time := time + 1_000_000_000, time))

    # Without beats nothing is waited for but the time itself.
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 1.0 if beats else 0.001)
    thread = threading.Thread(target=beat)
    if beats:
        thread.start()
    try:
        if beats:
            with pytest.raises(UserError, match="process 7 on elsewhere trains in this run folder"):
                RunLock(file.parent)
        else:
            RunLock(file.parent).release()
    finally:
        ended.set()
        if beats:
            thread.join()


def test_a_running_fit_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = threading.Event()
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.001)
    monkeypatch.setattr(os, "utime", lambda file: touched.set())
    lock = RunLock(tmp_path / "run")
    assert touched.wait(60)
    lock.release()


def test_a_job_that_is_started_again_waits_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 1e9)
    lock = RunLock(write_lock(tmp_path / "run", job="12").parent)
    assert json.loads(lock.file.read_text())["pid"] == os.getpid()
    lock.release()


def test_broken_locks_hold_nobody_up(tmp_path: Path) -> None:
    for number, content in enumerate(("", "{", "[]", '{"host": 1}', "null")):
        file = write_lock(tmp_path / str(number))
        file.write_text(content)
        RunLock(file.parent).release()


def test_where_files_cannot_be_locked_the_process_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = run_lock._Holder.of_this_process().host
    RunLock(write_lock(tmp_path / "gone", host=host, pid=gone.pid).parent).release()
    with pytest.raises(UserError, match=f"process {os.getppid()} on "):
        RunLock(write_lock(tmp_path / "here", host=host, pid=os.getppid()).parent)
