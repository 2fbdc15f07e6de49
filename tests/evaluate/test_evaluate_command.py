"""``lit_llm evaluate`` from argument to table and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_llm.evaluate.run as run
from lit_llm import Transformer, UserError
from lit_llm.evaluate.command import evaluate_main, table, weights_fingerprint
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.run import run_task
from tests.evaluate.own_tasks import write_task


def test_table_and_json(
    exported: Path,
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    no_default_tasks: list[bool],
) -> None:
    out = tmp_path / "sub" / "results.json"
    evaluate_main([str(exported), "--tasks", "stdlib_choice", "stdlib_rolling", "--limit", "2",
                   "--json", str(out), "--device", "cpu"])  # fmt: skip
    printed = capsys.readouterr().out
    assert no_default_tasks == [False]  # local tasks alone do not wait for the others' index
    content = json.loads(out.read_text())
    metrics = {(row["task"], row["metric"]): row for row in content["metrics"]}
    assert {metric for task, metric in metrics if task == "stdlib_choice"} == {"acc", "acc_norm"}
    rolling = {metric for task, metric in metrics if task == "stdlib_rolling"}
    assert rolling == {"bits_per_byte", "byte_perplexity", "word_perplexity"}
    for (task, metric), row in metrics.items():
        assert content["results"][task][f"{metric},none"] == row["value"] and row["n"] == 2
        assert f"{row['value']:.4f}" in printed
    assert content["versions"] == {"stdlib_choice": 1.0, "stdlib_rolling": 1.0}
    assert content["checkpoint"] == str(exported) and content["command"].startswith(
        "lit_llm evaluate "
    )
    assert content["weights_sha256"] == weights_fingerprint(Transformer.from_pretrained(exported))
    assert "samples" not in content and set(content["package_versions"]) == {
        "lit_llm",
        "lm_eval",
        "torch",
    }


def test_json_on_stdout_with_samples_chat_and_examples(
    exported: Path, cache_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluate_main([str(exported), "--tasks", "stdlib_complete", "--limit", "1", "--num_fewshot",
                   "1", "--json", "-", "--apply_chat_template", "--log_samples", "--batch_size",
                   "1", "--device", "cpu"])  # fmt: skip
    content = json.loads(capsys.readouterr().out)  # nothing else on stdout
    assert content["n-shot"] == {"stdlib_complete": 1}
    (sample,) = content["samples"]["stdlib_complete"]
    prompt = sample["arguments"][0][0]
    assert prompt.count("<|im_start|>user") == 2 and prompt.endswith("<|im_start|>assistant\n")
    assert prompt.count(sample["doc"]["question"]) == 1  # a document is no example for itself


def test_include_and_a_bootstrapped_error(
    exported: Path, cache_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    more = (
        "metric_list: [{metric: acc}, "
        "{metric: perplexity, aggregation: perplexity, higher_is_better: false}]"
    )
    file = write_task(tmp_path / "mine", "my_task", more=more)
    for include in (file, file.parent):
        evaluate_main(
            [str(exported), "--tasks", "my_task", "--include", str(include), "--device", "cpu"]
        )
        lines = capfd.readouterr().out.splitlines()
        assert sorted(line.split()[1] for line in lines[1:-1]) == ["acc", "perplexity"]
        assert all(float(line.split()[3]) >= 0 and line.split()[4] == "4" for line in lines[1:-1])


def test_a_task_that_fails_costs_no_results_of_others(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    no_default_tasks: list[bool],
) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "good")
    write_task(folder, "bad", more="process_results: !function scores.wrong")
    (folder / "scores.py").write_text("def wrong(doc, results):\n    raise KeyError('boom')\n")
    out = tmp_path / "results.json"
    given = [str(exported), "--include", str(folder), "--device", "cpu", "--json", str(out)]
    with pytest.raises(UserError, match=r"^task bad: KeyError: 'boom'$"):
        evaluate_main([*given, "--tasks", "bad", "good"])
    assert "good  acc" in capsys.readouterr().out
    assert [row["task"] for row in json.loads(out.read_text())["metrics"]] == ["good"]
    out.unlink()
    with pytest.raises(UserError, match=r"^task bad: KeyError"):
        evaluate_main([*given, "--tasks", "bad"])
    assert not out.exists()


def test_prompts_beyond_the_context_are_told(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    no_default_tasks: list[bool],
) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "long", more="description: '" + "many words " * 60 + "'\n"
               "metric_list: [{metric: acc}]")  # fmt: skip
    write_task(folder, "texts", kind="generate_until", more="description: '" + "many words " * 60
               + "'\ngeneration_kwargs: {until: [x], max_gen_toks: 8}\n"
               "metric_list: [{metric: exact_match}]")  # fmt: skip
    write_task(folder, "short")
    evaluate_main([str(exported), "--include", str(folder), "--device", "cpu",
                   "--tasks", "long", "texts", "short"])  # fmt: skip
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line.partition(":")[0] for line in told] == ["long", "texts"]
    assert told[0].startswith("long: 4 of 4 prompts are longer than the model's context of 128")


def test_scores_do_not_depend_on_the_batches(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    no_default_tasks: list[bool],
) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "mine", more="metric_list: [{metric: perplexity, aggregation: perplexity}]")
    found = {}
    for more in (["--max_batch_tokens", "3"], ["--check_batching", "2"]):
        evaluate_main([str(exported), "--include", str(folder), "--tasks", "mine", "--json", "-",
                       "--device", "cpu", "--name", more[0].strip("-"), *more])  # fmt: skip
        said = capsys.readouterr()
        found[more[0]] = json.loads(said.out)["metrics"][0]["value"]
        told = [line for line in said.err.splitlines() if "largest difference" in line]
        assert len(told) == (more[0] == "--check_batching")
    assert told[0].startswith("mine: 2 requests scored alone too: the largest difference is ")
    assert float(told[0].split()[-2]) < 1e-4
    assert found["--max_batch_tokens"] == pytest.approx(found["--check_batching"], rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_another_dtype(
    exported: Path, cache_dir: Path, capsys: pytest.CaptureFixture, dtype: str
) -> None:
    evaluate_main([str(exported), "--tasks", "stdlib_choice", "stdlib_complete", "--limit", "2",
                   "--json", "-", "--device", "cpu", "--dtype", dtype])  # fmt: skip
    content = json.loads(capsys.readouterr().out)
    model = Transformer.from_pretrained(exported, getattr(torch, dtype))
    assert content["weights_sha256"] == weights_fingerprint(model)
    assert len(content["metrics"]) == 3


def test_a_killed_command_goes_on(
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    no_default_tasks: list[bool],
) -> None:
    folder = tmp_path / "tasks"
    write_task(folder, "one")
    write_task(folder, "two", more="description: Number\nmetric_list: [{metric: acc}]")
    given = [str(exported), "--include", str(folder), "--tasks", "one", "two", "--device", "cpu",
             "--json", "-", "--resume", str(tmp_path / "kept")]  # fmt: skip
    real = run_task

    def killed(lm: HarnessLM, task: dict, **settings: Any) -> dict:
        if "two" in task["tasks"]:
            raise KeyboardInterrupt
        return real(lm, task, **settings)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("lit_llm.evaluate.command.run_task", killed)
        evaluate_main(given)
    capsys.readouterr()
    # Another name, because a task that was finished is reused whole under the same one.
    evaluate_main([*given, "--name", "again"])
    said = capsys.readouterr()
    assert f"one: 1 finished parts taken from {tmp_path / 'kept'}" in said.err
    assert "two: " not in said.err and len(json.loads(said.out)["metrics"]) == 2
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "stdlib_choise"], "no task 'stdlib_choise'; did you mean stdlib_choice"),
        (["--tasks", "zzz"], "no task 'zzz'; local ones are stdlib_choice"),
        (
            ["--tasks", "stdlib_choice", "--include", "nowhere"],
            "nowhere is neither a folder nor a .yaml file",
        ),
        (["--tasks", "stdlib_choice", "--limit", "0"], "argument --limit: 0 must be from 1 to"),
        (
            ["--tasks", "stdlib_choice", "--num_fewshot", "-1"],
            "argument --num_fewshot: -1 must be from 0 to",
        ),
        (["--tasks", "stdlib_choice", "--device", "tpu9"], "--device tpu9"),
        (
            ["--tasks", "stdlib_choice", "--limt", "3"],
            "unknown option --limt: did you mean --limit",
        ),
    ],
)
def test_mistakes_are_one_line(
    exported: Path, cache_dir: Path, no_default_tasks: list[bool], args: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as found:
        evaluate_main([str(exported), *args])
    assert "\n" not in str(found.value)


def test_a_folder_without_tasks_and_a_task_without_data(
    exported: Path, tmp_path: Path, cache_dir: Path
) -> None:
    with pytest.raises(UserError, match=r"holds no \.yaml file"):
        evaluate_main([str(exported), "--tasks", "x", "--include", str(tmp_path)])
    file = write_task(tmp_path / "mine", "my_task")
    (tmp_path / "mine" / "data.jsonl").unlink()
    with pytest.raises(
        UserError, match="task my_task cannot be loaded: FileNotFoundError"
    ) as found:
        evaluate_main([str(exported), "--tasks", "my_task", "--include", str(file)])
    assert "\n" not in str(found.value)


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lit_llm\[eval\]'"):
        evaluate_main([str(exported), "--tasks", "stdlib_choice"])


@pytest.mark.slow
def test_names_with_commas(exported: Path) -> None:
    with pytest.raises(UserError, match="no task 'a,b'; give a b"):
        evaluate_main([str(exported), "--tasks", "a,b"])


def test_unknown_among_lm_evals_own(exported: Path, cache_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no task 'helaswag'; did you mean .*hellaswag"):
        evaluate_main([str(exported), "--tasks", "helaswag"])


def test_fingerprint_tells_weights_apart(exported: Path) -> None:
    model = Transformer.from_pretrained(exported)
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(Transformer.from_pretrained(exported))
    with torch.no_grad():
        model.norm.weight[0] += 1e-3
    assert weights_fingerprint(model) != before
    assert weights_fingerprint(Transformer.from_pretrained(exported, torch.bfloat16)) != before


def test_table_leaves_out_what_is_not_known() -> None:
    rows = [{"task": "a", "metric": "acc", "value": 0.5, "stderr": None, "n": None}]
    assert table(rows).splitlines() == ["task  metric   value  stderr  n", "a     acc     0.5000"]
