"""Scores of two contenders, joined by item."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_llm.errors import UserError
from lit_llm.evaluate.compare.contenders import Contender
from lit_llm.evaluate.results.scores import Scores, rows_of, scored_items

_SHOWN = 3  # ids in a message


@dataclass(frozen=True)
class Joined:
    """Scores of the items that all runs of both contenders have.

    Attributes:
        ids: of the items.
        before: scores (runs, n) of the first contender.
        after: scores (runs, n) of the second.
        weights: (n,), or None for a mean.
        clusters: whole numbers (n,).
        missing: what to say of items that not all have; None if there are none.
    """

    ids: list[str]
    before: np.ndarray
    after: np.ndarray
    weights: np.ndarray | None
    clusters: np.ndarray
    missing: str | None


def check_same_task(first: Contender, second: Contender, task: str) -> None:
    """Refuse results of another task, template or number of worked examples.

    Raises:
        UserError: names what differs.
    """
    runs = [run.tasks[task] for contender in (first, second) for run in contender.runs]
    for key, what in (
        ("num_fewshot", "the number of worked examples"),
        ("template_sha256", "the chat template"),
        ("fingerprint", "the task (its settings or documents)"),
    ):
        values = {str(run[key]) for run in runs}
        if len(values) > 1:
            shown = " and ".join(sorted(value[:12] for value in values))
            raise UserError(
                f"{task}: {what} differs between {first.name} and {second.name} ({shown}); "
                "evaluate both alike, or compare all the same with --force"
            )


def join(
    first: Contender, second: Contender, task: str, metric: str, half: int | None = None
) -> Joined | None:
    """Join the scores of one metric by the items' ids.

    Args:
        first: the reference.
        second: what is compared with it.
        task: a task of both.
        metric: a metric of the task.
        half: 0 or 1: only the items of this half, which a hash of the cluster's name decides.

    Returns:
        None if the metric has no scores of single items.

    Raises:
        UserError: no common items, or texts of different lengths.
    """
    scores = [
        scored_items(rows_of(run.items, task), metric)
        for contender in (first, second)
        for run in contender.runs
    ]
    found = [one for one in scores if one is not None]
    if len(found) < len(scores):
        return None
    common = set(found[0].ids).intersection(*(one.ids for one in found[1:]))
    places = [
        place
        for place, item in enumerate(found[0].ids)
        if item in common and (half is None or _half(found[0].clusters[place]) == half)
    ]
    ids = [found[0].ids[place] for place in places]
    if not ids:
        part = "" if half is None else " in one of the halves"
        raise UserError(f"{task}: {first.name} and {second.name} have no common items{part}")
    orders = [_order(one, ids) for one in found]
    weights = [
        one.weights[order]
        for one, order in zip(found, orders, strict=True)
        if one.weights is not None
    ]
    if any(not np.array_equal(weights[0], other) for other in weights[1:]):
        raise UserError(
            f"{task}: the items' texts have other lengths in {first.name} than in {second.name}; "
            "evaluate both with the same task"
        )
    matrix = np.array([one.scores[order] for one, order in zip(found, orders, strict=True)])
    clusters = [found[0].clusters[place] for place in places]
    return Joined(
        ids,
        matrix[: len(first.runs)],
        matrix[len(first.runs) :],
        weights[0] if weights else None,
        np.unique(clusters, return_inverse=True)[1],
        _missing(task, found, common),
    )


def _order(scores: Scores, ids: list[str]) -> np.ndarray:
    place = {item: number for number, item in enumerate(scores.ids)}
    return np.array([place[item] for item in ids])


def _half(cluster: str) -> int:
    return hashlib.sha256(cluster.encode()).digest()[0] % 2


def _missing(task: str, found: Sequence[Scores], common: set[str]) -> str | None:
    missing = sorted({item for one in found for item in one.ids} - common)
    if not missing:
        return None
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    return f"{task}: {len(missing):,} items are not in all evaluations and are left out: {shown}"
