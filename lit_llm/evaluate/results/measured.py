"""The metrics of a task, made of its items, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.evaluate.results.items import aggregation_of
from lit_llm.evaluate.results.scores import scored_items
from lit_llm.evaluate.statistics.single import score_interval


def task_metrics(
    rows: list[dict[str, Any]], task: Any, higher_is_better: Mapping[str, bool], items: pa.Table
) -> dict[str, dict[str, Any]]:
    """Metric -> its value, interval, aggregation and direction, numbers of items and clusters.

    Args:
        rows: the task's part of `metric_rows`.
        task: lm-eval's task.
        higher_is_better: lm-eval's directions; a metric that is not there is better the higher.
        items: the task's rows of `items_table`.
    """
    found = {}
    for row in rows:
        metric = row["metric"].partition(",")[0]
        aggregation = aggregation_of(task, metric)
        entry = {
            "value": row["value"],
            "stderr": row["stderr"],
            "low": None,
            "high": None,
            "higher_is_better": higher_is_better.get(metric) is not False,
            "aggregation": None,
            "items": items.num_rows,
            "clusters": len(pc.unique(items["cluster"])),
        }
        if (scored := scored_items(items, row["metric"])) is not None:
            clusters = np.unique(scored.clusters, return_inverse=True)[1]
            _, low, high = score_interval(scored.scores, clusters, scored.weights)
            if aggregation == "exp_ratio":
                with np.errstate(over="ignore"):
                    low, high = np.exp([low, high]).tolist()
            entry |= {
                "aggregation": aggregation,
                "low": low if math.isfinite(low) else None,
                "high": high if math.isfinite(high) else None,
                "items": len(scored.scores),
            }
        found[row["metric"]] = entry
    return found
