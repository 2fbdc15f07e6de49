"""kill -9 at any moment, then the same command with --ckpt_path last: the run goes on bit for bit."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_llm.errors import Preempted
from lit_llm.training.callbacks.checkpoint import checkpoints, damage

STEPS = 24

# The driver records the ids of every micro-batch, flushed before the batch is trained on, and kills itself where told.
DRIVER = """
import json, os, signal, sys
import torch
from lit_llm.cli import main
from lit_llm.training.callbacks.throughput import ThroughputCallback
from lit_llm.training.loggers import CSVLogger
from lit_llm.training.pretrain import PretrainModule

log, kill_at = open(sys.argv[1], "a"), json.loads(sys.argv[2])
seen = 0

def on_train_batch_start(self, trainer, module, batch, batch_idx):
    global seen
    log.write(json.dumps([batch_idx, batch["sample_id"].tolist()]) + "\\n"); log.flush()
    seen += 1
    if kill_at == ["batch", seen]:
        os.kill(os.getpid(), signal.SIGKILL)
    if kill_at == ["interrupt", seen]:
        os.kill(os.getpid(), signal.SIGINT)
    if kill_at == ["terminate", seen, trainer.global_rank]:
        os.kill(os.getpid(), signal.SIGTERM)

old = ThroughputCallback.on_train_batch_start
def spied(self, *args):
    old(self, *args); on_train_batch_start(self, *args)
ThroughputCallback.on_train_batch_start = spied
if kill_at and kill_at[0] in ("save", "rename"):
    real = torch.save
    count = 0
    def save(state, file):
        global count
        count += 1
        if kill_at == ["save", count]:
            file.write(b"PK half a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        real(state, file)
        if kill_at == ["rename", count]:
            os.kill(os.getpid(), signal.SIGKILL)
    torch.save = save
if kill_at and kill_at[0] == "validation":
    evaluate, left = PretrainModule.validation_step, kill_at[1]
    def validation_step(self, *args, **kwargs):
        global left
        evaluate(self, *args, **kwargs)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    PretrainModule.validation_step = validation_step
if kill_at and kill_at[0] == "row":
    write, rows_left = CSVLogger._write_row, kill_at[1]
    def write_row(self):
        global rows_left
        write(self)
        rows_left -= 1
        if not rows_left:
            with open(self.file, "rb+") as file:  # what a write cut in the middle leaves
                file.truncate(self.file.stat().st_size - 9)
            os.kill(os.getpid(), signal.SIGKILL)
    CSVLogger._write_row = write_row
sys.exit(main(sys.argv[3:]))
"""


def run(
    folder: Path, corpus: Path, *extra: str, kill: list | None = None, workers: int = 0, accumulation: int = 1
) -> int:
    """One call of the command line; returns its exit status."""
    driver = folder.parent / "driver.py"
    driver.write_text(DRIVER)
    batch = 2 * 32 * accumulation
    args = [
        "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
        "--model.transformer", json.dumps({"hidden_size": 32, "num_layers": 1, "num_heads": 2}),
        "--data.corpus", str(corpus), "--data.seq_len", "32", "--data.micro_batch_size", "2",
        "--data.global_batch_tokens", str(batch), "--data.tokens", str(batch * STEPS),
        "--data.validate_every", "6", "--data.num_workers", str(workers), "--data.eval_batch_size", "64",
        "--checkpoint.every_steps", "4", "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "2",
        "--samples.max_new_tokens", "4", "--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu",
        *extra,
    ]  # fmt: skip
    log = folder.parent / f"{folder.name}.ids"
    command = [sys.executable, str(driver), str(log), json.dumps(kill), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert done.returncode in (0, -signal.SIGKILL, 2, 130, Preempted.status), done.stderr[-3000:]
    return done.returncode


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in ("tokens_per_second", "mfu", "data_wait", "memory_gb"):
            row.pop(key)
    return rows


def consumed(folder: Path) -> dict[int, list[int]]:
    """Sample ids by micro-batch, as trained on last."""
    lines = (folder.parent / f"{folder.name}.ids").read_text().splitlines()
    return {index: ids for index, ids in map(json.loads, lines)}


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def kills(seed: int, accumulation: int, count: int) -> list[list]:
    """Moments to kill at: any micro-batch, within a save, before its rename, within a validation or a row's write."""
    rng = random.Random(seed)
    moments = [["save", 2], ["rename", 2], ["validation", 2], ["row", 5]]
    moments += [["batch", rng.randint(2, 10 * accumulation)] for _ in range(count - len(moments))]
    rng.shuffle(moments)
    return moments


def check_kills(
    tmp_path: Path, corpus: Path, workers: int, accumulation: int, count: int, settings: tuple[str, ...] = ()
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, corpus, *settings, workers=workers, accumulation=accumulation) == 0
    resumed = 0
    for kill in kills(7 * workers + accumulation, accumulation, count):
        extra = ["--ckpt_path", "last"] if list((killed / "checkpoints").glob("step-*.ckpt")) else []
        if not extra and killed.exists():
            # Killed before the first checkpoint: there is nothing to resume, which is said, and a new folder is needed.
            last = ("--ckpt_path", "last")
            assert run(killed, corpus, *settings, *last, workers=workers, accumulation=accumulation) == 2
            subprocess.run(["rm", "-r", str(killed)], check=True)
        resumed += bool(extra)
        status = run(killed, corpus, *settings, *extra, kill=kill, workers=workers, accumulation=accumulation)
        assert status in (0, -signal.SIGKILL)
    if not list((killed / "checkpoints").glob("step-*.ckpt")):
        pytest.fail("no kill came after a checkpoint; choose another seed")
    assert run(killed, corpus, *settings, "--ckpt_path", "last", workers=workers, accumulation=accumulation) == 0
    assert resumed >= 1
    assert metrics(killed) == metrics(whole)
    assert [int(row["step"]) for row in metrics(killed)] == list(range(1, STEPS + 1))
    assert consumed(killed) == consumed(whole)
    assert weights(killed) == weights(whole)
    samples = [(f / "samples.jsonl").read_text() for f in (killed, whole)]
    assert samples[0] == samples[1]


CHANGING = [{"step": 0, "weights": {"a": 1, "b": 2}}, {"step": 10, "weights": {"a": 3, "c": 1}}]


def test_killed_run_of_a_changing_mixture_continues_bit_equal(tmp_path: Path, three_sources: Path) -> None:
    settings = ("--data.mixture", json.dumps(CHANGING))
    check_kills(tmp_path, three_sources, workers=2, accumulation=3, count=5, settings=settings)


def test_a_mixture_may_change_on_resume_and_is_kept(tmp_path: Path, three_sources: Path) -> None:
    """New weights from the step of the resume on: as if they had been announced from the start."""
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    first, second = (json.dumps(phase["weights"]) for phase in CHANGING)
    assert run(whole, three_sources, "--data.mixture", json.dumps(CHANGING), "--data.validate_every", "100") == 0
    later = ("--data.validate_every", "100", "--ckpt_path", "last")
    assert run(changed, three_sources, "--data.mixture", first, "--trainer.max_steps", "10", *later[:2]) == 0
    assert run(changed, three_sources, "--data.mixture", second, "--trainer.max_steps", "16", *later) == 0
    assert run(changed, three_sources, "--data.mixture", second, *later) == 0
    assert consumed(changed) == consumed(whole)
    assert weights(changed) == weights(whole)
    assert run(changed, three_sources, *later) == 2  # without any mixture


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_many_kills(tmp_path: Path, corpus: Path, workers: int, accumulation: int) -> None:
    check_kills(tmp_path, corpus, workers, accumulation, count=10)


def test_stopped_by_max_steps_goes_on_with_more(tmp_path: Path, corpus: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole, corpus, "--data.validate_every", "100") == 0
    assert run(parts, corpus, "--data.validate_every", "100", "--trainer.max_steps", "9") == 0
    # Either way a run ends with a validation.
    assert [row["val_loss"] != "" for row in metrics(whole)] == [False] * (STEPS - 1) + [True]
    assert [row["val_loss"] != "" for row in metrics(parts)] == [False] * 8 + [True]
    assert run(parts, corpus, "--data.validate_every", "100", "--ckpt_path", "last") == 0
    assert weights(parts) == weights(whole)
    assert consumed(parts) == consumed(whole)
    assert [row["train_loss"] for row in metrics(parts)] == [row["train_loss"] for row in metrics(whole)]


def test_accumulation_may_change_on_resume(tmp_path: Path, corpus: Path) -> None:
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    small = ["--data.global_batch_tokens", str(2 * 32 * 3), "--data.tokens", str(2 * 32 * 3 * STEPS)]
    assert run(whole, corpus, *small) == 0
    assert run(changed, corpus, *small, "--trainer.max_steps", "8") == 0
    assert run(changed, corpus, *small, "--data.micro_batch_size", "6", "--ckpt_path", "last") == 0
    ids = [i for _, batch in sorted(consumed(whole).items()) for i in batch]
    assert [int(row["step"]) for row in metrics(changed)] == list(range(1, STEPS + 1))
    lines = (changed.parent / "changed.ids").read_text().splitlines()
    assert [i for line in lines for i in json.loads(line)[1]] == ids
    for a, b in zip(metrics(whole), metrics(changed), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=2e-3)  # bf16, other batch shapes


def test_resuming_an_earlier_checkpoint_sets_later_ones_aside(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--checkpoint.keep_last", "9", "--trainer.max_steps", "16") == 0
    early = folder / "checkpoints" / "step-00000004.ckpt"
    assert run(folder, corpus, "--trainer.max_steps", "8", "--ckpt_path", str(early)) == 0
    names = sorted(f.name for f in (folder / "checkpoints").glob("step-*"))
    assert names == ["step-00000004.ckpt", "step-00000008.ckpt"]
    assert (folder / "checkpoints" / "abandoned-step-00000016.ckpt").exists()


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty"])
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, corpus: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--checkpoint.keep_last", "9", "--trainer.max_steps", "16") == 0
    whole = metrics(folder)
    files = checkpoints(folder / "checkpoints")
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 1
    files[-1].write_bytes({"flipped": content, "truncated": content[: len(content) // 2], "empty": b""}[harm])
    assert damage(files[-2]) is None and damage(files[-1]) is not None
    assert run(folder, corpus, "--ckpt_path", str(files[-1])) == 2
    assert run(folder, corpus, "--trainer.max_steps", "16", "--ckpt_path", "last") == 0
    assert metrics(folder) == whole
    for file in checkpoints(folder / "checkpoints"):
        file.write_bytes(b"PK")
    assert run(folder, corpus, "--ckpt_path", "last") == 2


def test_nothing_to_resume_and_a_used_folder(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--ckpt_path", "last") == 2
    assert run(folder, corpus, "--trainer.max_steps", "1") == 0
    assert run(folder, corpus) == 2


@pytest.mark.parametrize(
    "change", [["--data.seq_len", "16"], ["--data.seed", "5"], ["--model.transformer.num_heads", "4"]]
)
def test_what_must_not_change_is_refused(tmp_path: Path, corpus: Path, change: list[str]) -> None:
    folder = tmp_path / "run"
    assert run(folder, corpus, "--trainer.max_steps", "4") == 0
    assert run(folder, corpus, "--ckpt_path", "last", *change) == 2


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path: Path, corpus: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, corpus, accumulation=3) == 0
    assert run(stopped, corpus, kill=["interrupt", 20], accumulation=3) == 130  # in step 7
    assert sorted(f.name for f in (stopped / "checkpoints").glob("step-*"))[-1] == "step-00000007.ckpt"
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert run(stopped, corpus, "--ckpt_path", "last", accumulation=3) == 0
    assert metrics(stopped) == metrics(whole)
    assert weights(stopped) == weights(whole)


def test_sigterm_saves_the_step_and_asks_to_be_requeued(tmp_path: Path, corpus: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, corpus, accumulation=3) == 0
    assert run(stopped, corpus, kill=["terminate", 20, 0], accumulation=3) == Preempted.status  # in step 7
    assert sorted(f.name for f in (stopped / "checkpoints").glob("step-*"))[-1] == "step-00000007.ckpt"
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert run(stopped, corpus, "--ckpt_path", "last", accumulation=3) == 0
    assert metrics(stopped) == metrics(whole)
    assert weights(stopped) == weights(whole)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path: Path, corpus: Path, rank: int) -> None:
    folder = tmp_path / "run"
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    assert run(folder, corpus, *two, kill=["terminate", 3, rank], accumulation=2) == Preempted.status
    # It came as the third step began, before which the processes ask each other.
    assert [f.name for f in (folder / "checkpoints").glob("step-*")] == ["step-00000002.ckpt"]
    assert run(folder, corpus, *two, "--ckpt_path", "last", accumulation=2) == 0
    steps = [row["step"] for row in metrics(folder)]
    assert steps == sorted(set(steps), key=int)
