"""The local tasks: deterministic, answerable, and of held-out modules alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lit_llm.evaluate.tasks as tasks
from lit_llm import UserError
from lit_llm.data.rows.docstrings import docstring_rows, held_out, stdlib_modules
from lit_llm.evaluate.tasks import LOCAL_TASKS, local_tasks


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """All docstring questions and answers."""
    return list(docstring_rows())


def items(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_made_once_and_the_same_everywhere(
    cache_dir: Path, tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_tasks()
    stamps = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert local_tasks() == folder
    assert {
        file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.name in stamps
    } == stamps
    monkeypatch.setattr(tasks, "docstring_rows", lambda: iter(rows))  # parsed once already
    other = local_tasks(tmp_path)
    for name in LOCAL_TASKS:
        assert (other / f"{name}.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes()
        assert str(other) in (other / f"{name}.yaml").read_text()
    assert {name: len(items(folder, name)) for name in LOCAL_TASKS} == dict(
        zip(LOCAL_TASKS, (100, 20, 50), strict=True)
    )


def test_only_held_out_modules(cache_dir: Path, rows: list[dict[str, Any]]) -> None:
    folder = local_tasks()
    modules = [name for name, _ in stdlib_modules() if held_out(name)]
    for name in ("stdlib_choice", "stdlib_complete"):
        for item in items(folder, name):
            assert any(item["id"].startswith(module + ".") for module in modules)
    assert {item["id"] for item in items(folder, "stdlib_rolling")} <= set(modules)
    training = [row["messages"][1]["content"] for row in rows if row["split"] == "train"]
    taught = {answer.partition("`: ")[2] for answer in training}
    for item in items(folder, "stdlib_choice"):
        assert item["choices"][item["gold"]] not in taught


def test_choices(cache_dir: Path, rows: list[dict[str, Any]]) -> None:
    answers = {
        row["id"]: row["messages"][1]["content"] for row in rows if row["split"] == "validation"
    }
    golds = []
    for item in items(local_tasks(), "stdlib_choice"):
        assert len(set(item["choices"])) == 4
        truth = item["choices"][item["gold"]]
        assert f"`: {truth}" in answers[item["id"]]
        assert item["question"].endswith('"""') and truth not in item["question"]
        golds.append(item["gold"])
    assert min(golds.count(place) for place in range(4)) > 10  # no place gives the answer away


def test_completions_and_texts(cache_dir: Path, rows: list[dict[str, Any]]) -> None:
    answers = {
        row["id"]: row["messages"][1]["content"] for row in rows if row["split"] == "validation"
    }
    for item in items(local_tasks(), "stdlib_complete"):
        sentence = item["question"].partition('"""')[2] + " " + item["word"]
        assert f"`: {sentence}" in answers[item["id"]]
        assert item["word"].isalpha()
    for item in items(local_tasks(), "stdlib_rolling"):
        assert 1000 <= len(item["text"]) <= 6000


def test_a_cache_that_cannot_be_written(cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        local_tasks(tmp_path / "file")
