"""Split text into words and sentences: kernels over code points (see `utf8`).

Words are those of spaCy's English tokenizer, approximated by rules on neighbouring characters:

- White space separates chunks.
- At both ends of a chunk, every character that is `characters.ALONE` is a word: punctuation,
  quotes, currency, symbols, but not ``- / \\ | @ ^ ~ +``. A full stop at the end is a word, unless
  it follows a single letter that is a capital or has a full stop before it ("J.", "U.S.", "e.g.").
- Inside a chunk, these are words of their own: pictures (category So); ``. `` between a small
  letter or quote and a capital or quote; ``,`` between letters; a hyphen between a letter or digit
  and a letter; ``: < > = /`` likewise; ``+ - * ^`` between digits. An address (``://`` or a leading
  ``www.``) is not split inside.
- Two or more full stops in a row, and ``…``, are one word everywhere.
- ``n't 's 'm 'd 're 've 'll`` at the end are words of their own, with either apostrophe, in small
  letters or capitals.

Scripts without spaces (Chinese, Japanese, Thai) are not split between letters; spaCy's English
tokenizer does not split them either.
"""

from __future__ import annotations

import numpy as np

from lit_llm.corpus.kernels.characters import (
    ALONE,
    DIGIT,
    HYPHEN,
    ICON,
    LETTER,
    LOWER,
    PUNCTUATION,
    QUOTE,
    SPACE,
    SYMBOL,
    TERMINAL,
    UNSPACED,
    UPPER,
    character_table,
)
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.utf8 import decode

NEWLINE = ord("\n")
_DOT, _COMMA, _DASH, _SLASH, _COLON, _ELLIPSIS = map(ord, ".,-/:…")
_JOINTS = tuple(map(ord, ":<>=/"))
_SIGNS = tuple(map(ord, "+-*^"))
_AFTER_ONE = tuple(map(ord, "smd"))
_AFTER_TWO = tuple((ord(a), ord(b)) for a, b in ("re", "ve", "ll"))
_N, _T = map(ord, "nt")
_APOSTROPHES = tuple(map(ord, "'’"))  # noqa: RUF001


@kernel
def split(
    points: np.ndarray,
    begin: int,
    end: int,
    table: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
) -> int:
    """Split ``points[begin:end]`` into words; returns their number.

    Word k is ``points[starts[k]:ends[k]]``. ``starts`` and ``ends`` are int64 and at least
    ``end - begin`` long.
    """
    count = 0
    i = begin
    while i < end:
        if table[points[i]] & SPACE:
            i += 1
            continue
        close = i + 1
        while close < end and not table[points[close]] & SPACE:
            close += 1
        # The chunk is points[i:close]. First its leading single-character words, then its inside up
        # to `tail`, then its trailing single-character words. A run of full stops is one word.
        tail = _tail(points, i, close, table)
        while i < tail:
            dots = _dots(points, i, tail)
            if dots < 2 and not table[points[i]] & ALONE:
                break
            count = _add(starts, ends, count, i, i + max(1, dots))
            i = ends[count - 1]
        count = _split_inside(points, i, tail, table, starts, ends, count)
        i = tail
        while i < close:
            count = _add(starts, ends, count, i, i + max(1, _dots(points, i, close)))
            i = ends[count - 1]
    return count


@kernel
def _add(starts: np.ndarray, ends: np.ndarray, count: int, start: int, end: int) -> int:
    starts[count] = start
    ends[count] = end
    return count + 1


@kernel
def _dots(points: np.ndarray, i: int, end: int) -> int:
    """Number of consecutive full stops at ``i``."""
    stop = i
    while stop < end and points[stop] == _DOT:
        stop += 1
    return stop - i


@kernel
def _tail(points: np.ndarray, begin: int, end: int, table: np.ndarray) -> int:
    """Where the trailing characters of a chunk begin that are words of their own."""
    i = end
    while i > begin:
        if points[i - 1] == _DOT:
            dot = i - 1
            while dot > begin and points[dot - 1] == _DOT:
                dot -= 1
            if dot == i - 1 and _ends_abbreviation(points, begin, dot, table):
                break
            i = dot
        elif table[points[i - 1]] & ALONE:
            i -= 1
        else:
            break
    return i


@kernel
def _ends_abbreviation(points: np.ndarray, begin: int, dot: int, table: np.ndarray) -> bool:
    """Whether the full stop follows a single letter: a capital, or one after a full stop."""
    if dot == begin or not table[points[dot - 1]] & LETTER:
        return False
    if dot - 1 == begin or not table[points[dot - 2]] & (LETTER | DIGIT):
        dotted = dot - 1 > begin and points[dot - 2] == _DOT
        return dotted or table[points[dot - 1]] & UPPER != 0
    return False


@kernel
def _split_inside(
    points: np.ndarray,
    begin: int,
    end: int,
    table: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    count: int,
) -> int:
    """Split the inside of a chunk, ``points[begin:end]``; returns the new number of words."""
    start = begin
    i = begin + 1
    address = _is_address(points, begin, end)
    while i < end - 1 and not address:
        if table[points[i]] & (LETTER | DIGIT):
            i += 1
            continue
        size = _infix(points, i, end, table)
        if size:
            if start < i:
                count = _add(starts, ends, count, start, i)
            count = _add(starts, ends, count, i, i + size)
            start = i + size
        i += max(1, size)
    if start < end:
        cut = _contraction(points, start, end, table)
        if cut < end:
            count = _add(starts, ends, count, start, cut)
        count = _add(starts, ends, count, cut if cut < end else start, end)
    return count


@kernel
def _infix(points: np.ndarray, i: int, end: int, table: np.ndarray) -> int:
    """Length of the infix word at ``i`` inside a chunk; 0 if the character is not an infix."""
    point = points[i]
    bits, before, after = table[point], table[points[i - 1]], table[points[i + 1]]
    if point == _DOT:
        dots = _dots(points, i, end)
        return dots if dots > 1 or (before & (LOWER | QUOTE) and after & (UPPER | QUOTE)) else 0
    if bits & ICON or point == _ELLIPSIS:
        return 1
    if point == _COMMA and before & LETTER and after & LETTER:
        return 1
    if (bits & HYPHEN or point in _JOINTS) and before & (LETTER | DIGIT) and after & LETTER:
        return 1
    return int(
        point in _SIGNS and before & DIGIT != 0 and (after & DIGIT != 0 or points[i + 1] == _DASH)
    )


@kernel
def _is_address(points: np.ndarray, begin: int, end: int) -> bool:
    """Whether the chunk starts with ``www.`` or contains ``://``."""
    if (
        begin + 4 < end
        and points[begin] == ord("w")
        and points[begin + 1] == ord("w")
        and points[begin + 2] == ord("w")
    ):
        return points[begin + 3] == _DOT
    for i in range(begin, end - 2):
        if points[i] == _COLON and points[i + 1] == _SLASH and points[i + 2] == _SLASH:
            return True
    return False


@kernel
def _contraction(points: np.ndarray, begin: int, end: int, table: np.ndarray) -> int:
    """Where the contraction at the end of a word begins; ``end`` if there is none."""
    if end - 3 < begin:
        return end
    # The last three characters. `| 0x20` lowers the case of an ASCII letter.
    third, second, last = points[end - 3], points[end - 2], points[end - 1] | 0x20
    if second in _APOSTROPHES and table[third] & LETTER and last in _AFTER_ONE:
        return end - 2
    if end - 4 >= begin and table[points[end - 4]] & LETTER:
        not_ = third | 0x20 == _N and second in _APOSTROPHES and last == _T
        if not_ or (third in _APOSTROPHES and (second | 0x20, last) in _AFTER_TWO):
            return end - 3
    return end


@kernel
def letters_apart(
    points: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    count: int,
    table: np.ndarray,
    apart: np.ndarray,
    apart_ends: np.ndarray,
) -> int:
    """Drop words of symbols alone and split unspaced scripts into letters; returns the word count.

    Each letter of a script without spaces becomes a word. ``apart`` and ``apart_ends`` are the
    outputs: int64, with room for one word per character.
    """
    found = 0
    for k in range(count):
        symbols = True
        for i in range(starts[k], ends[k]):
            symbols &= table[points[i]] & SYMBOL != 0
        if symbols:
            continue
        start = starts[k]
        for i in range(starts[k], ends[k]):
            if table[points[i]] & UNSPACED:
                if start < i:
                    found = _add(apart, apart_ends, found, start, i)
                found = _add(apart, apart_ends, found, i, i + 1)
                start = i + 1
        if start < ends[k]:
            found = _add(apart, apart_ends, found, start, ends[k])
    return found


@kernel
def sentences(
    points: np.ndarray, starts: np.ndarray, ends: np.ndarray, count: int, table: np.ndarray
) -> int:
    """Number of sentences in ``count`` words, by the rule of spaCy's sentencizer.

    A word of one `characters.TERMINAL` character ends a sentence. The next word that is neither
    such a character nor punctuation alone begins a new sentence.
    """
    found = min(count, 1)
    ended = False
    for k in range(count):
        terminal = ends[k] == starts[k] + 1 and table[points[starts[k]]] & TERMINAL
        if terminal:
            ended = True
        elif ended:
            for i in range(starts[k], ends[k]):
                if not table[points[i]] & PUNCTUATION:
                    found += 1
                    ended = False
                    break
    return found


@kernel
def trim(points: np.ndarray, begin: int, end: int, table: np.ndarray) -> tuple[int, int]:
    """(begin, end) without whitespace at both ends, as str.strip."""
    while begin < end and table[points[begin]] & SPACE:
        begin += 1
    while begin < end and table[points[end - 1]] & SPACE:
        end -= 1
    return begin, end


def words(text: str) -> list[str]:
    """The words of a text."""
    data = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    points = np.empty(len(data), np.int32)
    count = decode(data, 0, len(data), points)
    starts, ends = np.empty(count, np.int64), np.empty(count, np.int64)
    found = split(points, 0, count, character_table(), starts, ends)
    return [
        text[start:end]
        for start, end in zip(starts[:found].tolist(), ends[:found].tolist(), strict=True)
    ]
