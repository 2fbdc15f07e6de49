"""Calls of the command line in processes that die where told, forked from a server that has
imported everything."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_llm.cli import main
from lit_llm.errors import Preempted
from lit_llm.models.parallel import sharded_checkpoint as parts
from lit_llm.training import sharded_checkpoint_io as parts_io
from lit_llm.training.callbacks import background
from lit_llm.training.callbacks.throughput import ThroughputCallback
from lit_llm.training.loggers import CSVLogger
from lit_llm.training.pretrain import PretrainModule
from tests.processes import SERVER

STEPS = 24
CALL = "a call"


def run(
    folder: Path,
    corpus: Path,
    *extra: str,
    kill: list | None = None,
    workers: int = 0,
    accumulation: int = 1,
    ranks: int = 1,
    strategy: str = "ddp",
    steps: int = STEPS,
) -> int:
    """One call of ``lit_llm fit``, as ``ranks`` processes started by a launcher; returns its exit
    status.

    What the calls write goes to ``<folder>.out``, the samples they train on to ``<folder>.ids``.
    """
    args = arguments(folder, corpus, workers, accumulation, ranks, strategy, steps) + list(extra)
    return call(folder, args, kill, ranks)


def call(folder: Path, args: list[str], kill: list | None = None, ranks: int = 1) -> int:
    """`run` with these arguments, of which ``folder`` is the run's folder."""
    log = folder.with_name(f"{folder.name}.ids")
    status = together(ranks, folder.with_name(f"{folder.name}.out"), _command, args, log, kill)
    known = (0, -signal.SIGKILL, 2, 130, Preempted.status)
    assert status in known, f"{status}: {output(folder)[-3000:]}"
    return status


def together(ranks: int, out: Path, function: Callable[..., int], *args: Any) -> int:
    """``function(rank, *args)`` in processes that a launcher seems to have started; the first one's
    status.

    They are one process group. What they write is added to ``out``.
    """
    process = SERVER.Process(target=_launch, args=(ranks, out, function, args))
    process.start()
    process.join(300)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still running after 300 s: {out.read_text()[-3000:]}")
    return process.exitcode


def arguments(
    folder: Path,
    corpus: Path,
    workers: int,
    accumulation: int,
    ranks: int,
    strategy: str,
    steps: int,
) -> list[str]:
    """Of a tiny run; its global batch is 2 * accumulation * ranks samples."""
    batch = 2 * 32 * accumulation * ranks
    return [
        "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
        "--model.transformer", json.dumps({"hidden_size": 32, "num_layers": 1, "num_heads": 2}),
        "--data.corpus", str(corpus), "--data.seq_len", "32", "--data.micro_batch_size", "2",
        "--data.global_batch_tokens", str(batch), "--data.tokens", str(batch * steps),
        "--data.validate_every", "6", "--data.num_workers", str(workers), "--data.eval_batch_size",
        "64", "--checkpoint.every_steps", "4", "--trainer.log_every_n_steps", "1",
        "--trainer.limit_val_batches", "2", "--samples.max_new_tokens", "4",
        "--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu",
        "--trainer.devices", str(ranks), *(("--trainer.strategy", strategy) if ranks > 1 else ()),
    ]  # fmt: skip


def _launch(ranks: int, out: Path, function: Callable[..., int], args: tuple) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # loaders' workers: as in an ordinary call
    with open(out, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
                "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
            }  # fmt: skip
            # Lightning read the rank from the environment when the server imported it.
            rank_zero_only.rank = rank
        status = 1
        try:
            status = function(rank, *args)
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # the group's: launchers wait for what their processes make of it
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if -signal.SIGKILL in codes:  # one alone: the others have ended by what they met
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(codes[0] if codes[0] >= 0 else 128 - codes[0])


def _command(rank: int, args: list[str], log: Path, kill: list | None) -> int:
    spy(log, kill, rank)
    return main(args)


def spy(log: Path, kill: list | None, rank: int) -> None:
    """Log each micro-batch before it is trained on, and kill the run or one process where told.

    ``kill`` is one of
        ["batch", n]: as the n-th micro-batch of this call begins
        ["time", s]: s seconds after the first one began, whatever is going on
        ["save", n]: within the n-th writing of a checkpoint
        ["rename", n]: before it gets its name
        ["beside", n]: within it, once training has gone on by a micro-batch
        ["part", n], ["part", n, rank]: of one in parts, with half of that process's (the first
            one's) on disk
        ["parts", n]: once all of them are there
        ["manifest", n]: with half of the manifest on disk
        ["final", 1]: as the model is written
        ["validation", n]: within the n-th batch of a validation
        ["row", n]: within the n-th writing of metrics.csv
        ["interrupt", n, rank], ["terminate", n, rank], ["alone", n, rank]: SIGINT, SIGTERM,
            SIGKILL to that process
        ["group", n, rank]: SIGTERM, by it, to all of the run's process group
    where a rank stands, that process alone.
    """
    file = open(log, "a")  # noqa: SIM115
    if rank == 0:
        file.write(CALL + "\n")
        file.flush()
    what, when, *whom = kill or (None, 0)
    signals = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "alone": signal.SIGKILL}
    batches, done, went_on = 0, 0, threading.Event()

    def die(*_: object) -> None:
        if whom:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)

    def count(kind: str) -> bool:
        """Whether this is the moment."""
        nonlocal done
        done += kind == what
        return kind == what and done == when and [rank] == (whom or [0])

    begin, write_row, evaluate, write_model = (
        ThroughputCallback.on_train_batch_start, CSVLogger._write_row,
        PretrainModule.validation_step, PretrainModule.save_pretrained,
    )  # fmt: skip
    write_file, commit, put = parts._write, parts.commit, parts.put

    def on_train_batch_start(
        self: Any, trainer: Any, module: Any, batch: Any, batch_idx: int
    ) -> None:
        nonlocal batches
        begin(self, trainer, module, batch, batch_idx)
        micro = batch_idx % trainer.accumulate_grad_batches
        file.write(
            json.dumps([trainer.global_step, micro, rank, batch["sample_id"].tolist()]) + "\n"
        )
        file.flush()
        batches += 1
        if what == "beside" and done >= when:
            went_on.set()
        if what == "time" and batches == 1 and rank == 0:
            # No alarm: one that comes while Python ends finds no handler any more.
            timer = threading.Timer(when, die)
            timer.daemon = True
            timer.start()
        if what in signals and batches == when and rank == whom[0]:
            os.kill(os.getpid(), signals[what])
        if what == "group" and batches == when and rank == whom[0]:
            os.killpg(0, signal.SIGTERM)
        if count("batch"):
            die()

    def save(state: Any, target: Any) -> None:
        half, beside = count("save"), count("beside")
        if half or beside:
            content = io.BytesIO()
            real_save(state, content)
            target.write(content.getvalue()[: content.tell() // 2])
            target.flush()
            if beside:
                went_on.wait(10)
            die()
        real_save(state, target)

    def half_write(file: Path, pieces: Any) -> dict[str, int]:
        if count(
            "manifest"
            if file.name == parts.MANIFEST
            else "part"
            if file.name.startswith("part-")
            else "rest"
        ):
            content = b"".join(map(bytes, pieces))
            file.write_bytes(content[: len(content) // 2])
            die()
        return write_file(file, pieces)

    def commit_parts(*args: Any) -> None:
        if count("parts"):
            die()
        commit(*args)

    def rename(part: Path, target: Path) -> None:
        if count("rename"):
            die()
        put(part, target)

    def save_pretrained(self: Any, folder: Any) -> None:
        if count("final"):
            die()
        write_model(self, folder)

    def validation_step(self: Any, *args: Any, **kwargs: Any) -> None:
        evaluate(self, *args, **kwargs)
        if count("validation"):
            die()

    def cut_row(self: Any) -> None:
        write_row(self)
        if count("row"):
            with open(self.file, "rb+") as table:
                table.truncate(self.file.stat().st_size - 9)
            die()

    ThroughputCallback.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    real_save, torch.save = torch.save, save
    parts._write, parts_io.commit = half_write, commit_parts
    parts.put = background.put = rename
    PretrainModule.validation_step = validation_step  # type: ignore[method-assign]
    PretrainModule.save_pretrained = save_pretrained  # type: ignore[method-assign]
    CSVLogger._write_row = cut_row  # type: ignore[method-assign]


def output(folder: Path) -> str:
    """What all calls wrote."""
    return folder.with_name(f"{folder.name}.out").read_text()


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what depends on the clock."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for key in ("tokens_per_second", "mfu", "data_wait", "memory_gb"):
            row.pop(key)
    return rows


def consumed(folder: Path) -> list[list[int]]:
    """Sample ids of each optimizer step, as trained on last, in the order of the data."""
    steps: dict[int, dict[tuple[int, int], list[int]]] = {}
    begun: set[int] = set()  # by the call being read
    for line in folder.with_name(f"{folder.name}.ids").read_text().splitlines():
        if line == CALL:
            begun = set()
            continue
        step, micro, rank, ids = json.loads(line)
        if step not in begun:
            begun.add(step)
            steps[step] = {}
        steps[step][micro, rank] = ids
    return [[i for _, ids in sorted(steps[step].items()) for i in ids] for step in sorted(steps)]


def weights(folder: Path) -> bytes:
    """The bytes of the finished model."""
    return (folder / "final" / "model.safetensors").read_bytes()


if __name__ == "__main__":  # under a launcher: log, kill, then the command line; killed once
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    spy(
        Path(sys.argv[1]),
        json.loads(sys.argv[2]) if first else None,
        int(os.environ.get("LOCAL_RANK", "0")),
    )
    sys.exit(main(sys.argv[3:]))
