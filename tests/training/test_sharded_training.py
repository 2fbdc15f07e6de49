"""Sharded checkpoints: each process writes its shards, and any number of processes resumes from
them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from lit_llm import Checkpoint, FSDP2Strategy, PretrainModule, UserError
from lit_llm.lightning_internals import has_own_format
from lit_llm.models.parallel.sharded_checkpoint import (
    MANIFEST,
    Divided,
    discard,
    put,
    read_shards,
    write_share,
)
from lit_llm.training.callbacks import checkpoint as callback
from lit_llm.training.callbacks.checkpoint_folder import checkpoints, damage, newest_whole, tidy
from tests.processes import run_processes

STEPS = 6
# Five heads' worth of rows that four processes share unevenly, and norms.
SHAPE = {"vocab_size": 37, "hidden_size": 24, "num_layers": 2, "num_heads": 2, "max_seq_len": 16}


def _nothing_whole(tensor: DTensor, **kwargs: Any) -> Any:
    raise AssertionError("gathered while saving")


class Saver(Checkpoint):
    """Sees to it that nothing is gathered while it saves parts, and remembers the loss of each
    step."""

    def __init__(self, folder: Path) -> None:
        super().__init__(every_steps=2, keep_last=3, monitor=None, final=False, dirpath=str(folder))
        self.losses: dict[int, float] = {}

    def _write(self, trainer: L.Trainer, name: str) -> None:
        full = DTensor.full_tensor
        if getattr(trainer.strategy, "_sharded", False):
            DTensor.full_tensor = _nothing_whole  # type: ignore[method-assign, assignment]
        try:
            super()._write(trainer, name)
        finally:
            DTensor.full_tensor = full  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, module, outputs, *args)
        self.losses[trainer.global_step] = float(outputs["loss"])


def fit(
    folder: Path,
    strategy: Any = "auto",
    steps: int = STEPS,
    start: Path | None = None,
    optimizer: Any = "adamw",
    saver: L.Callback | None = None,
) -> tuple[L.Trainer, dict[int, float]]:
    """Train on one batch, every process on the same: so that their number does not matter. Returns
    losses by step."""
    L.seed_everything(1, verbose=False)
    saver = saver or Saver(folder)
    world = dist.get_world_size() if dist.is_initialized() else 1
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_steps=steps, max_epochs=1,
        logger=False, callbacks=[saver], log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
    )  # fmt: skip
    ids = torch.arange(16) * 5 % 37
    batches = torch.utils.data.DataLoader([{"input_ids": ids[:-1], "labels": ids[1:]}] * 40)
    module = PretrainModule(
        SHAPE,
        optimizer=optimizer,
        learning_rate=1e-3,
        compile=False,
        tokens=600,
        global_batch_tokens=15,
    )
    trainer.fit(
        module, batches, ckpt_path=None if start is None else str(start), weights_only=False
    )
    return trainer, getattr(saver, "losses", {})


def processes(number: int, check: Callable[[Path], None], tmp_path: Path) -> None:
    """Run ``check`` in as many processes, which Lightning takes for torchrun's."""
    run_processes(_enter, (number, check, tmp_path), number)


def _enter(rank: int, number: int, check: Callable[[Path], None], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "x", "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}{number}", rank=rank, world_size=number
    )
    check(tmp_path)


def step(folder: Path, number: int) -> Path:
    return folder / f"step-{number:08d}.ckpt"


def same(path: Path, other: Path, exact: bool) -> None:
    """Weights and optimizer states of two checkpoints."""
    a, b = read_shards(path), read_shards(other)
    states = [{**c["state_dict"], **{(n, k): v for n, s in c["optimizer_states"][0]["state"].items()
               for k, v in s.items()}} for c in (a, b)]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        # Adam divides gradients near zero by their own size.
        torch.testing.assert_close(
            value, states[1][name], rtol=0 if exact else 1e-3, atol=0 if exact else 1e-5
        )


def _two(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon_adamw"):
        root = tmp_path / optimizer
        run = partial(fit, optimizer=optimizer)
        _, losses = run(root / "two", FSDP2Strategy())
        _, again = run(root / "again", FSDP2Strategy(), start=step(root / "two", 2))
        assert again == {s: loss for s, loss in losses.items() if s > 2}
        same(step(root / "again", STEPS), step(root / "two", STEPS), exact=True)
        _, cut = run(
            root / "cut", FSDP2Strategy(tensor_parallel_size=2), start=step(root / "two", 2)
        )
        assert cut == pytest.approx(again, rel=1e-5)
        _, whole = run(
            root / "whole", FSDP2Strategy(checkpoint="whole"), start=step(root / "cut", 4)
        )
        assert whole == pytest.approx({s: loss for s, loss in losses.items() if s > 4}, rel=1e-5)
        assert step(root / "whole", STEPS).is_file()
    # The Trainer's own callback has the same strategy: it waits for the disk.
    theirs = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "theirs", filename="x", every_n_train_steps=2
    )
    fit(tmp_path / "theirs", FSDP2Strategy(), steps=2, saver=theirs)
    assert damage(tmp_path / "theirs" / "x.ckpt") is None


@pytest.mark.slow
def test_any_number_of_processes_goes_on(tmp_path: Path) -> None:
    processes(2, _two, tmp_path)
    for optimizer in ("adamw", "muon_adamw"):
        root = tmp_path / optimizer
        _, one = fit(root / "one", optimizer=optimizer)
        _, losses = fit(root / "more", start=step(root / "cut", 4), optimizer=optimizer)
        assert losses == pytest.approx({s: one[s] for s in (5, 6)}, rel=1e-5)
        assert step(root / "more", STEPS).is_file()
        assert not list(root.glob("**/*.part"))
    assert step(root / "two", 2).is_dir() and damage(step(root / "two", 2)) is None


# ---- what goes wrong
# ----------------------------------------------------------------------------------------------


def _full_disk(tmp_path: Path) -> None:
    real = callback.write_share

    def write_share(share: Any, folder: Path, rank: int) -> Any:
        written = real(share, folder, rank)
        if rank == 1 and "00000004" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    callback.write_share = write_share
    try:
        fit(tmp_path / "full", FSDP2Strategy())
    except UserError as error:
        assert dist.get_rank() == 0
        assert "step-00000004.ckpt: the checkpoint could not be written" in str(error)
        assert (
            "process 1: " in str(error)
            and "No space left" in str(error)
            and "step-00000002.ckpt" in str(error)
        )
    except SystemExit as ended:
        assert dist.get_rank() == 1 and ended.code == 0
    else:
        pytest.fail("went on")


def _killed(tmp_path: Path) -> None:
    real = callback.write_share

    def write_share(share: Any, folder: Path, rank: int) -> Any:
        written = real(share, folder, rank)
        if rank == 1 and "00000004" in folder.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    callback.write_share = write_share
    fit(tmp_path / "killed", FSDP2Strategy())


@pytest.mark.slow
def test_a_disk_full_on_one_process_ends_all(tmp_path: Path) -> None:
    processes(2, _full_disk, tmp_path)
    assert [f.name for f in sorted((tmp_path / "full").iterdir())] == ["step-00000002.ckpt"]
    assert damage(step(tmp_path / "full", 2)) is None


def test_killed_while_it_writes(tmp_path: Path) -> None:
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        processes(2, _killed, tmp_path)
    folder = tmp_path / "killed"
    assert (folder / "step-00000004.ckpt.part").is_dir()
    newest, reasons = newest_whole(folder)
    assert newest == step(folder, 2)
    assert reasons == [
        f"{step(folder, 4)}.part is damaged (it has no manifest.json: it was not finished)"
    ]
    fit(folder, start=newest)
    assert not list(folder.glob("*.part")) and checkpoints(folder)[-1] == step(folder, STEPS)


@pytest.mark.parametrize(
    "strategy", [ModelParallelStrategy(), FSDPStrategy(state_dict_type="sharded")]
)
def test_strategies_that_write_a_format_of_their_own_are_refused(
    tmp_path: Path, strategy: Any
) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy, default_root_dir=tmp_path)
    with pytest.raises(
        UserError, match=f"trainer.strategy: .* {type(strategy).__name__} .* set it to fsdp2"
    ):
        Checkpoint().setup(trainer, L.LightningModule(), "fit")
    assert not has_own_format(FSDP2Strategy()) and not has_own_format(FSDPStrategy())


@pytest.mark.parametrize("written", ['{"files": {}}', '{"files": '])
def test_a_folder_whose_name_alone_was_missing_gets_it(tmp_path: Path, written: str) -> None:
    folder = tmp_path / "best.ckpt.part"
    folder.mkdir()
    (folder / MANIFEST).write_text(written)
    tidy(tmp_path)
    assert (tmp_path / "best.ckpt" / MANIFEST).exists() == written.endswith("}")
    assert not folder.exists()


def whole_folder(folder: Path) -> None:
    files = write_share(Divided({}, folder.name), folder, 0)
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


def test_beside_a_broken_one_what_is_whole_gets_the_name(tmp_path: Path) -> None:
    whole_folder(tmp_path / "best.ckpt.part")
    (tmp_path / "best.ckpt").mkdir()
    tidy(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"] and damage(
        tmp_path / "best.ckpt"
    ) is None


@pytest.mark.parametrize("by_file", [False, True])
def test_killed_while_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_file: bool
) -> None:
    """At each change of the file system that it takes: one of the two is always whole, and a start
    names it."""

    class Killed(BaseException):
        pass

    left = 0

    def counted(change: Callable[..., None]) -> Callable[..., None]:
        def changing(*args: Any, **kwargs: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            change(*args, **kwargs)

        return changing

    best, part = tmp_path / "best.ckpt", tmp_path / "best.ckpt.part"
    for killed_at in itertools.count():
        whole_folder(best)
        if by_file:
            torch.save({}, part)
        else:
            whole_folder(part)
        left, done = killed_at, False
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for name in ("unlink", "rmdir", "rename", "replace"):
                patch.setattr(os, name, counted(getattr(os, name)))
            put(part, best)
            done = True
        tidy(tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"] and damage(best) is None
        if done:
            break
        discard(best)
    assert killed_at > 3


def test_a_folder_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, part = tmp_path / "best.ckpt", tmp_path / "best.ckpt.part"
    whole_folder(best)
    whole_folder(part)

    def fails(*paths: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "replace", fails)
        put(part, best)
    assert damage(best) is None
    # As a kill would leave it, and the part gone since
    best.rename(tmp_path / "best.ckpt.replaced")
    discard(part)
    tidy(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"] and damage(best) is None
