"""The job file, run by a scheduler of two lines: it saves, requeues and goes on."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_llm.errors import UserError
from lit_llm.terminal.launch import launch_main


def fit(corpus: Path, *extra: str) -> list[str]:
    return [
        "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
        "--data.corpus", str(corpus), "--model.transformer",
        '{"hidden_size": 32, "num_layers": 1, "num_heads": '
                                            '2}', "--data.seq_len",
        "32", "--data.micro_batch_size", "4", "--data.global_batch_tokens", "256", "--data.tokens",
        "512", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", *extra,
    ]  # fmt: skip


# Starts the tasks of a step and waits as srun does: the status is the highest, a signal's 128 more
# than its number.
SRUN = """#!{python}
import os, subprocess, sys, time
wait = next(float(a.partition("=")[2]) for a in sys.argv if a.startswith("--wait="))
assert "--kill-on-bad-exit=0" in sys.argv
command = [a for a in sys.argv[1:] if not a.startswith(("--wait", "--kill"))]
count = os.environ["SLURM_NTASKS"]
node = {{"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "job",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": count}}
ranks = [{{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}} for n in range(int(count))]
tasks = [subprocess.Popen(command, env={{**os.environ, **node, **rank}}) for rank in ranks]
while all(task.poll() is None for task in tasks):
    time.sleep(0.05)
end = time.monotonic() + wait
for task in tasks:
    try:
        task.wait(max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        task.kill()
sys.exit(max(128 - code if code < 0 else code for code in (task.wait() for task in tasks)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_job_is_requeued_until_it_is_done(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.chdir(tmp_path)
    command = fit(
        corpus, "--checkpoint.max_minutes", "1e-9", "--trainer.default_root_dir", "it's here"
    )
    launch_main(
        [
            "--slurm",
            "--gpus",
            str(tasks),
            "--sbatch",
            "partition=gpu",
            "--output",
            "job",
            "--",
            *command,
        ]
    )
    header = [line for line in Path("job").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@180", f"#SBATCH --ntasks-per-node={tasks}",
            "#SBATCH --partition=gpu"} <= set(header)  # fmt: skip
    scheduler = tmp_path / "bin"
    scheduler.mkdir()
    requeue = '#!/bin/bash\necho "$@" >> requeued\n'
    for name, does in (("srun", SRUN.format(python=sys.executable)), ("scontrol", requeue)):
        (scheduler / name).write_text(does)
        (scheduler / name).chmod(0o755)
    job = str(os.getpid())  # Lightning makes the port of it
    env = {
        **os.environ,
        "PATH": f"{scheduler}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job,
        "SLURM_NTASKS": str(tasks),
    }
    (tmp_path / "it's here").mkdir()
    (tmp_path / "it's here" / "config.yaml").write_text("of a start that saved nothing")
    codes = []
    for _ in range(3):
        done = subprocess.run(["bash", "job"], env=env, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        if done.returncode != 75:
            break
    # A step each time, of two; the second ends the run.
    assert codes == [75, 0], done.stderr
    assert Path("requeued").read_text() == f"requeue {job}\n"
    with open("it's here/metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (tmp_path / "it's here.started-1" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--slurm"], "after --"),
        (["--slurm", "--", "chat"], "after -- comes fit"),
        (["--slurm", "--gpus", "0", "--", "fit"], "argument --gpus: 0 must be"),
        (["--slurm", "--time", "a day", "--", "fit"], "--time a day"),
        (
            ["--slurm", "--", "fit", "--trainer.devices=4"],
            "--trainer.devices: the job file sets it",
        ),
        (["--slurm", "--sbatch", "array=0-3", "--", "fit"], "--sbatch array=0-3"),
        (["--", "fit"], "--slurm"),
        (["--slurm", "--output", "no/such/folder", "--", "fit"], "--output no/such/folder"),
    ],
)
def test_mistakes(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        launch_main(args)
    assert not list(tmp_path.iterdir())


def test_signs_that_sbatch_would_take_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my 10%j.yaml").write_text("seed_everything: 1\n")
    launch_main(["--slurm", "--", "fit", "--config", "my 10%j.yaml"])
    header = Path("my 10%j.sbatch").read_text().splitlines()
    assert "#SBATCH --output='my 10%%j-%j.log'" in header
    assert "sbatch 'my 10%j.sbatch'" in capsys.readouterr().out


def test_a_name_from_the_config_and_a_folder_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    launch_main(["--slurm", "--nodes", "2", "--", "fit", "--config", "pretrain/quickstart"])
    script = Path("quickstart.sbatch").read_text()
    assert "--trainer.default_root_dir runs/quickstart" in script and "--ckpt_path auto" in script
    assert "--trainer.num_nodes 2 --trainer.devices 8" in script
