"""Kernels of Gopher's and FineWeb's quality rules.

Gopher: Rae et al. 2021, arXiv 2112.11446, appendix A1. FineWeb: Penedo et al. 2024, arXiv
2406.17557, section 3.6.
"""

from __future__ import annotations

import numpy as np

from lit_llm.corpus.kernels.characters import LETTER, LINE_END, SYMBOL
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.repetition_rules import emptied, hash_points, pieces, repeated, slots
from lit_llm.corpus.kernels.utf8 import decode, longest
from lit_llm.corpus.kernels.words import NEWLINE, letters_apart, split, trim

_CARRIAGE_RETURN = ord("\r")
_HASH, _DOT, _ELLIPSIS, _BULLET, _DASH = map(ord, "#.…•-")


@kernel
def line_end(points: np.ndarray, begin: int, end: int, characters: np.ndarray) -> tuple[int, int]:
    """(end of the line that starts at ``begin``, start of the next line), as in str.splitlines."""
    i = begin
    while i < end and not characters[points[i]] & LINE_END:
        i += 1
    pair = i + 1 < end and points[i] == _CARRIAGE_RETURN and points[i + 1] == NEWLINE
    return i, i + 1 + pair


@kernel
def ends_in_dots(points: np.ndarray, begin: int, end: int) -> bool:
    """Whether the last three characters are full stops."""
    return end - begin >= 3 and points[end - 1] == points[end - 2] == points[end - 3] == _DOT


@kernel
def _symbols(points: np.ndarray, size: int) -> tuple[int, int]:
    """(number of hashes, number of ellipses); three full stops are one ellipsis, six are two."""
    hashes, ellipses, dots = 0, 0, 0
    for i in range(size):
        point = points[i]
        dots = dots + 1 if point == _DOT else 0
        if dots == 3:
            ellipses += 1
            dots = 0
        hashes += point == _HASH
        ellipses += point == _ELLIPSIS
    return hashes, ellipses


@kernel
def _line_shares(points: np.ndarray, size: int, characters: np.ndarray) -> tuple[float, float]:
    """(share of lines that begin with a bullet, share of lines that end with an ellipsis)."""
    lines, bullets, ellipses = 0, 0, 0
    begin = 0
    while begin < size:
        end, following = line_end(points, begin, size, characters)
        first, last = trim(points, begin, end, characters)
        lines += 1
        bullets += first < last and (points[first] == _BULLET or points[first] == _DASH)
        ellipses += ends_in_dots(points, first, last) or (
            first < last and points[last - 1] == _ELLIPSIS
        )
        begin = following
    return bullets / lines, ellipses / lines


@kernel
def judge_gopher(
    data: np.ndarray, offsets: np.ndarray, characters: np.ndarray,
    least: np.ndarray, most: np.ndarray,
    stop_words: np.ndarray, min_stop_words: int, sense: bool, verdicts: np.ndarray,
) -> None:  # fmt: skip
    """Find the Gopher rule that drops each document.

    Args:
        data, offsets: the documents, see `utf8.buffers`.
        characters: `characters.character_table`.
        least: float64 (3,), minimum of: words, mean characters of a word, share of words with a
            letter.
        most: float64 (5,), maximum of: words, mean characters of a word, hashes or ellipses per
            word, share of lines with a bullet, share of lines with an ellipsis at the end.
        stop_words: uint64, `hash_points` of each stop word.
        sense: whether the share of words with a letter is taken over the words of `letters_apart`.
        verdicts: output, uint8 (documents,): 0 kept, 1 to 10 as in `filters.GopherQuality.rules`.
    """
    room = longest(offsets)
    points = np.empty(room, np.int32)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    apart, apart_ends = np.empty(room, np.int64), np.empty(room, np.int64)
    for document in range(len(verdicts)):
        size = decode(data, offsets[document], offsets[document + 1], points)
        count = split(points, 0, size, characters, starts, ends)
        # `real` words are those that do not consist of symbols alone, `inside` counts their
        # characters, `lettered` the words with a letter. `every` and `some` are the AND and the OR
        # of the class bits of a word.
        real, inside, lettered = 0, 0, 0
        for k in range(count):
            every, some = SYMBOL, 0
            for i in range(starts[k], ends[k]):
                bits = characters[points[i]]
                every &= bits
                some |= bits
            if not every:
                real += 1
                inside += ends[k] - starts[k]
            lettered += some & LETTER != 0
        of = count
        if sense:
            of = letters_apart(points, starts, ends, count, characters, apart, apart_ends)
            lettered = 0
            for k in range(of):
                for i in range(apart[k], apart_ends[k]):
                    if characters[points[i]] & LETTER:
                        lettered += 1
                        break
        mean = inside / real if real else np.nan
        if count == 0 or real < least[0]:
            verdicts[document] = 1
        elif real > most[0]:
            verdicts[document] = 2
        elif mean < least[1]:
            verdicts[document] = 3
        elif mean > most[1]:
            verdicts[document] = 4
        else:
            hashes, ellipses = _symbols(points, size)
            bulleted, trailing = _line_shares(points, size, characters)
            if hashes / count > most[2]:
                verdicts[document] = 5
            elif ellipses / count > most[2]:
                verdicts[document] = 6
            elif bulleted > most[3]:
                verdicts[document] = 7
            elif trailing > most[4]:
                verdicts[document] = 8
            elif lettered / max(of, 1) < least[2]:
                verdicts[document] = 9
            elif _too_few_of(stop_words, min_stop_words, points, starts, ends, count):
                verdicts[document] = 10
            else:
                verdicts[document] = 0


@kernel
def _too_few_of(
    wanted: np.ndarray,
    least: int,
    points: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    count: int,
) -> bool:
    """Whether fewer than ``least`` of the ``wanted`` words occur among ``count`` words."""
    seen = np.zeros(len(wanted), np.bool_)
    found = 0
    for k in range(count):
        if found >= least:
            break
        key = hash_points(points, starts[k], ends[k])
        for j in range(len(wanted)):
            if wanted[j] == key and not seen[j]:
                seen[j] = True
                found += 1
    return found < least


@kernel
def judge_fineweb(
    data: np.ndarray, offsets: np.ndarray, characters: np.ndarray, stops: np.ndarray,
    limits: np.ndarray, except_zero: bool, verdicts: np.ndarray,
) -> None:  # fmt: skip
    """Find the FineWeb rule that drops each document.

    Args:
        data, offsets, characters: as in `judge_gopher`.
        stops: int32, sorted: the characters that terminate a line.
        limits: float64 (5,): minimum share of terminated lines, maximum share of short lines,
            characters of a short line at most, maximum share of characters in repeated lines,
            maximum newlines per word.
        except_zero: whether a document without any terminated line passes the first rule.
        verdicts: output, uint8 (documents,): 0 kept, 1 to 5 as in `filters.FineWebQuality.rules`.
    """
    room = longest(offsets) + 1
    points = np.empty(room, np.int32)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    table = np.empty(slots(room), np.uint64)
    for document in range(len(verdicts)):
        size = decode(data, offsets[document], offsets[document + 1], points)
        # Keep the lines that are not blank in `starts` and `ends`, and count those that are
        # terminated or short.
        lines, stopped, short = 0, 0, 0
        for k in range(pieces(points, 0, size, 1, starts, ends)):
            first, last = trim(points, starts[k], ends[k], characters)
            if first == last:
                continue
            starts[lines], ends[lines] = starts[k], ends[k]
            lines += 1
            final = points[ends[k] - 1]
            at = np.searchsorted(stops, final)
            stopped += at < len(stops) and stops[at] == final
            short += ends[k] - starts[k] <= limits[2]
        if lines == 0:
            verdicts[document] = 1
            continue
        newlines = 0
        for i in range(size):
            newlines += points[i] == NEWLINE
        if stopped / lines < limits[0] and not (stopped == 0 and except_zero):
            verdicts[document] = 2
        elif short / lines > limits[1]:
            verdicts[document] = 3
        elif (
            repeated(points, starts[:lines], ends[:lines], emptied(table, lines))[1]
            / (size - newlines)
            > limits[3]
        ):
            verdicts[document] = 4
        elif newlines / split(points, 0, size, characters, starts, ends) > limits[4]:
            verdicts[document] = 5
        else:
            verdicts[document] = 0
