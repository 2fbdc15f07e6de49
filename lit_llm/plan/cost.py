"""Dollars besides the GPU-hours' own, and what a run needs on disk."""

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
    """People who write or judge items."""

    hours: float
    usd: float


def annotation(
    items: float, minutes: float, overlap: float = 1.0, wage: float = 20.0
) -> Annotation:
    """``items`` of ``minutes`` each, every one done by ``overlap`` people at ``wage`` dollars an
    hour.

    Raises:
        UserError: a number outside its range.
    """
    check_ranges(locals(), RANGES)
    hours = items * minutes * overlap / 60
    return Annotation(hours, hours * wage)


def token_bytes(tokens: float, vocab_size: int) -> float:
    """The tokenised corpus: two bytes a token up to 65,536 tokens in the vocabulary, four
    beyond."""
    return tokens * (2 if vocab_size <= 65_536 else 4)
