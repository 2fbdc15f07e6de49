"""What others published of how GPT-2's and Llama 3's tokenizers compress, for printing beside what
is measured here.

The figures are of other text than yours, which is why each names its own; nothing is published for
most languages.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_llm.models.tokenizer import Tokenizer

# A tokenizer is known by its size and its ids of this text, not by the name of its file; what only
# adds tokens for chats in unused places (GPT-Neo, every Llama 3) compresses the same.
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
        language, domain: of the text, as `Sample` names them; empty where it is a mixture or the
            source does not say.
        text: what it is.
        per_token: how many ``unit`` a token stands for.
        unit: English has 1.0 bytes a character and little more, other languages up to 3.
        source: where it was published.
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
    """The figures of a tokenizer that `recognised` names."""
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
    """The figure to set beside a row "all", or one of a "language" or "domain"; None where none is
    published."""
    for row in rows:
        of_language = group == "language" and row.language == name and row.domain in ("", "code")
        of_domain = group == "domain" and row.domain == name
        of_all = group == "all" and not row.language and not row.domain
        if of_language or of_domain or of_all:
            return row
    return None
