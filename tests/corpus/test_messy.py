"""The command on a small messy folder with planted truth: every goal of benchmarks/corpus_truth.py
is met."""

from __future__ import annotations

import json
from pathlib import Path

import corpus_truth
import messy
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("messy")


@pytest.fixture(scope="module")
def truths(folder: Path) -> list[messy.Truth]:
    return messy.build(folder, megabytes=1)


def test_goals(folder: Path, truths: list[messy.Truth]) -> None:
    seconds, held = corpus_truth.run(folder, workers=1)
    figures = corpus_truth.measure(folder, truths)
    print(corpus_truth.table(figures))
    assert seconds > 0 and held > 10**7
    assert all(figure.met for figure in figures)


def test_the_truth_is_written_down(folder: Path, truths: list[messy.Truth]) -> None:
    rows = [
        json.loads(line)
        for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["id"] for row in rows] == [truth.id for truth in truths]
    assert len({row["id"] for row in rows}) == len(rows)
    near = [
        truth.similarity
        for truth in truths
        if truth.similarity is not None and truth.kind == "near copy"
    ]
    assert all(0 < similarity <= 1 for similarity in near) and sum(near) / len(near) > 0.6
    assert len({truth.language for truth in truths if truth.language}) >= 25


def test_what_placeholders_stand_for() -> None:
    found = corpus_truth.redactions(
        "Mail a@b.org, c@d.net or call 030 12.", "Mail <EMAIL>, <EMAIL> or call <PHONE>."
    )
    assert found == [(5, 12, "email"), (14, 21, "email"), (30, 36, "phone")]
    assert corpus_truth.redactions("nothing <b>", "nothing <b>") == []
    for changed in ("mail <EMAIL>", "Mail <EMAIL>!", "Mail x <EMAIL>", "Mail a@b.or"):
        assert corpus_truth.redactions("Mail a@b.org", changed) is None


@pytest.mark.parametrize(
    ("value", "goal", "met"),
    [
        (1.0, "= 1", True),
        (0.999, "= 1", False),
        (0.9, ">= 0.90", True),
        (0.0, "< 0.001", True),
        (0.001, "< 0.001", False),
    ],
)
def test_goals_are_compared(value: float, goal: str, met: bool) -> None:
    assert corpus_truth.Figure("share", value, 10, goal).met is met
    assert not corpus_truth.Figure("share", value, 0, goal).met
