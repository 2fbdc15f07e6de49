"""From the command line: presets of preferences train, and a mistake in their input is one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_runs import SHAPE, write_pairs

from lit_llm import Transformer, UserError
from lit_llm.cli import main
from lit_llm.models.hub.families import FAMILIES
from lit_llm.models.hub.reward import read_reward_model
from lit_llm.models.hub.sequence_classification import FAMILIES_WITH_SCORES, architecture
from lit_llm.models.scorer import score_texts

PRESETS = {"dpo": "5e-06", "orpo": "8e-05", "simpo": "5e-06", "kto": "5e-06", "reward": "0.0001"}


@pytest.fixture(scope="module")
def base(random_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("base"), 0.2, **SHAPE)


def arguments(folder: Path, base: Path, rows: Path, *more: str) -> list[str]:
    return [
        "--model.init_from", str(base), "--data.sources", str(rows),
        "--data.cache_dir", str(folder / "cache"), "--data.seq_len", "192",
        "--data.micro_batch_size", "2", "--data.pairs_per_step", "8",
        "--data.validation_fraction", "0.2", "--trainer.max_steps", "3",
        "--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(folder / "run"), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains(
    tmp_path: Path, base: Path, preset: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = write_pairs(tmp_path / "rows.jsonl")
    status = main(["fit", "--config", f"finetune/{preset}", *arguments(tmp_path, base, rows)])
    assert status == 0, caplog.text
    assert f"finetuning: model.learning_rate={PRESETS[preset]} (" in caplog.text
    run = tmp_path / "run"
    with open(run / "metrics.csv", newline="") as file:
        steps = list(csv.DictReader(file))
    wanted = ["train_loss", "margin", "val_margin", "val_loss"]
    wanted += ["val_accuracy_low"] if preset == "reward" else ["chosen_logp", "rejected_length"]
    wanted += {"dpo": ["accuracy", "chosen_log_ratio", "loss/sigmoid"], "kto": ["kl", "loss/kto"],
               "orpo": ["loss/orpo"]}.get(preset, [])  # fmt: skip
    for name in wanted:
        assert any(step.get(name) for step in steps), name
    assert (run / "adapter").exists() == (preset != "reward")
    assert (run / "final" / "model.safetensors").exists()
    assert (run / "report.html").exists()


def test_a_reward_model_goes_to_transformers_and_back(tmp_path: Path, base: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rows = write_pairs(tmp_path / "rows.jsonl")
    given = arguments(tmp_path, base, rows, "--model.lora", "null", "--model.learning_rate", "1e-2")
    assert main(["fit", "--config", "finetune/reward", *given]) == 0
    final = tmp_path / "run" / "final"
    model, tokenizer = read_reward_model(tmp_path / "run")
    texts = [tokenizer.encode(text) for text in ("yes no maybe", "a", "the blue good bad red")]
    mine = score_texts(model, texts)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        final, dtype=torch.float32
    ).eval()
    other = transformers.AutoTokenizer.from_pretrained(final)
    padded = other.pad({"input_ids": texts}, return_tensors="pt")
    with torch.no_grad():
        scores = theirs(**padded).logits[:, 0]
    torch.testing.assert_close(mine, scores, rtol=1e-5, atol=1e-6)
    assert mine.abs().min() > 1e-4  # it has learnt something
    for path in (final, tmp_path / "run"):
        with pytest.raises(UserError, match=r"is a reward model, not a language model|is a run"):
            Transformer.from_pretrained(path)
    with pytest.raises(UserError, match="is a language model, not a reward model"):
        read_reward_model(base)


def test_families_with_a_class_for_scores() -> None:
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    known = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    for family in FAMILIES:
        if family in FAMILIES_WITH_SCORES:
            assert architecture(family) == known[family]
        else:
            with pytest.raises(UserError, match="has no class in transformers"):
                architecture(family)


# ---- mistakes ------------------------------------------------------------------------------------

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
Q, GOOD = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}

# What is wrong -> (preset, the bad row or None, more arguments, what is said).
MISTAKES: dict[str, tuple[str, dict[str, Any] | None, list[str], str]] = {
    "equal answers": ("dpo", {**PAIR, "rejected": "good"}, [],
                      "rows.jsonl:3: 'chosen' and 'rejected' are equal"),
    "answers that render equally": (
        "dpo", {**PAIR, "chosen": [GOOD], "rejected": [{**GOOD, "name": "x"}]}, [],
        "rows.jsonl:3: "),
    "an empty answer": ("dpo", {**PAIR, "rejected": ""}, [], "rows.jsonl:3: 'rejected' must be"),
    "no prompt": ("dpo", {"chosen": "good", "rejected": "bad"}, [],
                  "rows.jsonl:3: 'chosen' and 'rejected' have no common beginning"),
    "a prompt that begins neither conversation": (
        "dpo", {"prompt": [Q], "chosen": [{**Q, "content": "other"}, GOOD], "rejected": [Q, BAD]},
        [], "rows.jsonl:3: 'chosen' must begin with a message of the assistant's after the prompt"),
    "a margin that is no number": ("reward", {**PAIR, "margin": "much"}, [],
                                   "rows.jsonl:3: 'margin' must be numbers, not 'much'"),
    "a margin that is not there": ("reward", PAIR, ["--model.margin", "true"],
                                   "model.margin: 1 pairs have no 'margin'"),
    "scores that all tie": ("dpo", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, [],
                            "rows.jsonl:3: no two 'responses' of the row differ in their 'scores'"),
    "a row with a weight": ("dpo", {**PAIR, "weight": 2}, [],
                            "rows.jsonl:3: the row has the weight 2"),
    "a judged answer among pairs": (
        "dpo", {"prompt": "q", "completion": "a", "label": True}, [],
        "rows.jsonl:3: the row is one judged answer, not a pair: model.loss=kto"),
    "a row that is too long": ("dpo", {**PAIR, "chosen": "good " * 300},
                               ["--data.too_long", "raise"],
                               "data.seq_len=192; raise it, or set data.too_long=drop"),
    "an unknown loss": ("dpo", None, ["--model.loss", "dpo"], "model.loss: 'dpo' is not one of"),
    "a number of another loss": ("simpo", None, ["--model.label_smoothing", "0.1"],
                                 "model.label_smoothing is not used by simpo"),
    "a reference without a use": ("orpo", None, ["--model.reference", "base"],
                                  "model.reference=base: orpo compares with no reference"),
    "a reference that is not there": ("dpo", None, ["--model.reference", "nowhere"], "nowhere: "),
    "pairs for a loss of answers": ("kto", None, ["--data.unpaired", "false"],
                                    "data.unpaired=False: kto learns from judged answers"),
}  # fmt: skip


def said_of(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a mistake."""
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err
    return [line for line in err.splitlines() if line.startswith("lit_llm")][-1]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(
    name: str, tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, row, more, said = MISTAKES[name]
    rows = write_pairs(tmp_path / "rows.jsonl", 12)
    if row is not None:
        lines = rows.read_text().splitlines()
        lines[2] = json.dumps(row)
        rows.write_text("\n".join(lines) + "\n")
    status = main(
        ["fit", "--config", f"finetune/{preset}", *arguments(tmp_path, base, rows, *more)]
    )
    assert said in said_of(status, capsys)


def test_judged_answers_of_one_label(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    made = [{"prompt": f"What is {i}?", "completion": f"a {i}", "label": True} for i in range(9)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    status = main(["fit", "--config", "finetune/kto", *arguments(tmp_path, base, rows)])
    assert "training answers are good; a loss of judged answers needs both labels" in said_of(
        status, capsys
    )


def test_a_reference_at_another_margin_at_step_0(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_pairs(tmp_path / "rows.jsonl", 12)
    given = ["fit", "--config", "finetune/dpo", *arguments(tmp_path, base, rows)]
    assert main(given) == 0
    (file,) = (tmp_path / "cache" / "reference").glob("*.npy")
    np.save(file, np.load(file) - 1)
    capsys.readouterr()
    again = [*given, "--trainer.default_root_dir", str(tmp_path / "again")]
    assert "so margins are not 0" in said_of(main(again), capsys)


def test_bad_rows_are_counted(tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows = write_pairs(tmp_path / "rows.jsonl", 12)
    with rows.open("a") as out:
        out.write(json.dumps({**PAIR, "rejected": "good"}) + "\n")
    given = arguments(tmp_path, base, rows, "--data.bad_rows", "skip")
    assert main(["fit", "--config", "finetune/dpo", *given]) == 0
    assert "1 rows are bad and were left out, 1 because: 'chosen' and 'rejected'" in caplog.text
