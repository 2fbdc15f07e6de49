"""Words as duplicates are compared by: runs of letters and digits, without case, accents and
punctuation.

So "Café, Nº 7" and "cafe no 7" share their first word. The choice is datatrove's `simplify_text`
(lower case, NFD without marks, punctuation to spaces) but for numbers, which stay what they are:
two tables of figures are not one. Scripts that are written without spaces (Han, kana, Thai, Lao,
Khmer, Burmese) give a word a letter.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np

from lit_llm.corpus.kernels.jit import kernel

POINTS = 0x110000  # of Unicode
SEPARATOR, SKIPPED = 0, 1
_ALONE = np.uint32(1 << 31)  # a word by itself
_ASSIGNED = 0x33480  # above are variation selectors, tags and private use
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, _ASSIGNED),
)  # fmt: skip
UNSPACED = "".join(f"{chr(low)}-{chr(high)}" for low, high in _UNSPACED)
"""Letters of scripts without spaces between words, as the inside of a regular expression's
class."""


@cache
def fold_table() -> np.ndarray:
    """[POINTS] uint32: what a code point is in a word, by the running Python's Unicode version; 0.2
    s, once a process.

    SEPARATOR, SKIPPED, or the folded code point, its highest bit set where it is a word alone.
    """
    table = np.zeros(POINTS, np.uint32)
    for code in range(_ASSIGNED):
        table[code] = _fold(chr(code))
    for low, high in _UNSPACED:
        part = table[low : high + 1]
        part[part > SKIPPED] |= _ALONE
    table[0xFE00:0xFE10] = table[0xE0000:0xE0200] = SKIPPED  # variation selectors, tags
    return table


def _fold(char: str) -> int:
    category = unicodedata.category(char)
    if category in ("Mn", "Me", "Cf"):  # accents; soft hyphens and joiners within words
        return SKIPPED
    if category[0] not in "LNM":
        return SEPARATOR
    lowered = char.lower()
    bare = "".join(
        c for c in unicodedata.normalize("NFD", lowered) if unicodedata.category(c) != "Mn"
    )
    # Where the bare form is of several letters (Hangul syllables) the letter stands for itself.
    return ord(bare if len(bare) == 1 else lowered if len(lowered) == 1 else char)


@kernel
def next_word(points: np.ndarray, at: int, end: int, table: np.ndarray) -> Any:
    """(hash of the next word in ``points[at:end]``, uint64; position behind it), (0, -1) where
    there is none.

    Args:
        points: int32, see `utf8.decode`; bytes that were no character separate words.
        at, end: int64.
        table: `fold_table`.
    """
    hashed = np.uint64(0)
    began = False
    while at < end:
        letter = table[points[at]]
        if letter > SKIPPED:
            alone = letter >= _ALONE
            if alone and began:
                break
            # A multiplicative hash; the shift brings what the high bits gathered back to the low
            # ones.
            hashed = (hashed ^ np.uint64(letter)) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(32)
            began = True
            if alone:
                at += 1
                break
        elif letter == SEPARATOR and began:
            break
        at += 1
    return (mixed(hashed), at) if began else (np.uint64(0), np.int64(-1))


@kernel
def mixed(x: Any) -> Any:
    """A bijection of uint64 in which every bit of ``x`` moves every bit of the result
    (MurmurHash3's finaliser)."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))
