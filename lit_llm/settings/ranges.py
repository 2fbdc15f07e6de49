"""Allowed ranges of numbers that a user sets, and the checks against them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_llm.errors import UserError


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    The upper end is no natural limit. It lies above every useful value and below values that
    overflow.
    """

    low: float
    high: float
    above: bool = False
    """Whether ``low`` itself is left out."""
    below: bool = False
    """Whether ``high`` itself is left out."""

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and self.low <= value <= self.high
            and not (self.above and value == self.low)
            and not (self.below and value == self.high)
        )

    def __str__(self) -> str:
        low = f"above {_shown(self.low)}" if self.above else f"from {_shown(self.low)}"
        return f"{low} {'and below' if self.below else 'to'} {_shown(self.high)}"


def _shown(value: float) -> str:
    """Format whole numbers below 10^13 with all digits, other numbers with six."""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e13
    return f"{int(value):,}" if whole else f"{value:g}"


def positive(high: float) -> Range:
    """Numbers above 0, up to ``high``."""
    return Range(0, high, above=True)


VOCAB_SIZE = Range(260, 1e7)
"""Size of a trained vocabulary, which has at least the 256 bytes and four control tokens."""
SAMPLING: dict[str, Range] = {
    "repetition_penalty": positive(1e6), "temperature": Range(0, 1e6), "top_k": Range(1, 1e9),
    "top_p": positive(1), "min_p": Range(0, 1),
}  # fmt: skip
"""Ranges of `Sampling`, kept here because options need them before torch is imported."""


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Check numbers against their ranges.

    Args:
        values: setting -> number. Values that are not numbers (None, "auto") are skipped.
        ranges: setting -> its range. Settings without a range are skipped.
        prefix: stands before the setting's name in the message, such as "data.".

    Raises:
        UserError: names the first setting outside its range, its value and the range.
    """
    for name, allowed in ranges.items():
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if value not in allowed:
            raise UserError(f"{prefix}{name}={_shown(value)}: must be {allowed}")


class Number:
    """The ``type`` of an argparse option that takes a number in a range.

    Args:
        kind: int or float, which parses the text.
        allowed: the range.
    """

    def __init__(self, kind: Callable[[str], float], allowed: Range):
        self.kind, self.allowed = kind, allowed
        self.__name__ = kind.__name__  # argparse says "invalid int value"

    def __call__(self, text: str) -> float:
        """Parse the number; the exceptions are those that argparse reports as usage errors."""
        value = self.kind(text)
        if value not in self.allowed:
            raise argparse.ArgumentTypeError(f"{_shown(value)} must be {self.allowed}")
        return value
