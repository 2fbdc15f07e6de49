"""Cost of human annotation, and the disk size of the token data."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.settings.ranges import Range, check_ranges, positive

RANGES: dict[str, Range] = {
    "items": positive(1e12), "minutes": positive(1e6), "overlap": positive(1e4),
    "wage": positive(1e6),
}  # fmt: skip
"""Ranges of the numbers that `annotation` takes."""


@dataclass(frozen=True)
class Annotation:
    """Working time and cost of people who write or judge items."""

    hours: float
    usd: float


def annotation(
    items: float, minutes: float, overlap: float = 1.0, wage: float = 20.0
) -> Annotation:
    """Cost of annotating items by hand.

    Args:
        items: number of items.
        minutes: minutes per item and person.
        overlap: people per item.
        wage: dollars per hour.

    Raises:
        UserError: a number outside its range.
    """
    check_ranges(locals(), RANGES)
    hours = items * minutes * overlap / 60
    return Annotation(hours, hours * wage)


def token_bytes(tokens: float, vocab_size: int) -> float:
    """Size of the tokenized corpus: two bytes per token up to a vocabulary of 65,536, else four."""
    return tokens * (2 if vocab_size <= 65_536 else 4)
