"""A killed evaluation goes on from what it has finished, and ends with the same results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lit_llm import Tokenizer, Transformer, UserError
from lit_llm.evaluate.harness import HarnessLM
from lit_llm.evaluate.run import load_tasks, metric_rows, run_task
from lit_llm.evaluate.scoring.forward import ForwardPasses
from lit_llm.evaluate.scoring.kept import KeptParts
from lit_llm.models.engine.core import Engine

TASKS = ["stdlib_choice", "stdlib_rolling", "stdlib_complete"]


class Killed(BaseException):
    """Ends the evaluation at any place, as a signal does."""


class Counter:
    """Counts forward passes and steps of the engine, and ends the evaluation after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count, self.most = 0, 10**9
        for owner, name in ((ForwardPasses, "run"), (Engine, "step")):
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, real: Any) -> Any:
        def call(*args: Any) -> Any:
            if self.count == self.most:
                raise Killed
            self.count += 1
            return real(*args)

        return call


def evaluate(model: Transformer, tokenizer: Tokenizer, folder: Path | None, mark: str = "") -> str:
    kept = None if folder is None else KeptParts(folder, "these weights" + mark)
    lm = HarnessLM(model, tokenizer, max_batch_tokens=100, batch_size=2, kept=kept)
    found = {}
    for name, task in load_tasks(TASKS).items():
        results = run_task(lm, task, limit=4, log_samples=True)
        found[name] = [metric_rows(results), [one["resps"] for one in results["samples"][name]]]
    return json.dumps(found)


def test_killed_at_five_points(
    model: Transformer, tokenizer: Tokenizer, cache_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    counter = Counter(monkeypatch)
    wanted = evaluate(model, tokenizer, None)
    whole, spent = counter.count, 0
    for more in (1, whole // 5, whole // 5, whole // 5, whole // 5):
        counter.count, counter.most = 0, more
        with pytest.raises(Killed):
            evaluate(model, tokenizer, tmp_path)
        spent += more
        with open(tmp_path / "unfinished-0.jsonl", "a") as file:
            file.write('["half a li')  # killed while it wrote
    counter.count, counter.most = 0, 10**9
    assert evaluate(model, tokenizer, tmp_path) == wanted
    # Answers that were not finished are written again, and nothing else.
    assert counter.count < whole - spent / 2
    counter.count = 0
    assert evaluate(model, tokenizer, tmp_path) == wanted and counter.count == 0


def test_other_weights_find_nothing(
    model: Transformer, tokenizer: Tokenizer, cache_dir: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    evaluate(model, tokenizer, tmp_path)
    counter = Counter(monkeypatch)
    evaluate(model, tokenizer, tmp_path, "others")
    assert counter.count > 0
    counter.count = 0
    evaluate(model, tokenizer, tmp_path)  # the file is the others' now
    assert counter.count > 0


def test_another_prompt_or_setting_finds_nothing(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def taken(kind: str, *arguments: Any) -> int:
        kept = KeptParts(tmp_path, "these weights")
        lm = HarnessLM(model, tokenizer, max_batch_tokens=100, kept=kept)
        getattr(lm, kind)([Instance(kind, {}, arguments, 0)])  # type: ignore[arg-type]
        return kept.taken

    how = {"until": ["x"], "max_gen_toks": 4}
    for kind, first, others in (
        ("loglikelihood", ("one", " two"), [("one", " two three"), ("One", " two")]),
        ("generate_until", ("one", how), [("One", how), ("one", how | {"max_gen_toks": 5}),
                                          ("one", how | {"do_sample": True, "temperature": 1.0})]),
    ):  # fmt: skip
        assert taken(kind, *first) == 0 and taken(kind, *first) == 1
        for other in others:
            assert taken(kind, *other) == 0


def test_a_complete_evaluation_leaves_nothing(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path / "new", "a")
    kept.put("key", 1)
    assert KeptParts(tmp_path / "new", "a").get("key") == 1
    assert KeptParts(tmp_path / "new", "b").get("key") is None
    kept.remove()
    assert kept.get("key") is None and not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be used"):
        KeptParts(tmp_path / "file", "a")
