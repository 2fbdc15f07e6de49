"""Runs that Lightning's launcher or torchrun started: who is left ends, and one command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from driver import arguments, consumed, metrics, run

DRIVER = Path(__file__).with_name("driver.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(
    launcher: list[str],
    folder: Path,
    corpus: Path,
    *extra: str,
    kill: list | None = None,
    strategy: str = "ddp",
) -> subprocess.CompletedProcess[str]:
    """A fit on two processes; returns once nobody holds its output any more, so all of them are
    gone."""
    args = arguments(folder, corpus, 0, 2, 2, strategy, 24)
    command = [
        *launcher,
        str(DRIVER),
        str(folder.with_name(f"{folder.name}.ids")),
        json.dumps(kill),
        *args,
        *extra,
    ]
    # torchrun gives restarted workers the store of those that died, addresses and all, unless it is
    # told not to (https://github.com/pytorch/pytorch/issues/135712).
    env = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, env=env
    )


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_no_process_is_left_when_one_is_killed(tmp_path: Path, corpus: Path, rank: int) -> None:
    done = launch([sys.executable], tmp_path / "run", corpus, kill=["alone", 20, rank])
    assert done.returncode == -signal.SIGKILL if rank == 0 else done.returncode not in (0, 2, 75), (
        done.stderr[-2000:]
    )
    assert int(metrics(tmp_path / "run")[-1]["step"]) < 24


def test_who_started_it_is_gone(tmp_path: Path) -> None:
    """Before there is a peer whose connection could break: as while the processes' group forms."""
    child = (
        "import sys, threading; from lit_llm.fit.orphans import follow; "
        "follow(int(sys.argv[1])); threading.Event().wait()"
    )
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])"
    parent = f"import subprocess, sys, os; {start}; os._exit(3)"
    # The pipe is at its end when the child has ended too.
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 3 and "the process that started this one is gone" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_torchrun_starts_again_from_the_newest_checkpoint(
    tmp_path: Path, corpus: Path, strategy: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, corpus, ranks=2, accumulation=2, strategy=strategy) == 0
    command = [*TORCHRUN, "--max-restarts", "1"]
    done = launch(
        command, killed, corpus, "--ckpt_path", "auto", kill=["alone", 20, 1], strategy=strategy
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming from" in done.stderr
    assert metrics(killed) == metrics(whole) and consumed(killed) == consumed(whole)


@pytest.mark.slow
def test_sigterm_to_one_of_torchruns_workers(tmp_path: Path, corpus: Path) -> None:
    """Saved and, for torchrun, failed: it ends with 1, whatever the worker's status, unless it may
    start again."""
    done = launch(
        TORCHRUN, tmp_path / "run", corpus, "--ckpt_path", "auto", kill=["terminate", 20, 1]
    )
    assert done.returncode == 1
    assert "exitcode  : 75" in done.stderr and "saved step 10" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000010.ckpt").exists()
