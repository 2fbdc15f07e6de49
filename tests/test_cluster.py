"""Variables of launchers: those of this run are used, others are left out and told about."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from test_cli import check_mistake, config_file, fit

from lit_llm.errors import UserError

LEFT = {"LOCAL_RANK": "1", "NODE_RANK": "1", "MASTER_ADDR": "node17"}
BATCH = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "4", "SLURM_NNODES": "2",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
SALLOC = {**BATCH, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "4294967290"}
HAND = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "127.0.0.1"}
TORCHRUN = {**HAND, "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}


@pytest.fixture(autouse=True)
def restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Iterator[None]:
    """A folder of its own; what is taken out of the environment comes back."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ |= before
    rank_zero_only.rank = 0


@pytest.mark.parametrize("variables", [LEFT, BATCH, {"WORLD_SIZE": "2", "RANK": "1"}])
def test_a_fit_among_variables_of_another_job(
    tmp_path: Path, corpus: Path, variables: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ |= variables
    rank_zero_only.rank = int(variables.get("RANK", variables.get("LOCAL_RANK", "0")))  # at import
    status, error = fit(config_file(tmp_path, corpus), capsys=capsys)
    assert status == 0, error
    assert (tmp_path / "runs" / "mine" / "metrics.csv").exists()
    told = next(line for line in error.splitlines() if line.startswith("lit_llm: not used"))
    for name, value in variables.items():
        assert (f"{name}={value}" in told) is (
            name in ("SLURM_NTASKS", "WORLD_SIZE", "MASTER_ADDR") or "RANK" in name
        )


def test_a_rank_that_is_no_number(
    tmp_path: Path, lit_llm_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "first")
    done = lit_llm_command("validate", "--config", "absent", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "RANK=first" in done.stderr and "--config absent" in done.stderr


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "said"),
    [
        (TORCHRUN, 1, 1, "torchrun started 2 processes, but trainer.devices=1"),
        (TORCHRUN, 4, 1, "ask for 4"),
        (HAND, 1, 1, "a script started 2 processes"),
        (STEP, 1, 1, "srun started 4 processes"),
        (STEP, 4, 1, "on 2 nodes"),
        ({}, 1, 2, "begin the command with srun or torchrun"),
        (BATCH, 2, 2, "begin the command with srun or torchrun"),
        ({"NODE_RANK": "1", "MASTER_PORT": "29500"}, 1, 2, "MASTER_ADDR"),
        ({"NODE_RANK": "2", "MASTER_PORT": "1", "MASTER_ADDR": "a"}, 1, 2, "NODE_RANK=2"),
    ],
)
def test_as_many_processes_as_asked_for_or_a_word(
    variables: dict, devices: int, nodes: int, said: str
) -> None:
    from lit_llm.fit.launchers import settle

    os.environ |= variables
    with pytest.raises(UserError, match=said):
        settle(devices, nodes)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "name", "rank"),
    [
        (TORCHRUN, 2, 1, "torchrun", 1),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, 1, 1, "torchrun", 0),
        (HAND, 2, 1, "a script", 1),
        (STEP, 2, 2, "srun", 0),
        ({**STEP, "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "3"}, 2, 2, "srun", 3),
        ({**STEP, **TORCHRUN}, 2, 2, "srun", 0),
        ({"NODE_RANK": "1", "MASTER_PORT": "1", "MASTER_ADDR": "a"}, 4, 2, "a script", 4),
        (BATCH, 4, 1, None, 0),
        (SALLOC, 4, 1, None, 0),
        ({**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, 4, 1, None, 0),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, 4, 1, None, 0),
        ({"LOCAL_RANK": "1", "MASTER_PORT": "29500"}, 2, 1, None, 0),
        ({"TORCHELASTIC_RUN_ID": "x"}, 1, 1, None, 0),
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, 2, 1, None, 0),
    ],
)
def test_who_is_meant_and_what_lightning_then_sees(
    variables: dict, devices: int, nodes: int, name: str | None, rank: int
) -> None:
    from lightning.fabric.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )

    from lit_llm.fit.launchers import settle

    os.environ |= variables
    launcher = settle(devices, nodes)
    assert (launcher and launcher.name) == name and (launcher.rank if launcher else 0) == rank
    assert TorchElasticEnvironment.detect() is (name == "torchrun")
    assert SLURMEnvironment.detect() is (name == "srun")
    if name == "srun":
        SLURMEnvironment().validate_settings(devices, nodes)
        assert SLURMEnvironment().global_rank() == rank
        assert SLURMEnvironment().world_size() == devices * nodes
    elif name != "torchrun":
        alone = LightningEnvironment()
        assert alone.creates_processes_externally is (variables is HAND)
        assert alone.node_rank() == (1 if nodes == 2 else 0)
        assert alone.main_address == ("a" if nodes == 2 else "127.0.0.1")


def test_processes_that_the_first_one_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_llm.fit.launchers import settle

    os.environ |= {**HAND, "NODE_RANK": "0", "LIT_LLM_FIRST_PROCESS": "123"}
    started = settle(2, 1)
    assert started is not None and started.parent == 123 and not started.from_outside
    assert os.environ["WORLD_SIZE"] == "2"
    # A command that a callback of the run's first process starts is no part of the run.
    os.environ["LOCAL_RANK"] = "0"
    assert settle(1, 1) is None and "WORLD_SIZE" not in os.environ


def test_a_verb_that_is_one_process(tmp_path: Path) -> None:
    """lm-eval gives results on the first rank only, and takes LOCAL_RANK for it."""
    code = (
        "import sys, os; from lit_llm.cli import main; status = main(['report', 'absent']);"
        "left = [name for name in os.environ if 'RANK' in name or name == 'WORLD_SIZE'];"
        "assert status == 2 and not left, left"
    )
    env = {**os.environ, **TORCHRUN}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_beside_variables_of_another_job(
    tmp_path: Path,
    corpus: Path,
    lit_llm_command: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first process starts the second, which would look for its peers at node17."""
    for name, value in {**LEFT, "SLURM_NTASKS": "8"}.items():
        monkeypatch.setenv(name, value)
    config = config_file(tmp_path, corpus, trainer__devices=2, data__init_args__tokens=128)
    done = lit_llm_command("fit", "--config", config, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "mine" / "metrics.csv").exists()


def test_a_mismatch_is_one_line(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ |= TORCHRUN
    said = fit(config_file(tmp_path, corpus), capsys=capsys)
    check_mistake(*said, "torchrun started 2 processes", "unset TORCHELASTIC_RUN_ID")
    assert not list(tmp_path.glob("runs/*"))
