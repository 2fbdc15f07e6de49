"""How people use single parts: subclass ours, our data under their module, our callbacks under
their trainer."""

from __future__ import annotations

import csv
import gc
import json
import shutil
import signal
from collections import UserDict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import transformers
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn

from lit_llm import (
    Checkpoint,
    CSVLogger,
    FreezeGarbage,
    PretrainDataModule,
    PretrainModule,
    ProgressBar,
    RunReport,
    SampleCallback,
    ThroughputCallback,
    Tokenizer,
    Transformer,
    UserError,
)
from lit_llm.corpus.output.shards import read_tokens
from lit_llm.errors import Preempted
from lit_llm.training.callbacks.throughput import _first_tensor
from lit_llm.training.from_data import take_from_data

TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}


def trainer(folder: Path, **kwargs) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return L.Trainer(default_root_dir=folder, **{**defaults, **kwargs})


def data(corpus: Path, steps: int = 6, **kwargs) -> PretrainDataModule:
    defaults = {
        "corpus": str(corpus),
        "seq_len": 32,
        "micro_batch_size": 4,
        "tokens": 32 * 4 * steps,
    }
    return PretrainDataModule(**{**defaults, "eval_batch_size": 64, **kwargs})


class ZLossModule(PretrainModule):
    """The usual loss plus PaLM's z-loss: all it takes to try another objective."""

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.network(batch["input_ids"]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        return loss + 1e-2 * logits.logsumexp(-1).square().sum()


def test_a_subclass_overriding_compute_loss(tmp_path: Path, corpus: Path) -> None:
    losses = {}
    for cls in (PretrainModule, ZLossModule):
        L.seed_everything(0)
        module = cls(TINY)
        run = trainer(tmp_path, limit_val_batches=1)
        run.fit(module, data(corpus))
        losses[cls] = run.callback_metrics["val_loss"]
    assert losses[ZLossModule] != losses[PretrainModule]


class OwnOptimizerModule(PretrainModule):
    """The most ordinary override of all."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)


def test_own_optimizer_and_the_trainers_default_epochs(tmp_path: Path, corpus: Path) -> None:
    run = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
    )
    run.fit(OwnOptimizerModule(TINY), data(corpus, steps=5))
    with open(tmp_path / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    assert [row["lr"] for row in rows] == ["0.25"] * 5  # and not a thousand epochs


class TheirModule(L.LightningModule):
    """Somebody's bigram model."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(
            self.table(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
        )
        self.log("loss", loss)
        return loss

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.log(
            "val_loss",
            F.cross_entropy(
                self.table(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten()
            ),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def test_our_data_under_their_module(tmp_path: Path, corpus: Path) -> None:
    run = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    run.fit(TheirModule(512), data(corpus, steps=60, global_batch_tokens=32 * 4 * 2))
    assert (run.global_step, run.accumulate_grad_batches) == (30, 2)
    with open(tmp_path / "metrics.csv") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    assert sum(losses[-5:]) < sum(losses[:5])  # single batches differ by more than six steps teach


def test_our_callbacks_under_their_trainer_and_model(tmp_path: Path) -> None:
    samples = torch.randint(0, 20, (64, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": s[:-1], "labels": s[1:]} for s in samples]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    callbacks = [
        Checkpoint(every_steps=5, keep_last=2),
        ThroughputCallback(),
        SampleCallback(),
        ProgressBar(),
        RunReport(),
    ]
    run = trainer(
        tmp_path, callbacks=callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=4, max_epochs=2
    )
    run.fit(TheirModule(20), loader, loader)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt", "step-00000030.ckpt", "step-00000032.ckpt",
    ]  # fmt: skip
    assert (tmp_path / "report.html").exists()
    with open(tmp_path / "metrics.csv") as file:
        rates = [
            float(row["tokens_per_second"])
            for row in csv.DictReader(file)
            if row["tokens_per_second"]
        ]
    assert len(rates) == 8 and min(rates) > 0
    # And Lightning itself resumes from our checkpoint.
    again = trainer(tmp_path, max_epochs=3)
    again.fit(TheirModule(20), loader, ckpt_path=tmp_path / "checkpoints" / "step-00000030.ckpt")
    assert again.global_step == 48


def test_our_module_with_their_data(tmp_path: Path) -> None:
    samples = torch.randint(0, 20, (16, 9))
    rows = [{"input_ids": s[:-1], "labels": s[1:]} for s in samples]
    module = PretrainModule(
        {**TINY, "vocab_size": 20, "max_seq_len": 8}, optimizer="adamw", schedule="cosine"
    )
    run = trainer(tmp_path, max_steps=4, max_epochs=-1)
    run.fit(
        module,
        torch.utils.data.DataLoader(rows, batch_size=4),
        torch.utils.data.DataLoader(rows, batch_size=4),
    )
    assert run.global_step == 4


def test_a_checkpoint_opens_without_trainer_or_data(tmp_path: Path, corpus: Path) -> None:
    module = PretrainModule(TINY)
    run = trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=1)
    run.fit(module, data(corpus))
    file = tmp_path / "checkpoints" / "step-00000006.ckpt"
    torch.load(file, weights_only=True)  # plain data and tensors alone
    again = PretrainModule.load_from_checkpoint(file, weights_only=True)
    ids = torch.randint(0, 512, (1, 32))
    with torch.no_grad():
        assert torch.equal(again.network.eval()(ids), module.network.eval()(ids))


def test_final_is_what_transformers_loads(tmp_path: Path, corpus: Path) -> None:
    module, source = PretrainModule("nano-5m"), data(corpus, steps=2)
    trainer(tmp_path, callbacks=[Checkpoint()], limit_val_batches=1).fit(module, source)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "final", dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "final")
    text = "import os\n\n\ndef main():\n    return os.getcwd()  # ☃\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert (
        ids[0].tolist()
        == source.tokenizer.encode(text)
        == Tokenizer.from_pretrained(tmp_path / "final").encode(text)
    )
    with torch.no_grad():
        expected = module.network.eval()(ids)
        torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            Transformer.from_pretrained(tmp_path / "final")(ids), expected, atol=1e-5, rtol=0
        )


def test_init_from_continues_a_finished_model(tmp_path: Path, corpus: Path) -> None:
    first = trainer(tmp_path / "a", callbacks=[Checkpoint()])
    first.fit(PretrainModule(TINY), data(corpus, steps=30))
    second = trainer(tmp_path / "b", callbacks=[Checkpoint()])
    continued = PretrainModule(init_from=str(tmp_path / "a" / "final"))
    second.validate(continued, data(corpus), verbose=False)
    assert float(second.callback_metrics["val_loss"]) == pytest.approx(
        float(first.callback_metrics["val_loss"]), abs=1e-6
    )


def test_a_tokenizer_that_cannot_be_compared_is_told(tmp_path: Path, corpus: Path) -> None:
    data = PretrainDataModule(corpus=str(corpus), seq_len=32, tokens=64, micro_batch_size=1)
    fields = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 512}
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"its vocab\.json is not read, so it is not known"):
        take_from_data(fields, data, str(tmp_path))


def test_a_continued_checkpoint_opens_without_what_it_started_from(
    tmp_path: Path, corpus: Path
) -> None:
    trainer(tmp_path / "a", callbacks=[Checkpoint()], limit_val_batches=0).fit(
        PretrainModule(TINY), data(corpus)
    )
    second = PretrainModule(init_from=str(tmp_path / "a" / "final"))
    trainer(tmp_path / "b", callbacks=[Checkpoint()], limit_val_batches=0).fit(second, data(corpus))
    shutil.rmtree(tmp_path / "a")
    again = PretrainModule.load_from_checkpoint(
        tmp_path / "b" / "checkpoints" / "step-00000006.ckpt"
    )
    for a, b in zip(again.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_accumulation_gives_the_same_run(tmp_path: Path, corpus: Path) -> None:
    losses = []
    for micro_batch_size in (8, 2):
        L.seed_everything(0)
        run = trainer(tmp_path, limit_val_batches=1)
        module = PretrainModule(TINY, optimizer="adamw")
        run.fit(
            module,
            data(corpus, steps=20, micro_batch_size=micro_batch_size, global_batch_tokens=32 * 8),
        )
        losses.append(float(run.callback_metrics["val_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_clipping_in_every_precision(tmp_path: Path, corpus: Path, precision: str) -> None:
    class Watched(PretrainModule):
        norms: list[float] = []

        def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
            norm = torch.nn.utils.get_total_norm(
                [p.grad for p in self.parameters() if p.grad is not None]
            )
            if self.grad_norm is not None:
                self.norms.append(float(norm))
                assert float(self.grad_norm) > 1e-3  # it had something to clip

    module = Watched(TINY, grad_clip=1e-3)
    module.norms = []
    trainer(tmp_path, precision=precision, limit_val_batches=0).fit(module, data(corpus))
    clipped = [n for n in module.norms if n > 0]
    assert clipped and max(clipped) <= 1.02e-3


class Batch(UserDict):
    """As a Hugging Face tokenizer returns."""


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        (Batch(text=["a"], input_ids=torch.zeros(2, 3)), 6),
        ({"names": ["a", "b"], "x": [torch.zeros(4)]}, 4),
        (["only", "text"], 0),
    ],
)
def test_tokens_of_other_peoples_batches(batch: object, tokens: int) -> None:
    found = _first_tensor(batch)
    assert (0 if found is None else found.numel()) == tokens


def test_several_named_validation_loaders(tmp_path: Path) -> None:
    samples = torch.randint(0, 20, (16, 9))
    rows = [{"input_ids": s[:-1], "labels": s[1:]} for s in samples]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    module = PretrainModule({**TINY, "vocab_size": 20, "max_seq_len": 8})
    metrics = trainer(tmp_path).validate(
        module, CombinedLoader({"one": loader, "two": loader}, "sequential")
    )[0]
    assert metrics["val_loss/0"] == metrics["val_loss/1"] == pytest.approx(metrics["val_loss"])


def test_samples_begin_as_the_validation_documents_do(tmp_path: Path, corpus: Path) -> None:
    source = data(corpus)
    trainer(tmp_path, callbacks=[SampleCallback(max_new_tokens=2)], limit_val_batches=1).fit(
        PretrainModule(TINY), source
    )
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    text = source.tokenizer.decode(
        read_tokens(next(iter(source.corpus.validation_dirs.values())))[:100_000]
    )
    # The standard library is the text, which differs between versions of Python.
    splits = source.corpus.datacard["splits"]["validation"]
    documents = sum(part["documents"] for part in splits.values())
    assert len({row["prompt"] for row in rows}) == min(3, documents)
    assert all(row["prompt"] in text for row in rows)


def test_a_limit_of_time_saves_and_ends_as_a_scheduler_would(tmp_path: Path, corpus: Path) -> None:
    callbacks = [Checkpoint(max_minutes=1e-9)]
    with pytest.raises(Preempted, match="saved step 1: "):
        trainer(tmp_path, callbacks=callbacks).fit(
            PretrainModule(TINY, compile=False), data(corpus)
        )
    assert [file.name for file in (tmp_path / "checkpoints").glob("step-*")] == [
        "step-00000001.ckpt"
    ]


def test_stopped_before_its_first_step_a_run_can_be_resumed(tmp_path: Path, corpus: Path) -> None:
    class Stops(Checkpoint):
        def on_train_start(self, *args: Any) -> None:
            super().on_train_start(*args)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Preempted, match="saved step 0: "):
        trainer(tmp_path, callbacks=[Stops()]).fit(
            PretrainModule(TINY, compile=False), data(corpus)
        )
    again = trainer(tmp_path, callbacks=[Checkpoint()])
    file = tmp_path / "checkpoints" / "step-00000000.ckpt"
    again.fit(PretrainModule(TINY, compile=False), data(corpus), ckpt_path=file, weights_only=False)
    assert again.global_step == 6
    with pytest.raises(UserError, match="max_minutes"):
        Checkpoint(max_minutes=0)


def test_what_is_there_after_the_first_step_is_frozen_until_the_end(
    tmp_path: Path, corpus: Path
) -> None:
    frozen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, *args: object) -> None:
            frozen.append(gc.get_freeze_count())

    before = gc.get_freeze_count()
    run = trainer(tmp_path, callbacks=[FreezeGarbage(), Watch()], enable_checkpointing=False)
    run.fit(PretrainModule(TINY, compile=False), data(corpus, steps=3))
    assert frozen[0] == before and min(frozen[1:]) > before + 10_000
    assert gc.get_freeze_count() == 0
