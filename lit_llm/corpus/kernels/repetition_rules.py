"""Kernel of Gopher's repetition rules (Rae et al. 2021, arXiv 2112.11446, table A1).

Pieces of text are compared by 64-bit hashes. A long document contains some 10^10 pairs, so that one
in 10^9 such documents has a pair of different pieces with equal hashes.
"""

from __future__ import annotations

import numpy as np

from lit_llm.corpus.kernels.characters import SPACE, SYMBOL, UNSPACED
from lit_llm.corpus.kernels.jit import kernel
from lit_llm.corpus.kernels.utf8 import decode, longest
from lit_llm.corpus.kernels.words import NEWLINE, letters_apart, split, trim

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse mod 2**64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_ONE = np.uint64(1)
_MIX_A, _MIX_B, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)


@kernel
def mix(value: np.uint64) -> np.uint64:
    """MurmurHash3's finalizer: every input bit changes every output bit. The result is never 0."""
    value = (value ^ (value >> _SHIFT)) * _MIX_A
    value = (value ^ (value >> _SHIFT)) * _MIX_B
    return max(value ^ (value >> _SHIFT), _ONE)


@kernel
def hash_points(points: np.ndarray, begin: int, end: int) -> np.uint64:
    """Hash of ``points[begin:end]``: a polynomial in _BASE that starts with the length."""
    value = np.uint64(end - begin)
    for i in range(begin, end):
        value = value * _BASE + np.uint64(points[i])
    return mix(value)


@kernel
def slots(entries: int) -> int:
    """Length of a hash table for ``entries``: a power of two, so that at most half is filled."""
    size = 16
    while size < 2 * entries:
        size *= 2
    return size


@kernel
def emptied(table: np.ndarray, entries: int) -> np.ndarray:
    """Clear the first part of ``table`` (uint64) as a hash table for ``entries``.

    0 marks an empty slot. The size depends on the number of entries, so that the table of a short
    document stays in the processor's cache.
    """
    size = slots(entries)
    table[:size] = 0
    return table[:size]


@kernel
def slot(table: np.ndarray, key: np.uint64) -> np.int64:
    """The slot of ``key`` (not 0), or the empty slot to insert it into. Uses linear probing."""
    mask = len(table) - 1
    i = np.int64(key & np.uint64(mask))
    while table[i] != key and table[i] != 0:
        i = (i + 1) & mask
    return i


@kernel
def pieces(
    points: np.ndarray, begin: int, end: int, least: int, starts: np.ndarray, ends: np.ndarray
) -> int:
    """Split at runs of ``least`` or more newlines; returns the number of pieces.

    The first and the last piece may be empty. ``starts`` and ``ends`` need ``end - begin + 1``
    places.
    """
    count = 0
    start = i = begin
    while i < end:
        run = i
        while run < end and points[run] == NEWLINE:
            run += 1
        if run - i >= least:
            starts[count], ends[count] = start, i
            count += 1
            start = run
        i = max(run, i + 1)
    starts[count], ends[count] = start, end
    return count + 1


@kernel
def wide_pieces(
    points: np.ndarray, starts: np.ndarray, ends: np.ndarray, count: int,
    characters: np.ndarray, least: int,
) -> int:  # fmt: skip
    """Keep the meaningful pieces among the first ``count``, in place; returns their number.

    A meaningful piece has a character that is neither symbol nor space, and is at least ``least``
    characters wide. Letters of scripts without spaces count as two characters wide.
    """
    found = 0
    for k in range(count):
        width, said = 0, False
        for i in range(starts[k], ends[k]):
            bits = characters[points[i]]
            width += 2 if bits & UNSPACED else 1
            said |= bits & (SYMBOL | SPACE) == 0
        if said and width >= least:
            starts[found], ends[found] = starts[k], ends[k]
            found += 1
    return found


@kernel
def repeated(
    points: np.ndarray, starts: np.ndarray, ends: np.ndarray, table: np.ndarray
) -> tuple[int, int]:
    """(number of pieces that occurred before, their characters); ``table`` is `emptied`."""
    found, characters = 0, 0
    for k in range(len(starts)):
        key = hash_points(points, starts[k], ends[k])
        i = slot(table, key)
        if table[i] == key:
            found += 1
            characters += ends[k] - starts[k]
        table[i] = key
    return found, characters


@kernel
def top_n_gram(
    hashes: np.ndarray, lengths: np.ndarray, n: int, table: np.ndarray,
    counts: np.ndarray, firsts: np.ndarray, least: int, spaced: bool,
) -> int:  # fmt: skip
    """Characters of all occurrences of the most frequent n-gram of words.

    Among equally frequent n-grams the first one counts. The result is 0 if the n-gram occurs less
    than ``least`` times.

    Args:
        hashes: uint64 (words,).
        lengths: int64 (words + 1,), the number of characters before each word.
        n: words of an n-gram.
        table: `emptied`.
        counts, firsts: int32, as long as ``table``, for each n-gram in it: its number of
            occurrences and the position of the first.
        least: at least 1.
        spaced: whether to count a space between two words.
    """
    most, top = 0, 0
    for k in range(len(hashes) - n + 1):
        key = hashes[k]
        for j in range(k + 1, k + n):
            key = key * _BASE + hashes[j]
        key = mix(key)
        i = slot(table, key)
        if table[i] == 0:
            table[i] = key
            counts[i] = 0
            firsts[i] = k
        counts[i] += 1
        if counts[i] > most or (counts[i] == most and firsts[i] < top):
            most, top = counts[i], firsts[i]
    spaces = n - 1 if spaced else 0
    return most * (lengths[top + n] - lengths[top] + spaces) if most >= least else 0


@kernel
def repeated_n_grams(
    sums: np.ndarray, powers: np.ndarray, lengths: np.ndarray, n: int, table: np.ndarray
) -> tuple[int, int]:
    """(characters, words) in n-grams that occurred before; no word is counted twice.

    Two n-grams are equal if their characters are equal, wherever their words end. The hash of an
    n-gram is a difference of two prefix sums, multiplied by the inverse power of its position. So
    it does not depend on where the n-gram is in the document.

    Args:
        sums: uint64 (words + 1,), prefix sums of (character + 1) * base**i over the characters
            before each word, i from 0.
        powers: uint64 (words + 1,), base**-i of each word's first character.
        lengths: as in `top_n_gram`.
        table: `emptied`.
    """
    characters, words = 0, 0
    k = 0
    while k + n < len(lengths):
        key = mix((sums[k + n] - sums[k]) * powers[k])
        i = slot(table, key)
        # After a repeated n-gram, continue behind it.
        if table[i] == key:
            characters += lengths[k + n] - lengths[k]
            words += n
            k += n
        else:
            table[i] = key
            k += 1
    return characters, words


@kernel
def _hash_words(
    points: np.ndarray, starts: np.ndarray, ends: np.ndarray,
    hashes: np.ndarray, sums: np.ndarray, powers: np.ndarray, lengths: np.ndarray,
) -> None:  # fmt: skip
    """Fill the arrays that `top_n_gram` and `repeated_n_grams` read."""
    total, power, inverse = np.uint64(0), _ONE, _ONE
    sums[0], powers[0], lengths[0] = total, inverse, 0
    for k in range(len(starts)):
        for i in range(starts[k], ends[k]):
            total += (np.uint64(points[i]) + _ONE) * power
            power *= _BASE
            inverse *= _INVERSE
        sums[k + 1], powers[k + 1], lengths[k + 1] = (
            total,
            inverse,
            lengths[k] + ends[k] - starts[k],
        )
        hashes[k] = mix((sums[k + 1] - sums[k]) * powers[k])


@kernel
def judge_repetition(
    data: np.ndarray, offsets: np.ndarray, characters: np.ndarray, limits: np.ndarray,
    top_n: np.ndarray, top_limits: np.ndarray, top_least: int,
    dup_n: np.ndarray, dup_limits: np.ndarray,
    least: np.ndarray, sense: bool, spaced: bool, verdicts: np.ndarray,
) -> None:  # fmt: skip
    """Find the repetition rule that drops each document.

    Args:
        data, offsets: the documents, see `utf8.buffers`.
        characters: `characters.character_table`.
        limits: float64 (5,), maximum share of: repeated paragraphs, characters in them, repeated
            lines, characters in them; and of characters when fewer than ``least`` pieces are
            repeated.
        top_n, top_limits: int64, float64: values of n, and the maximum share of a document's
            characters in the most frequent n-gram.
        top_least: minimum occurrences of a most frequent n-gram.
        dup_n, dup_limits: likewise, for all n-grams that occurred before in the document.
        least: int64 (3,): how many lines or paragraphs must be repeated for their own limits to
            apply; how many words must be repeated for ``dup_limits`` to apply; minimum characters
            of a line that counts in the share of lines.
        sense: if true, lines, paragraphs and words of symbols alone do not count, and each letter
            of a script without spaces is a word.
        spaced: whether the words of an n-gram have spaces between them.
        verdicts: output, uint8 (documents,): 0 kept, 1 empty, 2 to 5 the first four ``limits``,
            then one number for each of ``top_n`` and of ``dup_n``.
    """
    room = longest(offsets) + 1
    points = np.empty(room, np.int32)
    starts, ends, lengths, apart, apart_ends = (
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
    )
    hashes, sums, powers = (
        np.empty(room, np.uint64),
        np.empty(room, np.uint64),
        np.empty(room, np.uint64),
    )
    # Large enough for any of these documents. Memory that is never touched costs nothing.
    table = np.empty(slots(room), np.uint64)
    counts, firsts = np.empty(len(table), np.int32), np.empty(len(table), np.int32)
    for document in range(len(verdicts)):
        size = decode(data, offsets[document], offsets[document + 1], points)
        verdicts[document] = size == 0
        # Repeated paragraphs (rules 2 and 3), then repeated lines (rules 4 and 5): in each pair the
        # share of pieces, then the share of characters.
        for rule in (2, 4):
            if verdicts[document]:
                break
            begin, end = trim(points, 0, size, characters) if rule == 2 else (0, size)
            count = pieces(points, begin, end, 2 if rule == 2 else 1, starts, ends)
            if sense:
                count = wide_pieces(points, starts, ends, count, characters, 0)
            found, inside = repeated(points, starts[:count], ends[:count], emptied(table, count))
            most = limits[rule - 1]
            if found < least[0]:
                most = max(most, limits[4])
            if rule == 4 and least[2]:
                count = wide_pieces(points, starts, ends, count, characters, least[2])
                found, _ = repeated(points, starts[:count], ends[:count], emptied(table, count))
            if found >= least[0] and count and found / count > limits[rule - 2]:
                verdicts[document] = rule
            elif inside / size > most:
                verdicts[document] = rule + 1
        if verdicts[document]:
            continue
        count = split(points, 0, size, characters, starts, ends)
        if sense:
            count = letters_apart(points, starts, ends, count, characters, apart, apart_ends)
            starts[:count], ends[:count] = apart[:count], apart_ends[:count]
        _hash_words(points, starts[:count], ends[:count], hashes, sums, powers, lengths)
        for rule in range(len(top_n)):
            most = top_n_gram(
                hashes[:count],
                lengths[: count + 1],
                top_n[rule],
                emptied(table, count),
                counts,
                firsts,
                top_least,
                spaced,
            )
            if most / size > top_limits[rule]:
                verdicts[document] = 6 + rule
                break
        if verdicts[document]:
            continue
        for rule in range(len(dup_n)):
            inside, again = repeated_n_grams(
                sums, powers, lengths[: count + 1], dup_n[rule], emptied(table, count)
            )
            share = dup_limits[rule] if again >= least[1] else max(dup_limits[rule], limits[4])
            if inside / size > share:
                verdicts[document] = 6 + len(top_n) + rule
                break
