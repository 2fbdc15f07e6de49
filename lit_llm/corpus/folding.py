"""Words as duplicates are compared by: runs of letters and digits, without case, accents and punctuation.

So "Café, Nº 7" and "cafe no 7" share their first word. The choice is datatrove's `simplify_text` (lower case, NFD
without marks, punctuation to spaces) but for numbers, which stay what they are: two tables of figures are not one.
Scripts that are written without spaces (Han, kana, Thai, Lao, Khmer, Burmese) give a word a letter.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from lit_llm.corpus.kernels import njit

SEPARATOR, SKIPPED = 0, 1
_ALONE = np.uint32(1 << 31)  # a word by itself
_ASSIGNED = 0x33480  # above are variation selectors, tags and private use
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, _ASSIGNED),
)  # fmt: skip


class FoldTable(NamedTuple):
    """Code point c folds to ``folded[pages[c >> 8] * 256 + (c & 255)]``.

    Attributes:
        pages: [4352] uint16; pages that fold alike are stored once, so that the table stays in the second-level cache;
            ASCII's comes first and needs no look-up.
        folded: uint32: SEPARATOR, SKIPPED, or the folded code point, its highest bit set where it is a word alone.
    """

    pages: np.ndarray
    folded: np.ndarray


@cache
def fold_table() -> FoldTable:
    """The table of the running Python's Unicode version; 0.2 s, once a process."""
    every = np.zeros(0x110000, np.uint32)
    for code in range(_ASSIGNED):
        every[code] = _fold(chr(code))
    for low, high in _UNSPACED:
        part = every[low : high + 1]
        part[part > SKIPPED] |= _ALONE
    every[0xFE00:0xFE10] = every[0xE0000:0xE0200] = SKIPPED  # variation selectors, tags
    return two_level(every)


def two_level(every: np.ndarray) -> FoldTable:
    """The table of ``every`` [0x110000] uint32, what each code point becomes."""
    unique, pages = np.unique(every.reshape(-1, 256), axis=0, return_inverse=True)
    numbers = pages.reshape(-1).astype(np.uint16) + np.uint16(1)
    numbers[0] = 0
    return FoldTable(numbers, np.concatenate([every[:256], unique.reshape(-1)]))


def _fold(char: str) -> int:
    category = unicodedata.category(char)
    if category in ("Mn", "Me", "Cf"):  # accents; soft hyphens and joiners within words
        return SKIPPED
    if category[0] not in "LNM":
        return SEPARATOR
    lowered = char.lower()
    bare = "".join(c for c in unicodedata.normalize("NFD", lowered) if unicodedata.category(c) != "Mn")
    # Where the bare form is of several letters (Hangul syllables) the letter stands for itself.
    return ord(bare if len(bare) == 1 else lowered if len(lowered) == 1 else char)


@njit
def decode(data: np.ndarray, at: int, end: int) -> Any:
    """The code point at byte ``at`` of UTF-8 ``data`` and the position behind it; ``at`` < ``end``.

    A byte that begins no character gives U+DC00 + byte, as Python's "surrogateescape" does, and is one byte long.
    """
    first = data[at]
    if first < 0x80:
        return np.uint32(first), at + 1
    if first < 0xE0:
        length, code, least = 2, np.uint32(first & 0x1F), np.uint32(0x80)
    elif first < 0xF0:
        length, code, least = 3, np.uint32(first & 0x0F), np.uint32(0x800)
    else:
        length, code, least = 4, np.uint32(first & 0x07), np.uint32(0x10000)
    if 0xC2 <= first < 0xF5 and at + length <= end:
        for i in range(1, length):
            if data[at + i] & 0xC0 != 0x80:
                return np.uint32(0xDC00 + first), at + 1
            code = np.uint32((code << 6) | (data[at + i] & 0x3F))
        if least <= code < 0x110000 and not 0xD800 <= code < 0xE000:
            return code, at + length
    return np.uint32(0xDC00 + first), at + 1


@njit
def next_word(data: np.ndarray, at: int, end: int, pages: np.ndarray, folded: np.ndarray) -> Any:
    """(hash of the next word in ``data[at:end]``, position behind it); (0, -1) where there is none.

    Args:
        data: uint8, UTF-8, wrong bytes allowed: they separate words.
        at, end: int64.
        pages, folded: of `fold_table`.
    """
    hashed = np.uint64(0)
    began = False
    while at < end:
        byte = data[at]
        if byte < 0x80:
            letter, behind = folded[byte], at + 1
        else:
            code, behind = decode(data, at, end)
            letter = folded[np.int64(pages[code >> 8]) * 256 + np.int64(code & 255)]
        if letter > SKIPPED:
            if letter >> 31:
                if not began:
                    hashed, at = np.uint64(letter) * np.uint64(0x9E3779B97F4A7C15), behind
                    began = True
                break
            # A multiplicative hash; the shift brings what the high bits gathered back to the low ones.
            hashed = (hashed ^ np.uint64(letter)) * np.uint64(0x9E3779B97F4A7C15)
            hashed ^= hashed >> np.uint64(32)
            began = True
        elif letter == SEPARATOR and began:
            at = behind
            break
        at = behind
    return (mixed(hashed), at) if began else (np.uint64(0), np.int64(-1))


@njit
def mixed(x: Any) -> Any:
    """A bijection of uint64 in which every bit of ``x`` moves every bit of the result (MurmurHash3's finaliser)."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))
