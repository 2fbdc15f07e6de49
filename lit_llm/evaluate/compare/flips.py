"""Items that one model has right and the other wrong."""

from __future__ import annotations

from typing import Any

from lit_llm.evaluate.compare.contenders import Contender
from lit_llm.evaluate.compare.joined import Joined
from lit_llm.evaluate.results.scores import rows_of


def flipped(
    first: Contender, second: Contender, task: str, joined: Joined
) -> dict[str, list[dict[str, Any]]]:
    """Items that flipped, those whose margin changed most first.

    Args:
        first: the reference; its first run counts.
        second: the other.
        task: the task.
        joined: its items.

    Returns:
        "won" and "lost": rows {"id", "before", "after"}, margins in nats or None; items whose
        score rose and fell.
    """
    margins = [_margins(contender, task) for contender in (first, second)]
    found: dict[str, list[dict[str, Any]]] = {"won": [], "lost": []}
    change = joined.after[0] - joined.before[0]
    for item, by in zip(joined.ids, change, strict=True):
        if by:
            before, after = (found_margins.get(item) for found_margins in margins)
            found["won" if by > 0 else "lost"].append(
                {"id": item, "before": before, "after": after}
            )
    for rows in found.values():
        rows.sort(key=lambda row: -abs((row["after"] or 0) - (row["before"] or 0)))
    return found


def _margins(contender: Contender, task: str) -> dict[str, float | None]:
    rows = rows_of(contender.runs[0].items, task)
    if "margin" not in rows.column_names:
        return {}
    return dict(zip(rows["id"].to_pylist(), rows["margin"].to_pylist(), strict=True))
