"""The job file, run by a scheduler of two lines: it saves, requeues and goes on."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest

from lit_llm.errors import UserError
from lit_llm.terminal.launch import launch_main


def fit(corpus: Path, *extra: str) -> list[str]:
    return [
        "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule", "--data.corpus",
        str(corpus), "--model.transformer", '{"hidden_size": 32, "num_layers": 1, "num_heads": 2}', "--data.seq_len",
        "32", "--data.tokens", "512", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", *extra,
    ]  # fmt: skip


def test_the_job_is_requeued_until_it_is_done(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = fit(corpus, "--checkpoint.max_minutes", "1e-9", "--trainer.default_root_dir", "it's here")
    launch_main(["--slurm", "--gpus", "1", "--sbatch", "partition=gpu", "--output", "job", "--", *command])
    header = [line for line in Path("job").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@180", "#SBATCH --ntasks-per-node=1",
            "#SBATCH --partition=gpu"} <= set(header)  # fmt: skip
    scheduler = tmp_path / "bin"
    scheduler.mkdir()
    for name, does in (("srun", 'shift; exec "$@"'), ("scontrol", 'echo "$@" >> requeued')):
        (scheduler / name).write_text(f"#!/bin/bash\n{does}\n")
        (scheduler / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{scheduler}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    (tmp_path / "it's here").mkdir()
    (tmp_path / "it's here" / "config.yaml").write_text("of a start that saved nothing")
    codes = []
    for restart in range(1, 4):
        job = ["bash", "job"]
        done = subprocess.run(
            job, env={**env, "SLURM_RESTART_COUNT": str(restart)}, capture_output=True, text=True, check=False
        )
        codes.append(done.returncode)
        if not done.returncode:
            break
    # A step each time, of two; the second ends the run.
    assert codes == [75, 0], done.stderr
    assert Path("requeued").read_text() == "requeue 7\n"
    with open("it's here/metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    assert len(list(tmp_path.glob("it's here.started-*"))) == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--slurm"], "after --"),
        (["--slurm", "--", "chat"], "after -- comes fit"),
        (["--slurm", "--gpus", "0", "--", "fit"], "--gpus must be"),
        (["--slurm", "--time", "a day", "--", "fit"], "--time a day"),
        (["--slurm", "--", "fit", "--trainer.devices=4"], "--trainer.devices: the job file sets it"),
        (["--", "fit"], "--slurm"),
        (["--slurm", "--output", "no/such/folder", "--", "fit"], "--output no/such/folder"),
    ],
)
def test_mistakes(args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        launch_main(args)
    assert not list(tmp_path.iterdir())


def test_a_name_from_the_config_and_a_folder_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launch_main(["--slurm", "--nodes", "2", "--", "fit", "--config", "pretrain/quickstart"])
    script = Path("quickstart.sbatch").read_text()
    assert "run=runs/quickstart\n" in script and "--trainer.default_root_dir runs/quickstart" in script
    assert "--trainer.num_nodes 2 --trainer.devices 8" in script
