"""Kernel of C4's cleaning rules: they drop lines from documents, and whole documents.

The rules are from Raffel et al. 2020, arXiv 1910.10683, section 2.2, and from
tensorflow_datasets' c4_utils.py.
"""

from __future__ import annotations

import numpy as np

from lit_llm.corpus.kernels.characters import DECIMAL, SPACE
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.quality_rules import ends_in_dots, line_end
from lit_llm.corpus.kernels.utf8 import decode, encode, longest
from lit_llm.corpus.kernels.words import NEWLINE, sentences, split, trim

POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_BRACE, _OPEN, _CLOSE = map(ord, "{[]")
_ENDS = tuple(map(ord, ".?!\"'"))
# The Kelvin sign: the only non-ASCII character whose lower case is an ASCII letter of the phrases.
_KELVIN = 0x212A


def phrases(*texts: str) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate lower-case ASCII texts: their code points (int32) and their offsets (int64)."""
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return np.array([ord(character) for character in "".join(texts)], np.int32), offsets


MARKS = phrases("edit]", "citation needed]")
MENTIONED = phrases("lorem ipsum", "javascript", *POLICY)


@kernel
def _small(point: int) -> int:
    """The lower case of a code point, for the ASCII letters that the phrases consist of."""
    if ord("A") <= point <= ord("Z"):
        return point | 0x20
    return ord("k") if point == _KELVIN else point


@kernel
def _mentioned(
    points: np.ndarray, begin: int, end: int, letters: np.ndarray, bounds: np.ndarray
) -> int:
    """Bit set of the phrases that occur in the line, ignoring case: bit p stands for phrase p."""
    found = 0
    for i in range(begin, end):
        first = _small(points[i])
        for p in range(len(bounds) - 1):
            size = bounds[p + 1] - bounds[p]
            if letters[bounds[p]] == first and i + size <= end:
                k = 1
                while k < size and _small(points[i + k]) == letters[bounds[p] + k]:
                    k += 1
                if k == size:
                    found |= 1 << p
    return found


@kernel
def _copy_without_citations(
    points: np.ndarray, begin: int, end: int, characters: np.ndarray,
    letters: np.ndarray, bounds: np.ndarray, line: np.ndarray, at: int,
) -> int:  # fmt: skip
    """Write the line to ``line[at:]`` without citations; returns where it ends there.

    Citations are ``[12]``, ``[]`` and the `MARKS`.
    """
    i = begin
    while i < end:
        if points[i] == _OPEN:
            # A citation is "[", any number of digits, "]"; or "[" followed by one of the marks,
            # which hold their own "]". `close` is the position of the last character to skip.
            close = i + 1
            while close < end and characters[points[close]] & DECIMAL:
                close += 1
            cited = close < end and points[close] == _CLOSE
            for p in range(len(bounds) - 1):
                size = bounds[p + 1] - bounds[p]
                if not cited and i + size < end:
                    k = 0
                    while k < size and points[i + 1 + k] == letters[bounds[p] + k]:
                        k += 1
                    cited, close = k == size, i + size
            if cited:
                i = close + 1
                continue
        line[at] = points[i]
        at += 1
        i += 1
    return at


@kernel
def _white_words(
    points: np.ndarray, begin: int, end: int, characters: np.ndarray
) -> tuple[int, int]:
    """(number of words separated by whitespace, characters of the longest word)."""
    count, most, size = 0, 0, 0
    for i in range(begin, end):
        if characters[points[i]] & SPACE:
            size = 0
        else:
            count += size == 0
            size += 1
            most = max(most, size)
    return count, most


@kernel
def _ends_well(points: np.ndarray, begin: int, end: int) -> bool:
    """Whether the line ends with terminal punctuation or a quote, but not with an ellipsis."""
    last = points[end - 1] if begin < end else _OPEN
    return last in _ENDS and not ends_in_dots(points, begin, end)


@kernel
def clean_c4(
    data: np.ndarray, offsets: np.ndarray, characters: np.ndarray,
    switches: tuple[bool, ...], limits: np.ndarray,
    marks: tuple[np.ndarray, np.ndarray], mentions: tuple[np.ndarray, np.ndarray],
    kept: np.ndarray, kept_offsets: np.ndarray, verdicts: np.ndarray,
) -> None:  # fmt: skip
    """Remove the lines that C4's rules drop, and record which rule drops a whole document.

    A dropped document is written to the output unchanged.

    Args:
        data, offsets: the documents, see `utf8.buffers`.
        characters: `characters.character_table`.
        switches: six switches, in this order: remove citations; drop lines without terminal
            punctuation; drop documents with "lorem ipsum"; drop lines with "javascript"; drop
            documents with a curly bracket; drop lines with a phrase of `POLICY`.
        limits: float64 (3,): minimum sentences of a document, minimum words of a line, maximum
            characters of a word.
        marks, mentions: `MARKS`, `MENTIONED`.
        kept: output, uint8, as long as all documents together.
        kept_offsets: output, int64 (documents + 1,).
        verdicts: output, uint8 (documents,): 0 kept, 1 to 3 as in `filters.C4Quality.rules`.
    """
    room = longest(offsets)
    points, text = np.empty(room, np.int32), np.empty(room + 1, np.int32)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    citations, terminal, lorem_ipsum, javascript, curly, policy = switches
    out = 0
    kept_offsets[0] = 0
    for document in range(len(verdicts)):
        # The kept lines of the document are collected in `text[:at]`. Each line is written behind
        # them first; `at` moves forward only when the line passes all rules, so that the next
        # line overwrites a dropped one. `found` counts the sentences of the kept lines.
        size = decode(data, offsets[document], offsets[document + 1], points)
        verdict, found, at, following = 0, 0, 0, 0
        while following < size and not verdict:
            begin = following
            end, following = line_end(points, begin, size, characters)
            begin, end = trim(points, begin, end, characters)
            words, most = _white_words(points, begin, end, characters)
            if most > limits[2]:
                continue
            last = at
            if citations:
                last = _copy_without_citations(
                    points, begin, end, characters, marks[0], marks[1], text, at
                )
            else:
                for i in range(begin, end):
                    text[last] = points[i]
                    last += 1
            if (terminal and not _ends_well(text, at, last)) or words < limits[1]:
                continue
            # Bit 0 is "lorem ipsum", bit 1 "javascript", the higher bits are `POLICY`.
            said = _mentioned(text, at, last, mentions[0], mentions[1])
            if lorem_ipsum and said & 1:
                verdict = 1
            elif javascript and said & 2:
                continue
            elif curly and np.any(text[at:last] == _BRACE):
                verdict = 2
            elif not (policy and said > 3):
                found += sentences(
                    text, starts, ends, split(text, at, last, characters, starts, ends), characters
                )
                text[last] = NEWLINE
                at = last + 1
        if not verdict and found < limits[0]:
            verdict = 3
        verdicts[document] = verdict
        if verdict:
            for i in range(offsets[document], offsets[document + 1]):
                kept[out] = data[i]
                out += 1
        else:
            begin, end = trim(text, 0, at, characters)
            out = encode(text, begin, end, kept, out)
        kept_offsets[document + 1] = out
