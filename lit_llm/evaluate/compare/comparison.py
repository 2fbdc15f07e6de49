"""A whole comparison: claims of all tasks, baselines, flips, gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_llm.errors import UserError
from lit_llm.evaluate.compare.baselines import baselines
from lit_llm.evaluate.compare.claims import Claim, adjusted, claim, mean_claim
from lit_llm.evaluate.compare.contenders import Contender
from lit_llm.evaluate.compare.flips import flipped
from lit_llm.evaluate.compare.joined import Joined, check_same_task, join
from lit_llm.evaluate.results.scores import rows_of
from lit_llm.evaluate.statistics.paired import is_right_or_wrong

MAIN_METRICS = ("acc_norm", "acc", "exact_match", "bits_per_byte", "pass@1")
"""The metric of a task that is compared unless others are asked for: the first one it has."""


@dataclass
class Comparison:
    """What `compare` found.

    Attributes:
        contenders: the first one is the reference.
        claims: one for each task and other contender, and the means.
        baselines: task -> "chance" and "majority", where there are such.
        flips: (task, other contender) -> items, see `flipped`.
        notes: what else the reader must know.
    """

    contenders: list[Contender]
    claims: list[Claim] = field(default_factory=list)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    flips: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(
    contenders: Sequence[Contender],
    *,
    tasks: Sequence[str] = (),
    metrics: Sequence[str] = (),
    margin: float = 0.01,
    correction: str = "holm",
    force: bool = False,
    choose_best: bool = False,
) -> Comparison:
    """Compare every contender with the first one.

    Args:
        contenders: one at least; one alone makes no claims.
        tasks: those to compare. Empty: all that all have.
        metrics: those to compare. Empty: the first of `MAIN_METRICS` that a task has; its first
            metric if it has none.
        margin: differences below it do not matter.
        correction: name of `CORRECTIONS`.
        force: compare different tasks, templates and numbers of worked examples all the same.
        choose_best: of the others keep the best one on one half of the clusters, and compare it
            on the other half.

    Raises:
        UserError: no common task or item, different tasks without ``force``, an unknown task or
            metric, or a metric that has no scores of single items.
    """
    found = Comparison(list(contenders))
    names = _common_tasks(found, tasks)
    chosen = {name: _metrics(found, name, metrics) for name in names}
    reference, *others = found.contenders
    for name in names:
        for other in others:
            if not force:
                check_same_task(reference, other, name)
        for metric in chosen[name]:
            first = rows_of(reference.runs[0].items, name)
            if values := baselines(first, metric):
                found.baselines[name] = values
    half = None
    if choose_best:
        half = 1
        others = [_best(found, others, chosen, margin)]
        found.contenders = [reference, *others]
    for other in others:
        claims = []
        for name, of_task in chosen.items():
            for metric in of_task:
                joined = _joined(reference, other, name, metric, half)
                claims.append(claim(reference, other, name, metric, joined, margin))
                if joined.missing and joined.missing not in found.notes:
                    found.notes.append(joined.missing)
                if is_right_or_wrong(joined.before) and is_right_or_wrong(joined.after):
                    found.flips[name, other.name] = flipped(reference, other, name, joined)
        mean = mean_claim(claims)
        found.claims += claims if mean is None else [*claims, mean]
    if found.claims:
        found.claims = adjusted(found.claims, correction)
    if others and all(len(contender.runs) == 1 for contender in found.contenders):
        found.notes.append(
            "each model is one run, so the noise of training is unknown; --seeds takes several "
            "runs of each"
        )
    return found


def _best(
    found: Comparison, others: list[Contender], chosen: dict[str, list[str]], margin: float
) -> Contender:
    """The best of the others on the first half of the clusters, by the mean over all claims."""
    if len(others) < 2:
        raise UserError("--choose_best: name a reference and two or more to choose from")
    scores = []
    for other in others:
        claims = [
            claim(found.contenders[0], other, name, metric,
                  _joined(found.contenders[0], other, name, metric, 0), margin)
            for name, of_task in chosen.items()
            for metric in of_task
        ]  # fmt: skip
        scores.append(
            sum(one.test.difference * (1 if one.higher_is_better else -1) for one in claims)
            / len(claims)
        )
    best = max(range(len(others)), key=scores.__getitem__)
    found.notes.append(
        f"{others[best].name} is the best of {len(others)} on one half of the items; the table is "
        "of the other half"
    )
    return others[best]


def _joined(
    reference: Contender, other: Contender, name: str, metric: str, half: int | None
) -> Joined:
    joined = join(reference, other, name, metric, half)
    if joined is None:
        raise UserError(
            f"{name}: {metric} has no scores of single items, so it cannot be compared; name "
            "others with --metrics"
        )
    return joined


def _common_tasks(found: Comparison, wanted: Sequence[str]) -> list[str]:
    reference, *others = found.contenders
    for name in wanted:
        for contender in found.contenders:
            if name not in contender.tasks:
                raise UserError(
                    f"--tasks {name}: {contender.name} has no results of it; it has "
                    f"{', '.join(contender.tasks)}"
                )
    if wanted:
        return list(wanted)
    common = [name for name in reference.tasks if all(name in other.tasks for other in others)]
    if not common:
        has = "; ".join(f"{one.name} has {', '.join(one.tasks)}" for one in found.contenders)
        raise UserError(f"no task is common to all: {has}")
    every = dict.fromkeys(name for one in found.contenders for name in one.tasks)
    if left := [name for name in every if name not in common]:
        found.notes.append(f"not in all evaluations, so left out: {', '.join(left)}")
    return common


def _metrics(found: Comparison, task: str, wanted: Sequence[str]) -> list[str]:
    """Metrics of a task that are compared; the others are told."""
    entries = found.contenders[0].tasks[task]["metrics"]
    scored = [name for name, entry in entries.items() if entry["aggregation"] is not None]
    if wanted:
        chosen = [name for name in entries if name in wanted]
        if not chosen:
            raise UserError(f"--metrics {' '.join(wanted)}: {task} has {', '.join(entries)}")
        return chosen
    if not scored:
        raise UserError(
            f"{task}: none of its metrics ({', '.join(entries)}) has scores of single items; "
            "leave it out with --tasks"
        )
    main = next((name for name in MAIN_METRICS if name in scored), scored[0])
    rest = [name for name in entries if name != main]
    if rest and len(found.contenders) > 1:
        found.notes.append(f"{task}: also measured are {', '.join(rest)} (--metrics)")
    return [main]
