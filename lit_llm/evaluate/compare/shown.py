"""A comparison as a table for terminals, and as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_llm.evaluate.compare.claims import SAME, UNKNOWN, Claim
from lit_llm.evaluate.compare.comparison import Comparison
from lit_llm.evaluate.compare.gates import Outcome
from lit_llm.evaluate.results.aligned import aligned

HEADER = ["task", "metric", "A", "B", "B - A", "95% interval", "p", "items", "clusters", "chance",
          "majority", "verdict on B"]  # fmt: skip
CORRECTED = {
    "holm": "p and verdicts are corrected for all {n} claims (Holm); intervals are not",
    "bh": "p and verdicts are corrected for all {n} claims (Benjamini-Hochberg: of the claims made "
    "5% are false); intervals are not",
    "none": "p and verdicts are not corrected for the number of claims ({n})",
}


def text(found: Comparison, correction: str, flips: int = 0) -> str:
    """The tables, a part for each contender but the first, and the notes.

    Args:
        found: the comparison.
        correction: its name.
        flips: items to name for each task and direction.
    """
    reference = found.contenders[0]
    if len(found.contenders) == 1:
        parts = [f"{reference.name}:\n{aligned(scores(found), left=2)}"]
    else:
        parts = []
    for other in found.contenders[1:]:
        claims = [one for one in found.claims if one.other == other.name]
        rows = [HEADER, *(row(one, found) for one in claims)]
        parts.append(
            f"A: {reference.name}, B: {other.name}\n{aligned(rows, left=2, last_left=True)}"
        )
        for (task, name), items in found.flips.items():
            if flips and name == other.name:
                parts.append(_flips(task, items, flips))
    notes = list(found.notes)
    if found.claims:
        notes.append(CORRECTED[correction].format(n=len(found.claims)))
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def row(one: Claim, found: Comparison) -> list[str]:
    """A claim's cells under `HEADER`."""
    values = found.baselines.get(one.task, {})
    low, high = one.interval
    return [
        one.task,
        one.metric,
        f"{one.before:.4g}",
        f"{one.after:.4g}",
        signed(one.difference, one),
        f"{signed(low, one)} to {signed(high, one)}",
        f"{one.p:.3f}" if one.p >= 0.001 else "<0.001",
        f"{one.items:,}",
        f"{one.clusters:,}",
        *(f"{values[name]:.3f}" if name in values else "" for name in ("chance", "majority")),
        said(one),
    ]


def signed(value: float, one: Claim) -> str:
    """A difference with its sign; in percent for perplexities."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value:+.1%}" if one.relative else f"{value:+.4f}"


def said(one: Claim) -> str:
    """The verdict, with what it means."""
    margin = f"{one.margin:.1%}" if one.relative else f"{one.margin:g}"
    if one.verdict == SAME:
        return f"{SAME} within {margin}"
    if one.verdict != UNKNOWN:
        small = one.p_same <= 0.05
        return one.verdict + (f", by less than {margin}" if small else "")
    if not math.isfinite(one.smallest):
        return f"{UNKNOWN}: one cluster has no spread"
    unit = f"{one.smallest:.1%}" if one.relative else f"{one.smallest:.3g}"
    return f"{UNKNOWN}: {unit} would be found; {margin} needs {one.items_for_margin:,} items"


def scores(found: Comparison) -> list[list[str]]:
    """Rows of one evaluation's own metrics, with a header."""
    rows = [["task", "metric", "value", "95% interval", "items", "clusters", "chance", "majority"]]
    for task, content in found.contenders[0].tasks.items():
        for metric, entry in content["metrics"].items():
            values = found.baselines.get(task, {})
            low, high = entry["low"], entry["high"]
            rows.append([
                task, metric, f"{entry['value']:.4g}",
                "" if low is None or high is None else f"{low:.4g} to {high:.4g}",
                f"{entry['items']:,}", f"{entry['clusters']:,}",
                *(f"{values[name]:.3f}" if name in values else ""
                  for name in ("chance", "majority")),
            ])  # fmt: skip
    return rows


def gate_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each gate."""
    return [
        f"gate {'passed' if one.passed else 'FAILED'}: {one.gate} ({one.why})" for one in outcomes
    ]


def plain(found: Comparison, correction: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything as JSON takes it. Numbers that are not known are null."""
    return {
        "schema_version": 1,
        "evaluations": [
            {"name": one.name, "folders": [str(run.folder) for run in one.runs]}
            for one in found.contenders
        ],
        "correction": correction,
        "claims": [_plain_claim(one) for one in found.claims],
        "baselines": found.baselines,
        "flips": [
            {"task": task, "evaluation": name, **items}
            for (task, name), items in found.flips.items()
        ],
        "gates": [{"gate": one.gate, "passed": one.passed, "why": one.why} for one in outcomes],
        "notes": found.notes,
    }


def _plain_claim(one: Claim) -> dict[str, Any]:
    low, high = one.interval
    numbers = {
        "a": one.before, "b": one.after, "difference": one.difference, "low": low, "high": high,
        "standard_error": one.test.standard_error, "degrees_of_freedom": one.test.df,
        "p": one.test.p(), "p_adjusted": one.p, "p_same_adjusted": one.p_same,
        "smallest_difference": one.smallest, "items_for_margin": one.items_for_margin,
    }  # fmt: skip
    return {
        "task": one.task, "metric": one.metric, "reference": one.reference,
        "evaluation": one.other, "verdict": one.verdict, "said": said(one),
        "test": one.test.name, "items": one.items, "clusters": one.clusters,
        "higher_is_better": one.higher_is_better, "relative": one.relative, "margin": one.margin,
        **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
    }  # fmt: skip


def _flips(task: str, items: dict[str, list[dict[str, Any]]], count: int) -> str:
    lines = []
    for kind, what in (("won", "B alone has right"), ("lost", "A alone has right")):
        rows = items[kind]
        lines.append(f"{task}: {len(rows):,} items that {what}")
        for one in rows[:count]:
            margins = [one["before"], one["after"]]
            by = "" if None in margins else "  margin {:+.2f} -> {:+.2f} nats".format(*margins)
            lines.append(f"  {one['id']}{by}")
    return "\n".join(lines)
