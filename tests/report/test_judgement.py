"""What a report says in words: judgement, marks, what is broken, how the run was started."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.report.axis import seconds_in_training, x_axis
from lit_llm.report.facts import corpus_facts, corpus_settings
from lit_llm.report.html import CSV_CHARACTERS, write_report
from lit_llm.report.judgement import (
    judgements,
    of_examples,
    of_steps,
    of_tokens,
    of_training,
    of_validation,
)
from lit_llm.report.marks import marks, told
from lit_llm.report.reading import Run, read_run
from lit_llm.report.samples import broken

FakeRun = Callable[..., Path]


def page(folder: Path, **options) -> str:
    return write_report(folder, **options).read_text(encoding="utf-8")


def change(folder: Path, **facts) -> None:
    info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**info, **facts}), encoding="utf-8")


def metrics(folder: Path, text: str) -> Path:
    (folder / "metrics.csv").write_text(text, encoding="utf-8")
    return folder


# judgement

STEPS = np.arange(100.0, 1001.0, 100.0)
FALLING = np.linspace(6, 2, 200)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (np.linspace(4, 3, 10), "still falling: by 6.9% since step 800"),
        (np.array([4, 3, 2.5, 2.4, 2.41, 2.42, 2.5, 2.6, 2.7, 2.8]), "loss is 17% above its best, "
                                                                     "at step 400"),
        (np.array([4, 3, 2.5, 2.4, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3]), "has stopped falling"),
        (np.array([4, 3, 2.5, 2.4, 2.3, 2.3, 2.3, 2.3, np.nan, np.nan]), "has stopped falling"),
    ],
)  # fmt: skip
def test_validation_is_judged(loss: np.ndarray, said: str) -> None:
    assert said in (of_validation(STEPS, loss, FALLING) or "")


def test_validation_that_rises_with_training_is_no_overfitting() -> None:
    loss = np.array([4, 3, 2.5, 2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0])
    assert of_validation(STEPS, loss, np.r_[FALLING, np.linspace(2, 5, 200)]) is None
    assert of_validation(STEPS[:2], loss[:2], FALLING) is None


def test_training_that_does_not_fall_is_said() -> None:
    assert of_training(FALLING) is None and of_training(np.array([3.0])) is None
    assert "did not fall: 3.01 at the start, 3.49 at the end" in (
        of_training(np.linspace(3, 3.5, 20)) or ""
    )
    assert "never a number" in (of_training(np.full(5, np.nan)) or "")


def test_tokens_steps_and_examples_are_judged() -> None:
    assert of_tokens(20.0) is None and of_tokens(0.05).startswith("0.05 tokens a parameter")
    assert of_steps(50) is None and of_steps(12).startswith("12 optimizer steps: too few")
    assert of_examples(3, "examples") == "3 validation examples say little."
    assert of_examples(1, "documents") == "1 validation document says little."
    assert "no validation split" in of_examples(0, "documents")
    assert of_examples(None, "examples") is None and of_examples(20, "examples") is None


def test_a_run_is_judged_on_its_page(fake_run: FakeRun) -> None:
    folder = fake_run()
    said = judgements(read_run(folder))
    assert any("still falling" in sentence for sentence in said)
    assert any(sentence.startswith("1.9 tokens a parameter") for sentence in said)
    html = page(folder)
    assert all(f"<li>{sentence}</li>" in html for sentence in said)
    card = {"kind": "instructions", "splits": {"validation": {"examples": 3}}}
    (folder / "datacard.json").write_text(json.dumps(card))
    said = judgements(read_run(folder))
    assert "3 validation examples say little." in said
    assert not any("tokens a parameter" in sentence for sentence in said)


# one point, few steps


@pytest.mark.parametrize("rows", ["7,57344,3.5\n", "1,8192,3.5\n"])
def test_one_point_has_neither_an_invented_axis_nor_labels_upon_another(
    tmp_path: Path, rows: str
) -> None:
    folder = metrics(tmp_path, f"step,tokens,train_loss\n{rows}")
    axis, x = x_axis(read_run(folder))
    step, tokens, _ = rows.split(",")
    assert axis is not None and (axis.low, axis.high) == (0, float(tokens)) and x == [float(tokens)]
    assert [label for _, label in axis.ticks["step"]] == ["0", f"{step} steps"]
    html = page(folder)
    figure = html[html.index('<figure class="chart') :]
    assert re.findall(r'<div class="y">(.*?)</div>', figure)[0].count("<span") == 1
    assert ">3.5</span>" in figure


@pytest.mark.parametrize("steps", [*range(1, 13), 100, 2400])
@pytest.mark.parametrize("first", [1, 5])
def test_no_tick_lies_beyond_the_run_or_near_another(
    fake_run: FakeRun, steps: int, first: int
) -> None:
    folder = fake_run(steps=steps, extra=False)
    head, *rows = (folder / "metrics.csv").read_text().splitlines()
    metrics(folder, "\n".join([head, *rows[first - 1 :]]) + "\n")
    axis, _ = x_axis(read_run(folder))
    for places in axis.ticks.values() if axis else ():
        positions = [at for at, _ in places]
        assert positions and positions[0] >= 0 and positions[-1] <= 1 + 1e-9
        assert all(b - a >= 0.1 for a, b in pairwise(positions))
        labels = [label for _, label in places]
        assert len(set(labels)) == len(labels)
    if axis:
        assert not any(re.search(r"\.\d+( |$)", label) for _, label in axis.ticks["step"])


# time, marks, sources, other runs


def test_time_in_training_is_tokens_over_their_rate(tmp_path: Path) -> None:
    text = (
        "step,tokens,train_loss,tokens_per_second\n1,100,5,50\n2,200,4,\n3,300,3,20\n4,400,2,25\n"
    )
    run = read_run(metrics(tmp_path, text))
    assert seconds_in_training(run, run.columns["tokens"]).tolist() == [5, 10, 15, 19]
    axis, _ = x_axis(run)
    assert axis is not None and axis.ticks["time"][-1][1] == "15 s"
    assert axis.ticks["time"][-1][0] == pytest.approx(300 / 400)


def test_without_rates_there_is_no_time(tmp_path: Path) -> None:
    axis, _ = x_axis(read_run(metrics(tmp_path, "step,tokens,train_loss\n1,100,5\n2,200,4\n")))
    assert axis is not None and list(axis.ticks) == ["tokens", "step"]


def test_marks_of_resumes_checkpoints_and_skips(fake_run: FakeRun) -> None:
    folder = fake_run()
    change(
        folder,
        resumed=[{"step": 800, "command": "lit_llm fit --ckpt_path auto --a.api_key s3cret"}],
    )
    (folder / "events.jsonl").write_text(
        '{"step": 1400, "event": "skipped", "steps": 2}\n{"step": 1500, "event": "rolled back"}\n'
    )
    (folder / "checkpoints").mkdir()
    for step in (1200, 2400):
        (folder / "checkpoints" / f"step-{step:08d}.ckpt").touch()
    found = marks(read_run(folder))
    assert [(mark.kind, mark.step) for mark in found] == [
        ("resumed", 800), ("saved", 1200), ("skipped", 1400), ("returned", 1500), ("saved", 2400),
    ]  # fmt: skip
    assert dict(told(found))["saved"] == "Checkpoints kept of steps 1,200, 2,400."
    html = page(folder)
    # Two charts, each on two scales
    assert html.count('class="mark resumed" d="M333.3 0V270"') == 4
    assert (
        html.count('class="mark saved"') == html.count("<svg viewBox") and "after step 800." in html
    )


def test_validation_by_source_is_a_table(fake_run: FakeRun) -> None:
    html = page(fake_run())
    table = html[html.index('aria-label="Validation by source"') :]
    assert re.search(
        r"<bdi>stdlib</bdi></td><td class=\"n\">4\.605</td><td class=\"n\">1\.759</td>", table
    )


def test_an_earlier_runs_curves_are_drawn_dashed(
    fake_run: FakeRun, tmp_path: Path, write_fake_run: FakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = write_fake_run(tmp_path / "earlier", steps=600)
    change(earlier, name="first try")
    folder = fake_run(steps=400)
    assert main(["report", str(folder), "--compare", str(earlier)]) == 0
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<bdi>first try: train loss</bdi>" in html and "Dashed: first try." in html
    assert html.count('class="line dashed"') == 6
    assert (
        max(json.loads(unescape(re.search(r'data-series="([^"]*)"', html)[1]))[-1]["step"]) <= 400
    )
    with pytest.raises(UserError, match="no such run folder"):
        write_report(folder, tmp_path / "absent")


# data, settings, commands


def test_no_python_values_are_shown(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    card = json.loads((folder / "datacard.json").read_text())
    card |= {
        "sources": [{"name": "web", "language": None}],
        "tokenizer": {"vocab_size": 4096, "trained": True},
        "read": {"documents": 1633, "bytes": 31513936}, "nothing": None, "flags": [True, False],
        "licenses": {"MIT": {"documents": 12, "tokens": 9}}, "dropped": {},
    }  # fmt: skip
    (folder / "datacard.json").write_text(json.dumps(card))
    facts = dict(corpus_facts(card))
    assert facts["tokenizer"] == "vocab size: 4,096, trained: yes"
    assert facts["licenses"] == "MIT: 12" and facts["flags"] == "yes, no"
    assert facts["nothing"] == facts["dropped"] == "none"
    assert "- name: web\n  language: null" in corpus_settings(card)
    html = page(folder)
    section = unescape(html[html.index('<section id="data"') : html.index('<section id="config"')])
    assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b|\{'|\['", section)


def test_the_first_command_and_each_resume_are_shown(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    change(
        folder, resumed=[{"step": 8, "command": "lit_llm fit --ckpt_path auto --x.api_key s3cret"}]
    )
    html = page(folder)
    started, resumed = (
        html.index("Started from git commit <code>3f9a2c1</code>"),
        html.index("Resumed after step 8 with"),
    )
    assert started < html.index("lit_llm fit --config pretrain/quickstart") < resumed
    assert "--ckpt_path auto" in html and "s3cret" not in html
    assert re.search(r"<bdi>seed</bdi></th><td><bdi>0</bdi>", html)


def test_trained_and_frozen_parameters_are_told_apart(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    assert "frozen" not in page(folder)
    change(folder, parameters=100_000, parameters_trained=2_000)
    assert "2k trained (2%), 98k frozen" in page(folder)


def test_metrics_are_to_be_had_from_the_page(
    fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_run(steps=20)
    text = (folder / "metrics.csv").read_text()
    assert len(text) < CSV_CHARACTERS
    address = re.search(r'href="(data:text/csv[^"]*)" download="metrics.csv"', page(folder))[1]
    assert unquote(unescape(address).partition(",")[2]) == text
    monkeypatch.setattr("lit_llm.report.html.CSV_CHARACTERS", 10)
    assert 'href="metrics.csv" download' in page(folder)


# broken answers first


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "empty"), (" \n", "empty"), ("the the the the the the the", "repeats itself"),
        ("It is so. " + "I do not know. " * 20, "repeats itself"), ("A short answer.", None),
        ("no no", None),
        ("The cat sat on the mat and the dog sat on the rug and all was well that day.", None),
    ],
)  # fmt: skip
def test_broken_answers_are_told(text: str, wrong: str | None) -> None:
    assert broken(text) == wrong


def test_broken_answers_come_first(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    rows = [{"step": 5, "prompt": "p", "text": text} for text in ("A good answer.", "so " * 30, "")]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = page(folder)
    assert html.index("so so so") < html.index("A good answer.") and "2 of 3 broken" in html


def test_controls_in_names_are_shown_and_names_isolated(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    change(folder, name="a\u202eb")
    sample = {"step": 1, "prompt": "p\u2067", "text": "t\u200f\x85"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    html = page(folder)
    assert "<h1><bdi>a[U+202E]b</bdi></h1>" in html and "p[U+2067]" in html
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\x80-\x9f]", html)


def test_an_empty_folder_makes_no_sentences(tmp_path: Path) -> None:
    assert judgements(Run(tmp_path)) == [] and told(marks(Run(tmp_path))) == []
