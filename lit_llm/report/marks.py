"""Resumes, checkpoints and skipped steps of a run, as chart marks and as sentences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lit_llm.report.reading import Run
from lit_llm.training.callbacks.checkpoint_folder import checkpoints, step_of

_SHOWN = 12  # steps listed per kind; further steps are only counted


@dataclass(frozen=True)
class Mark:
    """An event at ``step``; ``kind`` is "resumed", "saved", "skipped" or "returned"."""

    kind: str
    step: int


_WORDS = {
    "resumed": "Resumed after step",
    "saved": "Checkpoints kept of step",
    "skipped": "Steps skipped up to step",
    "returned": "Went back to an earlier checkpoint at step",
}


def marks(run: Run) -> list[Mark]:
    """The run's marks, ordered by step."""
    found = [Mark("resumed", step) for step in _resumed_at(run)]
    kinds = {"skipped": "skipped", "rolled back": "returned"}
    found += [
        Mark(kinds[event["event"]], event["step"])
        for event in run.events
        if event["event"] in kinds
    ]
    found += [Mark("saved", step_of(file)) for file in checkpoints(run.folder / "checkpoints")]
    return sorted(found, key=lambda mark: (mark.step, mark.kind))


def _resumed_at(run: Run) -> list[int]:
    said = run.info.get("resumed")
    steps = (
        [row.get("step") for row in said if isinstance(row, dict)] if isinstance(said, list) else []
    )
    return [step for step in steps if isinstance(step, int) and not isinstance(step, bool)]


def told(found: list[Mark]) -> list[tuple[str, str]]:
    """(kind, sentence) for each kind that occurred."""
    rows = []
    for kind, words in _WORDS.items():
        steps = [mark.step for mark in found if mark.kind == kind]
        if steps:
            shown = ", ".join(f"{step:,}" for step in steps[:_SHOWN])
            more = f" and {len(steps) - _SHOWN:,} more" if len(steps) > _SHOWN else ""
            rows.append((kind, f"{words}{'s' if len(steps) > 1 else ''} {shown}{more}."))
    return rows


def places(found: list[Mark], run: Run, x: np.ndarray) -> list[tuple[str, float]]:
    """(kind, x) of marks within the range of steps that the charts show."""
    steps = run.columns.get("step", np.array([]))
    if not len(steps):
        return []
    known, at = (np.append(0.0, steps), np.append(0.0, x)) if steps[0] > 0 else (steps, x)
    return [
        (mark.kind, float(np.interp(mark.step, known, at)))
        for mark in found
        if known[0] <= mark.step <= known[-1]
    ]
