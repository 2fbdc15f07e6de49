"""What needs no model: chance, and the answer that is right most often."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc


def baselines(rows: pa.Table, metric: str) -> dict[str, float]:
    """Accuracies without a model, of a task whose items are choices.

    Args:
        rows: the task's rows of ``items.parquet``.
        metric: empty for other metrics than accuracies.

    Returns:
        "chance": the mean of 1 / number of choices; "majority": the share of the commonest place
        of the right answer. Empty where the items name no right answer.
    """
    if metric.partition(",")[0] not in ("acc", "acc_norm", "exact_match"):
        return {}
    rows = rows.filter(pc.is_valid(rows["gold"])) if "gold" in rows.column_names else rows[:0]
    if not rows.num_rows:
        return {}
    choices = pc.list_value_length(rows["log_likelihoods"]).to_pylist()
    gold = Counter(rows["gold"].to_pylist())
    return {
        "chance": sum(1 / count for count in choices) / rows.num_rows,
        "majority": max(gold.values()) / rows.num_rows,
    }
