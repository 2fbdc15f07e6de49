"""What a finetuning run learnt by heart, forgot, and would pay for rehearsal, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.io.numbers import number
from lit_llm.report.reading import Run


def forgetting(folder: Path) -> dict[str, Any] | None:
    """Read ``forgetting.json`` of a `ForgettingCheck`; None without one that can be read.

    Returns:
        "step", of the weights that were measured last; "rows", a row of text for each score and for
        the KL; "questions", those answered worse than by the base first; "sentences".
    """
    try:
        found = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
        measured = next(r for r in found["steps"] if r["step"] == found["items_step"])
        changes, kl = measured["changes"], float(measured["kl"])
        rows = [_row(name, change) for name, change in changes.items()]
        questions = sorted(
            found.get("questions", []), key=lambda q: q["score_after"] - q["score_before"]
        )
        sentences = [_sentence(name, change) for name, change in changes.items()]
        sentences.append(
            f"On the base's own answers to the questions the model is {number(kl, 3)} nats a token "
            "away from the base (Kullback-Leibler divergence)."
        )
        cost = _cost(found["rehearsal"]) if found.get("rehearsal") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
    return {
        "step": f"{measured['step']:,}",
        "rows": rows,
        "questions": questions,
        "sentences": sentences + ([cost] if cost else []),
    }


def final_state(folder: Path) -> dict[str, Any]:
    """``final/trainer_state.json``: of which step the weights are; {} if it is not there."""
    try:
        state = json.loads((folder / "final" / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def of_final(run: Run) -> str | None:
    """Say of which step ``final/`` is, if it was chosen by a metric."""
    state = final_state(run.folder)
    try:
        step, after = int(state["global_step"]), int(state["last_step"] - state["global_step"])
        score, monitor = float(state["score"]), state["monitor"]
    except (KeyError, TypeError, ValueError):
        return None
    best = "lowest" if state.get("mode") == "min" else "highest"
    said = (
        f"final/ holds the weights of step {step:,}, where {monitor} was {best} "
        f"({number(score, 4)}), {after:,} step{'s' * (after != 1)} before the end."
    )
    other = _value_at(run, "generation/other_score", step)
    if monitor == "generation/score" and other is not None:
        said += (
            f" The other half of the questions, by which nothing was chosen, scores "
            f"{number(other, 3)}."
        )
    return said


def of_gap(
    steps: np.ndarray, loss: np.ndarray, trained: np.ndarray, training: np.ndarray
) -> str | None:
    """Compare validation and training loss, where the former was lowest and at the end.

    Args:
        steps: steps (n,) of the validations.
        loss: their losses (n,).
        trained: logged steps (m,).
        training: training losses (m,); one validation is compared with the mean of those since
            the validation before it.
    """
    keep = np.isfinite(loss)
    steps, loss = steps[keep], loss[keep]
    if len(loss) < 2:
        return None

    def gap(at: int) -> tuple[float, float] | None:
        since = steps[at - 1] if at else 0
        part = training[(trained > since) & (trained <= steps[at]) & np.isfinite(training)]
        return (float(loss[at] - part.mean()), float(part.mean())) if len(part) else None

    best, last = int(loss.argmin()), len(loss) - 1
    after = int(steps[last] - steps[best])
    said = (
        f"Validation loss was lowest ({number(float(loss[best]), 4)}) at step {steps[best]:,.0f}; "
        f"{after:,} step{'s' * (after != 1)} came after it."
    )
    there, end = gap(best), gap(last)
    if there is not None:
        said += (
            f" There it was {there[0]:+.3f} nats a token from the training loss ({there[1]:.3f})"
        )
        said += (
            "." if best == last or end is None else f", at the end {end[0]:+.3f} ({end[1]:.3f})."
        )
    return said


def _value_at(run: Run, column: str, step: int) -> float | None:
    rows = [row for row in run.measured(column) if run.columns["step"][row] == step]
    value = float(run.columns[column][rows[-1]]) if rows else float("nan")
    return value if np.isfinite(value) else None


def _row(name: str, change: dict[str, Any]) -> dict[str, str]:
    return {
        "name": _named(name),
        "before": f"{change['before']:.3f}",
        "after": f"{change['after']:.3f}",
        "change": f"{change['change']:+.3f}",
        "interval": f"{change['low']:+.3f} to {change['high']:+.3f}",
        "n": f"{change['n']:,}",
    }


def _named(name: str) -> str:
    return "general questions" if name == "questions/score" else name.replace("/", ", ")


def _sentence(name: str, change: dict[str, Any]) -> str:
    row = _row(name, change)
    if change["high"] < 0:
        verdict = "Forgotten"
    elif change["low"] > 0:
        verdict = "Better than the base"
    else:
        verdict = "No change is shown"
    return (
        f"{verdict}: {row['name']} {row['before']} before, {row['after']} after, change "
        f"{row['change']} (95% interval {row['interval']}, the same {row['n']} items)."
    )


def _cost(cost: dict[str, Any]) -> str:
    share, tokens, own = cost["share"], cost["tokens"], cost["own_tokens"]
    if cost["used"]:
        return (
            f"Rehearsal (data.rehearsal={share:.2g}) takes {tokens:,} of the {tokens + own:,} "
            f"tokens of a pass, about {tokens / (tokens + own):.0%} of the time."
        )
    return (
        f"Rehearsal of general questions (data.rehearsal={share:.2g}) would add about {tokens:,} "
        f"tokens to the {own:,} of a pass, {tokens / own:.0%} more time."
    )
