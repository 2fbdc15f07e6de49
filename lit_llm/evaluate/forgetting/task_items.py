"""Scores of the single items of lm-eval tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Scores = dict[str, dict[str, float]]
""""<task>/<metric>" -> item -> score."""


def item_scores(results: Mapping[str, Any]) -> Scores:
    """Scores of each item in the results of `run_task` with ``log_samples``.

    Metrics for which less is better are left out, and those that have no value for a single item,
    such as the perplexity of a corpus. The name of an answer filter is added to the metric's, as
    in `metric_rows`.
    """
    found: Scores = {}
    better = results.get("higher_is_better", {})
    for task, samples in results["samples"].items():
        for sample in samples:
            filtered = "" if sample["filter"] == "none" else f",{sample['filter']}"
            for metric in sample["metrics"]:
                value = sample[metric]
                if better.get(task, {}).get(metric) is False or not _is_number(value):
                    continue
                scores = found.setdefault(f"{task}/{metric}{filtered}", {})
                scores[str(sample["doc_id"])] = float(value)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number | np.bool_)
