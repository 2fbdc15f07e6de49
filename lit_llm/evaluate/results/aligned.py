"""Tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int, last_left: bool = False) -> str:
    """Rows of texts in aligned columns.

    Args:
        rows: rows of equal length.
        left: number of first columns that are aligned on the left; the others are on the right.
        last_left: whether the last column is aligned on the left too.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1

    def cell(place: int, text: str) -> str:
        if place < left or (last_left and place == last):
            return text.ljust(widths[place])
        return text.rjust(widths[place])

    return "\n".join(
        "  ".join(cell(place, text) for place, text in enumerate(row)).rstrip() for row in rows
    )
