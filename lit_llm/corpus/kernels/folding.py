"""Folded words for duplicate detection: letters and digits without case, accents and punctuation.

For example, "Café, Nº 7" and "cafe no 7" share their first word. The folding is that of datatrove's
`simplify_text` (lower case, NFD without marks, punctuation to spaces), except that numbers are
kept: two tables with different figures are not duplicates. In scripts that are written without
spaces (Han, kana, Thai, Lao, Khmer, Burmese) each letter is a word.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

import numpy as np

from lit_llm.corpus.kernels.jit import kernel

POINTS = 0x110000  # number of code points in Unicode
SEPARATOR, SKIPPED = 0, 1
_ALONE = np.uint32(1 << 31)  # flag of a letter that is a word of its own
_ASSIGNED = 0x33480  # above are only variation selectors, tags and private use
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F),
    (0x20000, _ASSIGNED),
)  # fmt: skip
UNSPACED = "".join(f"{chr(low)}-{chr(high)}" for low, high in _UNSPACED)
"""Letters of scripts without spaces between words, as ranges for a regex class ``[...]``."""


@cache
def fold_table() -> np.ndarray:
    """[POINTS] uint32: SEPARATOR, SKIPPED, or the folded code point of each code point.

    The highest bit is set if the letter is a word of its own. The table follows the Unicode version
    of the running Python. It takes 0.2 s, once per process.
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
    # If the bare form has several letters (Hangul syllables), the letter is kept whole.
    return ord(bare if len(bare) == 1 else lowered if len(lowered) == 1 else char)


@kernel
def next_word(points: np.ndarray, at: int, end: int, table: np.ndarray) -> Any:
    """(uint64 hash of the next word in ``points[at:end]``, position after it); (0, -1) if none.

    Args:
        points: int32, see `utf8.decode`; bytes that are not valid UTF-8 separate words.
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
            # A multiplicative hash. A product carries information upwards only, so the shift
            # copies the high bits back to the low ones.
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
    """MurmurHash3's finaliser: a bijection of uint64; each input bit changes every output bit."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))
