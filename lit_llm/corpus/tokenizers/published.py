"""Published compression figures of GPT-2's and Llama 3's tokenizers, to compare measurements with.

The figures were measured on other texts than the user's; therefore each figure names its text. For
most languages nothing is published.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_llm.models.tokenizer import Tokenizer

# A tokenizer is recognized by its size and its ids for this text, not by the name of its file.
# Variants that only use free ids for chat tokens (GPT-Neo, every Llama 3) compress the same.
_PROBE = "Hello world 12345"
_KNOWN = {
    (50_257, (15496, 995, 17031, 2231)): "GPT-2",
    (128_256, (9906, 1917, 220, 4513, 1774)): "Llama 3",
}


@dataclass(frozen=True)
class Published:
    """A row of ``published_compression.csv``.

    Attributes:
        tokenizer: "GPT-2" or "Llama 3".
        language, domain: of the text, with the names that `Sample` uses; empty if the text is a
            mixture or the source does not tell.
        text: description of the text.
        per_token: number of ``unit`` per token.
        unit: "bytes" or "characters". English has slightly more than 1.0 bytes per character, other
            languages up to 3.
        source: where the figure was published.
    """

    tokenizer: str
    language: str
    domain: str
    text: str
    per_token: float
    unit: Literal["bytes", "characters"]
    source: str


@functools.cache
def published(tokenizer: str) -> tuple[Published, ...]:
    """The published figures of a tokenizer, by the name that `recognised` returns."""
    with open(
        Path(__file__).with_name("published_compression.csv"), encoding="utf-8", newline=""
    ) as file:
        rows = [
            Published(**{**row, "per_token": float(row["per_token"])})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]
    return tuple(row for row in rows if row.tokenizer == tokenizer)


def recognised(tokenizer: Tokenizer) -> str | None:
    """The name under which figures of this tokenizer are published, or None."""
    return _KNOWN.get((tokenizer.vocab_size, tuple(tokenizer.encode(_PROBE))))


def figure_for(rows: tuple[Published, ...], group: str, name: str) -> Published | None:
    """The published figure for a row of the group "all", "language" or "domain"; None if none."""
    for row in rows:
        of_language = group == "language" and row.language == name and row.domain in ("", "code")
        of_domain = group == "domain" and row.domain == name
        of_all = group == "all" and not row.language and not row.domain
        if of_language or of_domain or of_all:
            return row
    return None
