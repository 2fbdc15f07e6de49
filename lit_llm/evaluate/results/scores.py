"""Scores of single items, read from the rows of ``items.parquet``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Scores:
    """Scores of a task's items under one metric.

    Attributes:
        ids: of the items.
        scores: (n,).
        weights: (n,), or None for a mean.
        clusters: names (n,).
    """

    ids: list[str]
    scores: np.ndarray
    weights: np.ndarray | None
    clusters: list[str]


def scored_items(items: pa.Table, metric: str) -> Scores | None:
    """Scores of a task's items; None if the metric has no scores of single items.

    Args:
        items: the task's rows.
        metric: name of the metric; with an answer filter "metric,filter".
    """
    name, _, answer_filter = metric.partition(",")
    column, weight = f"score.{name}", f"weight.{name}"
    if column not in items.column_names:
        return None
    rows = items.filter(pc.equal(items["filter"], answer_filter or "none"))
    rows = rows.filter(pc.and_(pc.is_valid(rows[column]), pc.invert(pc.is_nan(rows[column]))))
    if not rows.num_rows:
        return None
    weighted = weight in rows.column_names and rows[weight].null_count == 0
    return Scores(
        rows["id"].to_pylist(),
        rows[column].to_numpy(),
        rows[weight].to_numpy() if weighted else None,
        rows["cluster"].to_pylist(),
    )


def rows_of(items: pa.Table, task: str) -> pa.Table:
    """The rows of one task."""
    return items.filter(pc.equal(items["task"], task))
