"""What may change on resume and what is refused: the table of docs/pretrain.md, a row a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from driver import consumed, metrics, output, run

from lit_llm.corpus.build import Corpus
from lit_llm.training.schedules import lr_multiplier

STEPS, BATCH, RATE = 24, 128, 6e-4 * 768 / 32
MIXTURE = ("--data.mixture", json.dumps({"a": 1, "b": 2}))
SETTINGS = ("--trainer.precision", "32-true", "--model.optimizer", "adamw", "--model.schedule",
            "cosine", "--data.validate_every", "100", "--samples.max_new_tokens", "1")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, three_sources: Path) -> Path:
    """A run stopped after 8 of 24 steps, and ``whole`` beside it, which went on to 12."""
    folder = tmp_path_factory.mktemp("policy") / "base"
    settings = (*SETTINGS, *MIXTURE)
    assert run(folder, three_sources, *settings, "--trainer.max_steps", "8", accumulation=2) == 0
    copy(folder, folder.with_name("whole"))
    again = ("--ckpt_path", "last", "--trainer.max_steps", "12")
    assert run(folder.with_name("whole"), three_sources, *settings, *again, accumulation=2) == 0
    return folder


def copy(folder: Path, other: Path) -> None:
    shutil.copytree(folder, other)
    shutil.copy(folder.with_name(f"{folder.name}.ids"), other.with_name(f"{other.name}.ids"))


ONE = {"accumulation": 2}
TWO = {"ranks": 2, "accumulation": 1}


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (["--data.tokens", str(BATCH * 48)], ONE),
        (["--data.tokens", str(BATCH * 12)], ONE),
        (["--model.learning_rate", "0.003"], ONE),
        (["--model.schedule", "wsd"], ONE),
        (["--model.weight_decay", "0.1", "--model.warmup", "0.5", "--model.final_lr", "0.5"], ONE),
        (["--data.mixture", json.dumps({"a": 1, "c": 1})], ONE),
        ([], {**ONE, "workers": 2}),
        (["--data.micro_batch_size", "4"], ONE),
        ([], TWO),
        pytest.param([], {**TWO, "strategy": "fsdp2"}, marks=pytest.mark.slow),
        pytest.param(["--model.compile", "true"], ONE, marks=pytest.mark.slow),
        (["--model.activation_checkpointing", "1", "--trainer.precision", "bf16-mixed",
          "--seed_everything", "7"],
         ONE),
        (["--spike_guard.window", "16", "--checkpoint.keep_last", "1", "--report.usd_per_hour", "3",
          "--trainer.logger", "lit_llm.training.loggers.CSVLogger", "--trainer.logger.save_dir",
          "logs"], ONE),
    ],
)  # fmt: skip
def test_may_change(
    base: Path, tmp_path: Path, three_sources: Path, change: list[str], shape: dict
) -> None:
    folder = tmp_path / "run"
    copy(base, folder)
    change = [str(folder) if word == "logs" else word for word in change]
    settings = (*SETTINGS, *MIXTURE, "--ckpt_path", "last", "--trainer.max_steps", "12", *change)
    assert run(folder, three_sources, *settings, **shape) == 0, output(folder)[-3000:]
    rows = metrics(folder)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    samples, before = consumed(folder), consumed(base.with_name("whole"))
    assert samples[:8] == before[:8] and (samples == before) == ("--data.mixture" not in change)
    # The schedule and the rate of now, at the step the run has come to.
    given = dict(zip(change[::2], change[1::2], strict=True))
    multiplier = lr_multiplier(
        given.get("--model.schedule", "cosine"),  # type: ignore[arg-type]
        int(given.get("--data.tokens", BATCH * STEPS)) // BATCH,
        warmup=float(given.get("--model.warmup", 0.02)),
        decay=0.6,
        final=float(given.get("--model.final_lr", 0.0)),
    )
    rate = float(given.get("--model.learning_rate", RATE))
    assert [float(row["lr"]) for row in rows[8:]] == pytest.approx(
        [rate * multiplier(step) for step in range(8, 12)]
    )


@pytest.mark.parametrize(
    ("change", "key", "before", "now"),
    [
        (["--data.seed", "5"], "data.seed", 0, 5),
        (["--data.seq_len", "16"], "data.seq_len", 32, 16),
        (["--data.global_batch_tokens", "256"], "data.global_batch_tokens", 128, 256),
        (["--data.mask_documents", "true"], "data.mask_documents", False, True),
        (["--data.mixture", "null"], "data.mixture", "a: 0.33, b: 0.67", None),
        (
            ["--data.mixture", '{"lib": 1}', "--data.corpus", "OTHER"],
            "data.corpus",
            "CONTENT",
            "CONTENT",
        ),
        (["--model.transformer.num_heads", "4"], "model.transformer.num_heads", 2, 4),
        (["--model.optimizer", "muon_adamw"], "model.optimizer", "adamw", "muon_adamw"),
    ],
)
def test_is_refused(
    base: Path, tmp_path: Path, three_sources: Path, corpus: Path, change: list[str], key: str,
    before: object, now: object,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    copy(base, folder)
    if key == "data.corpus":
        change, (before, now) = (
            [*change[:-1], str(corpus)],
            (Corpus.load(c).content for c in (three_sources, corpus)),
        )
    refuse(
        folder,
        three_sources,
        change,
        f"{key} was {before} when the checkpoint was written and is {now} now",
    )


def test_a_horizon_that_is_past_is_refused(base: Path, tmp_path: Path, three_sources: Path) -> None:
    copy(base, tmp_path / "run")
    said = f"data.tokens={BATCH * 7} ends before the checkpoint, which has seen {BATCH * 8}: "
    refuse(tmp_path / "run", three_sources, ["--data.tokens", str(BATCH * 7)], said)


def refuse(folder: Path, corpus: Path, change: list[str], said: str) -> None:
    files = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    status = run(
        folder, corpus, *SETTINGS, *MIXTURE, "--ckpt_path", "last", *change, accumulation=2
    )
    *_, last = output(folder).splitlines()
    assert status == 2 and last.startswith(f"lit_llm fit: {said}"), output(folder)
    assert {file: file.read_bytes() for file in files} == files  # and nothing was touched
