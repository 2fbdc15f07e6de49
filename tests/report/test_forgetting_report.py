"""What a report says of forgetting, of the gap to validation, and of the step in final/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_llm.report.forgetting import forgetting, of_final, of_gap
from lit_llm.report.html import write_report
from lit_llm.report.judgement import of_validation
from lit_llm.report.reading import read_run

FakeRun = Callable[..., Path]


def change(low: float, high: float) -> dict[str, float]:
    return {"n": 48, "before": 0.75, "after": 0.5, "change": -0.25, "low": low, "high": high}


def write(folder: Path, rehearsal: Any = None, **changes: dict[str, float]) -> dict[str, Any]:
    questions = [
        {
            "prompt": f"q{i}",
            "before": "",
            "after": "",
            "score_before": 1,
            "score_after": int(i != 2),
        }
        for i in range(4)
    ]
    named = {name.replace("_", "/"): value for name, value in changes.items()}
    step = {"step": 40, "kl": 0.0213, "kl_tokens": 90, "changes": named}
    content = {"steps": [{**step, "step": 20, "kl": 9}, step], "items_step": 40,
               "questions": questions, "rehearsal": rehearsal}  # fmt: skip
    (folder / "forgetting.json").write_text(json.dumps(content))
    found = forgetting(folder)
    assert found is not None
    return found


def test_what_was_forgotten(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    found = write(
        folder, questions_score=change(-0.4, -0.1), task_acc=change(-0.4, 0.1),
        other_acc=change(0.1, 0.4),
    )  # fmt: skip
    said = found["sentences"]
    assert said[0] == (
        "Forgotten: general questions 0.750 before, 0.500 after, change -0.250 (95% interval "
        "-0.400 to -0.100, the same 48 items)."
    )
    assert said[1].startswith("No change is shown: task, acc 0.750")
    assert said[2].startswith("Better than the base: other, acc")
    assert "is 0.0213 nats a token away" in said[3] and len(said) == 4
    assert [row["prompt"] for row in found["questions"]] == ["q2", "q0", "q1", "q3"]
    html = write_report(folder).read_text(encoding="utf-8")
    assert "Forgotten: general questions" in html and "The weights of step 40 against" in html
    for broken in ("", "[]", '{"steps": []}', '{"steps": [{"step": 1}], "items_step": 1}'):
        (folder / "forgetting.json").write_text(broken)
        assert forgetting(folder) is None
        write_report(folder)


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (
            True,
            "Rehearsal (data.rehearsal=0.43) takes 250 of the 1,000 tokens of a pass, about 25%",
        ),
        (False, "(data.rehearsal=0.43) would add about 250 tokens to the 750 of a pass, 33% more"),
    ],
)
def test_what_rehearsal_costs(tmp_path: Path, used: bool, said: str) -> None:
    cost = {"used": used, "share": 3 / 7, "tokens": 250, "own_tokens": 750}
    assert said in write(tmp_path, cost)["sentences"][-1]


def test_the_step_of_final(fake_run: FakeRun) -> None:
    folder = fake_run(steps=40)
    (folder / "final").mkdir()
    file = folder / "final" / "trainer_state.json"
    state = {"global_step": 20, "last_step": 40, "monitor": "generation/score", "mode": "max",
             "score": 0.8125}  # fmt: skip
    file.write_text(json.dumps(state))
    rows = (folder / "metrics.csv").read_text().splitlines()
    steps = [row.split(",")[rows[0].split(",").index("step")] for row in rows[1:]]
    other = ["generation/other_score", *("0.7" if step == "20" else "" for step in steps)]
    (folder / "metrics.csv").write_text(
        "".join(f"{row},{cell}\n" for row, cell in zip(rows, other, strict=True))
    )
    assert of_final(read_run(folder)) == (
        "final/ holds the weights of step 20, where generation/score was highest (0.8125), "
        "20 steps before the end. The other half of the questions, by which nothing was chosen, "
        "scores 0.7."
    )
    for text in ('{"global_step": 40, "last_step": 40}', "[]", "{"):
        file.write_text(text)
        assert of_final(read_run(folder)) is None


def test_the_gap_to_validation() -> None:
    steps, loss = np.array([0.0, 10, 20, 30]), np.array([3.0, 2.0, 2.5, np.nan])
    trained = np.arange(1.0, 31.0)
    training = np.where(trained <= 10, 1.75, np.where(trained <= 20, 1.0, 0.5))
    assert of_gap(steps, loss, trained, training) == (
        "Validation loss was lowest (2) at step 10; 10 steps came after it. There it was +0.250 "
        "nats a token from the training loss (1.750), at the end +1.500 (1.000)."
    )
    assert of_gap(steps[:1], loss[:1], trained, training) is None
    # The base itself was best, and no training loss belongs to it.
    assert of_gap(steps[:2], np.array([1.0, 2.0]), trained, training) == (
        "Validation loss was lowest (1) at step 0; 10 steps came after it."
    )


def test_overfitting_needs_no_advice_if_final_is_the_best() -> None:
    steps, loss = np.arange(100.0, 1001.0, 100.0), np.array([3.0, 2, 1, 2, 3, 3, 3, 3, 3, 3])
    falling = np.linspace(6, 2, 200)
    with_advice, without = (of_validation(steps, loss, falling, kept) for kept in (False, True))
    assert with_advice == f"{without} Take checkpoints/best.ckpt, or train for fewer steps."
