"""What a data card of conversations says about rows that are not used as they are."""

from __future__ import annotations

from typing import Any


def left_out_of(card: dict[str, Any]) -> list[str]:
    """A line for each policy that left rows out or changed them."""
    lines = []
    too_long = card.get("too_long", {})
    what = {
        "shortened": f"shortened by {too_long.get('turns_left_off', 0):,} answers at their ends",
        "dropped": "left out, because a first answer, or a pair, must fit whole (data.too_long)",
        "cut": "cut inside an answer or behind a prompt",
    }
    for key, words in what.items():
        if count := too_long.get(key):
            lines.append(f"{count:,} examples are longer than data.seq_len allows and were {words}")
    if count := card.get("rows_of_weight_0"):
        lines.append(f"{count:,} rows have the weight 0 and were left out")
    contaminated = card.get("contaminated", {})
    for name, count in contaminated.items():
        lines.append(
            f"{count:,} examples share 13 words in a row with {name} and were left out "
            "(data.decontaminate)"
        )
    if dropped := sum(card["dropped"].values()):
        reason, count = max(card["dropped"].items(), key=lambda item: item[1])
        lines.append(f"{dropped:,} rows are bad and were left out, {count:,} because: {reason}")
    return lines
