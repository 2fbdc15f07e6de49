"""Two gloo processes make the run that one makes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from driver import together
from safetensors.numpy import load_file
from test_spike_guard import TINY, Breaks, fit
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_llm import Checkpoint, FSDP2Strategy, PretrainModule, RunReport, SpikeGuard, UserError
from lit_llm.training.loggers import CSVLogger


def test_two_ranks_equal_one(tmp_path: Path, corpus: Path, lit_llm_command: Callable) -> None:
    runs = {}
    for ranks, micro in ((1, 8), (2, 3)):  # 3 does not divide the 4 rows a process has: it takes 2
        folder = tmp_path / f"ranks{ranks}"
        done = lit_llm_command(
            "fit", "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
            "--model.transformer", json.dumps({"hidden_size": 32, "num_layers": 1, "num_heads": 2}),
            "--model.optimizer", "adamw", "--data.corpus", corpus, "--data.seq_len", 32,
            "--data.micro_batch_size", micro, "--data.global_batch_tokens", 32 * 8, "--data.tokens",
            32 * 8 * 10, "--data.validate_every", 5, "--data.eval_batch_size", 64,
            "--trainer.log_every_n_steps", 1, "--trainer.precision", "32-true",
            "--trainer.accelerator", "cpu", "--trainer.devices", ranks, "--checkpoint.every_steps",
            5, "--trainer.strategy", "ddp" if ranks > 1 else "auto", "--trainer.default_root_dir",
            folder, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        # Validation's values are those of all processes: no advice to reduce them.
        assert "sync_dist" not in done.stderr
        assert ("micro-batches of 2 rows" in done.stderr) == (ranks == 2)
        with open(folder / "metrics.csv") as file:
            runs[ranks] = list(csv.DictReader(file))
    assert [row["step"] for row in runs[2]] == [str(step) for step in range(1, 11)]
    for one, two in zip(runs[1], runs[2], strict=True):
        for key in ("tokens", "train_loss", "val_loss", "val_bits_per_byte", "lr", "grad_norm"):
            assert (one[key] == "") == (two[key] == "")
            if one[key]:
                # AdamW: inside Muon bfloat16 products amplify a gradient that differs in its last
                # bit
                assert float(two[key]) == pytest.approx(
                    float(one[key]), rel=1e-2 if key == "grad_norm" else 1e-5
                ), key
    first, second = (
        load_file(tmp_path / f"ranks{r}" / "final" / "model.safetensors") for r in (1, 2)
    )
    assert first.keys() == second.keys()


class BreaksGradient(Breaks):
    """The gradient of some steps is not a number on the last rank, the loss is one."""

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        here = self.global_rank == 1 and self.trainer.global_step in self.broken

        def broken(grad: Tensor) -> Tensor:
            return grad * math.nan if here else grad

        def after_block(block: object, given: object, out: Tensor) -> None:
            out.register_hook(broken)

        layer = self.network.layers[0]  # type: ignore[index,union-attr]
        hook = layer.register_forward_hook(after_block)
        loss = super(Breaks, self).compute_loss(batch)
        hook.remove()
        return loss


class Watches(L.Callback):
    """On every rank: the eighth step leaves the weights it holds as they were, the ninth does
    not."""

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, *args: object
    ) -> None:
        parts = [
            p.to_local() if isinstance(p, DTensor) else p.detach() for p in module.parameters()
        ]
        assert all(part.isfinite().all() for part in parts)
        if trainer.global_step == 7:
            self.before = [part.clone() for part in parts]
        elif trainer.global_step in (8, 9):
            assert all(map(torch.equal, self.before, parts)) == (trainer.global_step == 8)
            self.last = trainer.global_step


def fit_broken(rank: int, folder: Path, corpus: Path, strategy: str, module: type[Breaks]) -> int:
    L.seed_everything(0)
    watch = Watches()
    fit(
        folder, corpus, module(TINY, compile=False), devices=2, logger=CSVLogger(folder),
        strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
        callbacks=[SpikeGuard(), Checkpoint(every_steps=4, keep_last=9), RunReport(), watch],
    )  # fmt: skip
    return 0 if watch.last == 9 else 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("module", [Breaks, BreaksGradient])
def test_what_is_broken_on_one_rank_is_skipped_on_both(
    tmp_path: Path, corpus: Path, strategy: str, module: type[Breaks]
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    assert together(2, out, fit_broken, folder, corpus, strategy, module) == 0, out.read_text()[
        -3000:
    ]
    assert "AssertionError" not in out.read_text()  # of the second rank
    assert json.loads((folder / "events.jsonl").read_text()) == {
        "step": 8,
        "event": "skipped",
        "steps": 1,
        "in_all": 1,
    }
    assert "1 step skipped" in (folder / "report.html").read_text()


def fit_back(rank: int, folder: Path, corpus: Path) -> int:
    module = Breaks(TINY, compile=False)
    module.broken = (5, 6, 7)
    callbacks = [SpikeGuard(patience=3), Checkpoint(every_steps=1, keep_last=2)]
    return (
        fit(
            folder, corpus, module, devices=2, strategy=FSDP2Strategy(), callbacks=callbacks
        ).global_step
        - 12
    )


def test_two_processes_go_back_behind_what_was_saved_while_steps_were_skipped(
    tmp_path: Path, corpus: Path
) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    assert together(2, out, fit_back, folder, corpus) == 0, out.read_text()[-3000:]
    assert (
        json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["to"]
        == "step-00000004.ckpt"
    )
    assert "Traceback" not in out.read_text()  # of the second


def fit_apart(
    rank: int, folder: Path, corpus: Path, strategy: str, starts: list[Path | None]
) -> int:
    try:
        fit(
            folder, corpus, Breaks(TINY, compile=False), starts[rank], devices=2,
            strategy=FSDP2Strategy() if strategy == "fsdp2" else strategy,
            callbacks=[Checkpoint(every_steps=4)],
        )  # fmt: skip
    except UserError as error:
        print(error, flush=True)
        return 2
    return 0


def test_processes_that_see_other_checkpoints(tmp_path: Path, corpus: Path) -> None:
    """Sharded, all take the first one's; else each reads its own, and a difference is told."""
    fit(tmp_path, corpus, PretrainModule(TINY, compile=False))
    at = {step: tmp_path / "checkpoints" / f"step-{step:08d}.ckpt" for step in (4, 8)}
    out = tmp_path / "out"
    assert (
        together(2, out, fit_apart, tmp_path / "a", corpus, "fsdp2", [at[8], tmp_path / "stale"])
        == 0
    )
    for starts, said in (
        ([at[8], at[4]], "continues from step 8, process 1 from step 4"),
        ([at[8], None], "continues from step 8, process 1 from step 0"),
    ):
        assert together(2, out, fit_apart, tmp_path / "b", corpus, "ddp", starts) == 2, (
            out.read_text()[-3000:]
        )
        assert said in out.read_text() and "Traceback" not in out.read_text()
