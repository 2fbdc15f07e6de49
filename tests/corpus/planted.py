"""Texts with planted duplicates, and their true similarity by brute force."""

from __future__ import annotations

import random
import re
import unicodedata

_WORDS = [
    a + b + c for a in ("ba", "ke", "lo", "mi", "ru") for b in ("n", "st", "r", "") for c in ("a", "ed", "ing", "o")
]


def sentence(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(_WORDS) + draw.choice(("", "", "", ",", ".")) for _ in range(words)]


def edited(words: list[str], share: float, draw: random.Random) -> list[str]:
    """A copy with that share of its words replaced, left out or doubled."""
    words = list(words)
    for at in sorted(draw.sample(range(len(words)), round(share * len(words))), reverse=True):
        words[at : at + 1] = draw.choice(([draw.choice(_WORDS) + "x"], [], [words[at], words[at]]))
    return words


def ngrams(text: str, n: int = 5) -> set[tuple[str, ...]]:
    """Word n-grams, found another way than by the kernel's table."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    words = re.findall(r"[^\W_]+", bare)
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(a: str, b: str) -> float:
    first, second = ngrams(a), ngrams(b)
    return len(first & second) / len(first | second) if first or second else 0.0
