"""GenerationCheck in runs: what it asks, logs and writes, and the best checkpoint by its score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from driver import together

from lit_llm import (
    Checkpoint,
    CSVLogger,
    GenerationCheck,
    InstructionDataModule,
    SFTModule,
    UserError,
)


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_seq_len": 96}
    return random_base(tmp_path_factory.mktemp("base"), None, **shape)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty questions that all have the answer "yes"."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    split = ["train"] * 14 + ["validation"] * 6
    file.write_text(
        "".join(
            json.dumps({"prompt": f"Is {i} right?", "completion": "yes", "split": split[i]}) + "\n"
            for i in range(20)
        )
    )
    return file


def fit(folder: Path, base: Path, rows: Path, check: GenerationCheck, **kwargs: Any) -> L.Trainer:
    L.seed_everything(1, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=CSVLogger(folder), log_every_n_steps=1,
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0,
        callbacks=[check, Checkpoint(every_steps=5, monitor="generation/score")],
        max_steps=kwargs.pop("max_steps", -1),
        **{key: kwargs.pop(key) for key in ("devices", "strategy") if key in kwargs},
    )  # fmt: skip
    data = InstructionDataModule(
        str(rows), cache_dir=str(folder / "cache"), seq_len=96, micro_batch_size=2, epochs=20.0,
        min_steps=0, global_batch_tokens=4 * 96, validate_every=5, packing=False,
    )  # fmt: skip
    ckpt = kwargs.pop("ckpt_path", None)
    trainer.fit(SFTModule(str(base), learning_rate=3e-3, compile=False), data, ckpt_path=ckpt)
    return trainer


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def test_answers_of_the_validation_split(tmp_path: Path, base: Path, rows: Path) -> None:
    trainer = fit(tmp_path, base, rows, GenerationCheck(max_new_tokens=8))
    written = lines(tmp_path)
    steps = sorted({row["step"] for row in written})
    assert steps[:3] == [0, 5, 10] and len(written) == 6 * len(steps)
    first, last = (
        [row for row in written if row["step"] == step] for step in (steps[0], steps[-1])
    )
    assert {row["by"] for row in written} == {"rouge_l"} and {row["half"] for row in last} == {0, 1}
    assert all(row["cut"] and row["score"] == 0 and not row["copied"] for row in first)
    # What was learnt: the answer of all training rows, and then the end of the turn.
    assert all(row["answer"] == "yes" and row["score"] == 1 for row in last)
    assert all(row["copied"] and not row["cut"] for row in last)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if "generation" in k}
    assert metrics == {"generation/score": 1, "generation/other_score": 1, "generation/cut": 0,
                       "generation/repeated": 0, "generation/copied": 1}  # fmt: skip
    assert "generation/score" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    # The first validation with the highest score, not the last.
    by_step = {s: sum(r["score"] for r in written if r["step"] == s and not r["half"]) / 3
               for s in steps if s}  # fmt: skip
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    assert best == max(by_step, key=lambda step: by_step[step])


def test_a_file_of_questions_and_a_resume(tmp_path: Path, base: Path, rows: Path) -> None:
    file = tmp_path / "questions.jsonl"
    asked = [{"prompt": f"Is {i} right?", "exact": "yes"} for i in range(4)]
    asked.append({"messages": [{"role": "user", "content": "Right?"}], "pattern": "^yes"})
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def check() -> GenerationCheck:
        return GenerationCheck(str(file), count=3, max_new_tokens=4, batch_size=2)

    fit(tmp_path / "run", base, rows, check(), max_steps=10)
    before = lines(tmp_path / "run")
    assert [row["prompt"] for row in before[:3]] == ["Is 0 right?", "Is 2 right?", "Right?"]
    assert [row["by"] for row in before[:3]] == ["exact", "exact", "pattern"]
    fit(tmp_path / "run", base, rows, check(), max_steps=15, ckpt_path="last")
    after = lines(tmp_path / "run")
    assert after[: len(before)] == before and len(after) == len(before) + 3


def ranks(rank: int, folder: Path, base: Path, rows: Path) -> int:
    trainer = fit(folder, base, rows, GenerationCheck(max_new_tokens=4), max_steps=5, devices=2,
                  strategy="ddp")  # fmt: skip
    return 0 if "generation/score" in trainer.callback_metrics else 1


def test_all_processes_know_the_score(tmp_path: Path, base: Path, rows: Path) -> None:
    out = tmp_path / "out"
    assert together(2, out, ranks, tmp_path / "run", base, rows) == 0, out.read_text()[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "exact": "b", "pattern": "c"}', "questions.jsonl:1: needs exactly one"),
        ('{"exact": "b"}', "questions.jsonl:1: "),
        ('{"prompt": "a", "format": "xml"}', "questions.jsonl:1: 'format' is one of"),
        ('{"prompt": "a", "exact": "b"}', "needs at least two questions"),
    ],
)
def test_bad_questions(tmp_path: Path, base: Path, rows: Path, line: str, said: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(UserError, match=said):
        fit(tmp_path / "run", base, rows, GenerationCheck(str(file)))
    assert not (tmp_path / "run" / "generations.jsonl").exists()


def test_what_it_needs() -> None:
    with pytest.raises(UserError, match=r"checkpoint\.mode=best: must be auto, min or max"):
        Checkpoint(mode="best")  # type: ignore[arg-type]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match="needs a module with a Transformer"):
        GenerationCheck().on_train_start(trainer, L.LightningModule())


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("min", ["val_loss", "val_bits_per_byte", "eval/wikitext/word_perplexity", "forgetting/kl",
                 "generation/cut", "eval/asr/wer", "eval/truthfulqa/brier_score", None]),
        ("max", ["eval/stdlib_choice/acc", "eval/gsm8k/exact_match", "generation/score",
                 "forgetting/questions/score", "eval/answer/f1", "eval/glossary/acc_norm"]),
    ],
)  # fmt: skip
def test_the_better_value_by_its_name(mode: str, names: list[str | None]) -> None:
    for name in names:
        assert Checkpoint(monitor=name).mode == mode, name
        assert Checkpoint(monitor=name, mode="max").mode == "max"
