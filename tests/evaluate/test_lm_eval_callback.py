"""LMEvalCallback in a fit: what it logs, when, and that training does not notice."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lit_llm import (
    Checkpoint,
    CSVLogger,
    PretrainDataModule,
    PretrainModule,
    Transformer,
    TransformerConfig,
    UserError,
)
from lit_llm.evaluate.callback import LMEvalCallback, _model_and_tokenizer
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.run import load_tasks, metric_rows, run_task

TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 2}


def fit(
    folder: Path,
    corpus: Path,
    callbacks: list[L.Callback],
    steps: int = 6,
    ckpt_path: Path | None = None,
    **kwargs,
) -> PretrainModule:
    L.seed_everything(0, verbose=False)
    module = PretrainModule(TINY, optimizer="adamw")
    data = PretrainDataModule(
        corpus=str(corpus),
        seq_len=128,
        micro_batch_size=2,
        tokens=128 * 2 * steps,
        validate_every=2,
        eval_batch_size=64,
    )
    trainer = L.Trainer(
        default_root_dir=folder, accelerator="cpu", logger=CSVLogger(folder),
        enable_model_summary=False, enable_progress_bar=False, limit_val_batches=1,
        callbacks=callbacks, log_every_n_steps=1, **kwargs,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


def evaluations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def test_every_validation_is_logged_and_training_goes_on_the_same(
    tmp_path: Path, corpus: Path
) -> None:
    plain = fit(tmp_path / "plain", corpus, [])
    names = ["stdlib_choice", "stdlib_complete"]
    watched = fit(
        tmp_path / "watched", corpus, [LMEvalCallback(names, limit=3, max_batch_tokens=64)]
    )
    for one, other in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    rows = evaluations(tmp_path / "watched")
    assert [(row["step"], row["task"], row["metric"]) for row in rows] == [
        (step, task, metric)
        for step in (2, 4, 6)
        for task, metric in (
            ("stdlib_choice", "acc"),
            ("stdlib_choice", "acc_norm"),
            ("stdlib_complete", "exact_match"),
        )
    ]
    assert all(set(row) == {"step", "task", "metric", "value", "stderr"} for row in rows)
    with open(tmp_path / "watched" / "metrics.csv") as file:
        logged = {int(row["step"]): row for row in csv.DictReader(file)}
    for row in rows:
        assert float(logged[row["step"]][f"eval/{row['task']}/{row['metric']}"]) == row["value"]
    assert logged[3]["eval/stdlib_choice/acc"] == ""


class Known(L.Callback):
    """Which values of tasks other callbacks see after each validation."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen[trainer.global_step] = {
            name: float(v) for name, v in trainer.callback_metrics.items() if "eval/" in name
        }


def test_the_best_checkpoint_by_a_task(tmp_path: Path, corpus: Path) -> None:
    """Values are known at the validations that measured them, and only there."""
    known, name = Known(), "eval/stdlib_choice/acc_norm"
    tasks = LMEvalCallback(["stdlib_choice"], every_steps=3, limit=20)
    saves = Checkpoint(monitor=name, mode="max")
    fit(tmp_path, corpus, [tasks, known, saves], steps=8)
    written = {row["step"]: row["value"] for row in evaluations(tmp_path)
               if row["metric"] == "acc_norm"}  # fmt: skip
    assert {step: seen[name] for step, seen in known.seen.items() if seen} == pytest.approx(written)
    assert list(written) == [4, 6] and not known.seen[2] and not known.seen[8]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == max(written, key=lambda step: written[step])
    assert saves.best_score == pytest.approx(max(written.values()))


def test_every_steps_and_resume(tmp_path: Path, corpus: Path) -> None:
    mine = LMEvalCallback(["stdlib_choice"], every_steps=3, limit=2)
    fit(tmp_path, corpus, [mine, Checkpoint(every_steps=5, keep_last=9)], steps=8)
    whole = evaluations(tmp_path)
    # Validations come at 2, 4, 6 and 8: the first after 3 and the first after 6, which is 6 itself.
    assert [row["step"] for row in whole] == [4, 4, 6, 6]
    with open(tmp_path / "evaluations.jsonl", "a") as file:
        file.write('{"step": 8, "ta')  # killed while it wrote
    again = LMEvalCallback(["stdlib_choice"], every_steps=3, limit=2)
    fit(
        tmp_path,
        corpus,
        [again],
        steps=8,
        ckpt_path=tmp_path / "checkpoints" / "step-00000005.ckpt",
    )
    assert evaluations(tmp_path) == whole
    assert again.last_step == 6


def test_a_task_that_fails_is_told_and_training_goes_on(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lit_llm.evaluate.callback as callback

    said: list[str] = []
    monkeypatch.setattr(callback, "rank_zero_info", said.append)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"question": "one", "answer": "two"}\n')
    (folder / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}, cache_dir: "
        f"{folder}/arrow}}\n"
        "doc_to_text: question\ndoc_to_target: answer\ngeneration_kwargs: {until: [x], num_beams: "
        "4}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    mine = LMEvalCallback(["broken", "stdlib_choice"], limit=1, include=[str(folder)])
    fit(tmp_path / "run", corpus, [mine], steps=2)
    start = (
        "LMEvalCallback: step 2: broken failed, training continues: UserError: generation_kwargs: "
    )
    start += "num_beams=4 is not"
    assert len(said) == 1 and said[0].startswith(start) and "\n" not in said[0]
    assert {row["task"] for row in evaluations(tmp_path / "run")} == {"stdlib_choice"}


def test_examples_before_the_question(tmp_path: Path, corpus: Path) -> None:
    mine = LMEvalCallback(["stdlib_choice"], limit=1, num_fewshot=2)
    fit(tmp_path, corpus, [mine], steps=2)
    assert mine.loaded["stdlib_choice"]["tasks"]["stdlib_choice"].get_config("num_fewshot") == 2
    assert len(evaluations(tmp_path)) == 2


class OwnModule(L.LightningModule):
    """Somebody's module: its model is found through ``logits`` alone."""

    max_seq_len = 128

    def __init__(self) -> None:
        super().__init__()
        self.body = Transformer(TransformerConfig(vocab_size=512, max_seq_len=128, **TINY))
        for parameter in self.body.parameters():
            nn.init.normal_(parameter, std=0.3)

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.body(input_ids)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.logits(batch["input_ids"]).flatten(0, 1)
        return nn.functional.cross_entropy(logits, batch["labels"].flatten().long())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_any_module_with_logits(tmp_path: Path, corpus: Path) -> None:
    """Its values are those that trees and the engine give for the same weights."""
    names = ["stdlib_choice", "stdlib_complete", "stdlib_rolling"]
    torch.manual_seed(0)
    module = OwnModule()
    data = PretrainDataModule(corpus=str(corpus), seq_len=128, micro_batch_size=2, tokens=128 * 4,
                              validate_every=2, eval_batch_size=64)  # fmt: skip
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_model_summary=False,
        enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=1,
        callbacks=[LMEvalCallback(names, limit=6, max_batch_tokens=300)],
    )  # fmt: skip
    trainer.fit(module, data)
    lm = HarnessLM(module.body, data.tokenizer)
    for name, task in load_tasks(names).items():
        wanted = {row["metric"]: row["value"] for row in metric_rows(run_task(lm, task, limit=6))}
        found = {row["metric"]: row["value"] for row in evaluations(tmp_path)
                 if row["task"] == name}  # fmt: skip
        assert found == pytest.approx(wanted, rel=1e-5) and found


class TheirModule(L.LightningModule):
    """Somebody's model, which is no Transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Embedding(512, 512)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        raise AssertionError("training began")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def test_mistakes_are_told_before_training(tmp_path: Path, corpus: Path) -> None:
    for bad in ({"every_steps": 0}, {"limit": 0}, {"max_batch_tokens": 0}):
        with pytest.raises(UserError, match=f"{next(iter(bad))}=0: must be from 1 to"):
            LMEvalCallback(["stdlib_choice"], **bad)
    with pytest.raises(UserError, match="name at least one"):
        fit(tmp_path, corpus, [LMEvalCallback([])])
    with pytest.raises(UserError, match="include: nowhere"):
        fit(tmp_path, corpus, [LMEvalCallback(["stdlib_choice"], include=["nowhere"])])
    data = PretrainDataModule(corpus=str(corpus), seq_len=128, micro_batch_size=2, tokens=128 * 2)
    trainer = L.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_model_summary=False,
        enable_checkpointing=False, limit_val_batches=0,
        callbacks=[LMEvalCallback(["stdlib_choice"])],
    )  # fmt: skip
    theirs = TheirModule()
    with pytest.raises(UserError, match="`network` must be a lit_llm Transformer"):
        trainer.fit(theirs, data)
    theirs.logits = theirs.network.forward  # type: ignore[assignment]
    data.seq_len = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="the module needs max_seq_len"):
        _model_and_tokenizer(trainer, theirs)
