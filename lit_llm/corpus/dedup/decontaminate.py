"""Documents that hold parts of evaluation texts: a model that has read them is not measured by
them.

A document is contaminated when it shares ``ngram`` words in a row with an evaluation text, 13 as in
GPT-3 (arXiv:2005.14165, appendix C), in lower case and without punctuation. Of texts that are
shorter, all words in a row count if they are ``shortest`` or more: fewer are found anywhere. In
scripts without spaces between words, two letters count as a word, four in Thai and its like.
(Ratios of overlapping 8-grams, as Llama 3 and Tülu 3 take them, grade evaluation items after
training; what is asked here is which documents to leave out.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, Texts, documents, texts
from lit_llm.corpus.kernels.folding import UNSPACED, fold_table
from lit_llm.corpus.kernels.limits import LONGEST_NGRAM
from lit_llm.corpus.kernels.overlap import document_hits, ngram_hashes
from lit_llm.corpus.kernels.utf8 import buffers
from lit_llm.corpus.reading.rows import json_rows
from lit_llm.errors import UserError

LETTERS_A_WORD = 2
"""In Chinese and Japanese: running Chinese has about 1.6 letters a word, Japanese 2."""
MARKED_LETTERS_A_WORD = 4
"""In Thai, Lao, Burmese and Khmer, vowel signs counted."""
_MARKED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"


@dataclass(frozen=True)
class Decontaminate(Block):
    """Drops documents that share words with evaluation texts; "contaminated_by" names the first set
    of texts that does.

    Attributes:
        names: of the sets of evaluation texts.
        lengths: [k] int64, the n-grams' lengths in words, ascending.
        hashes: for each length, sorted uint64.
        owners: for each hash, the number of its set in ``names``.
        report: only fill "contaminated_by".
    """

    name = "decontaminate"
    names: tuple[str, ...]
    lengths: np.ndarray = field(repr=False)
    hashes: tuple[np.ndarray, ...] = field(repr=False)
    owners: tuple[np.ndarray, ...] = field(repr=False)
    report: bool = False

    @classmethod
    def against(
        cls,
        evaluations: Mapping[str, Texts],
        ngram: int = 13,
        shortest: int = 8,
        report: bool = False,
    ) -> Decontaminate:
        """From evaluation texts, by the name of the task (or file) that they are of.

        A task's texts are best given one by question and one by answer: words in a row that come
        from both are in no document that holds them otherwise.

        Raises:
            UserError: no text has ``shortest`` words; ``shortest`` <= ``ngram`` <= 63 does not
                hold.
        """
        if not 1 <= shortest <= ngram <= LONGEST_NGRAM:
            raise UserError(
                f"decontaminate: 1 <= shortest <= ngram <= {LONGEST_NGRAM} does not hold for "
                f"{shortest}, {ngram}"
            )
        found: dict[int, list[tuple[np.ndarray, int]]] = {}
        for number, given in enumerate(evaluations.values()):
            for written, letters in _by_script(texts(given)):
                words = min(letters * ngram, LONGEST_NGRAM), min(letters * shortest, LONGEST_NGRAM)
                lengths, hashes = ngram_hashes(*buffers(written), fold_table(), *words)
                for length in np.unique(lengths):
                    found.setdefault(int(length), []).append((hashes[lengths == length], number))
        if not found:
            raise UserError(
                f"decontaminate: no evaluation text has {shortest} words; give longer ones or a "
                f"lower bound"
            )
        hashes_by_length, owners_by_length = [], []
        for _, parts in sorted(found.items()):
            every = np.concatenate([hashes for hashes, _ in parts])
            owner = np.concatenate(
                [np.full(len(hashes), number, np.int32) for hashes, number in parts]
            )
            unique, first = np.unique(every, return_index=True)
            hashes_by_length.append(unique)
            owners_by_length.append(owner[first])
        return cls(
            tuple(evaluations),
            np.array(sorted(found)),
            tuple(hashes_by_length),
            tuple(owners_by_length),
            report,
        )

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill "dropped" and "contaminated_by"."""
        data, offsets = buffers(texts(table["text"]))
        starts = np.cumsum([0, *map(len, self.hashes)])
        hits = document_hits(
            data,
            offsets,
            fold_table(),
            self.lengths,
            starts,
            np.concatenate(self.hashes),
            np.concatenate(self.owners),
        )
        by = pa.array(self.names, pa.string()).take(pa.array(hits, mask=hits < 0))
        table = table.append_column("contaminated_by", by)
        if self.report:
            return table
        reason = pa.scalar(f"{self.name}: shares words with an evaluation text", pa.string())
        dropped = pc.if_else(by.is_valid(), reason, pa.scalar(None, pa.string()))
        return table.set_column(table.schema.get_field_index("dropped"), "dropped", dropped)

    def contaminated(self, given: Texts) -> list[str | None]:
        """For each text of a list the name of what it is contaminated by, None where it is
        clean."""
        return self.apply(documents(given))["contaminated_by"].to_pylist()


def _by_script(given: pa.LargeStringArray) -> list[tuple[pa.Array, int]]:
    """(texts, what counts as a word of them in letters): where spaces part most words, that is 1
    for a whole word."""

    def count(pattern: str) -> pa.Array:
        return pc.count_substring_regex(given, pattern)

    letters, marked = count(f"[{UNSPACED}]"), count(f"[{_MARKED}]")
    # A name in Chinese among English words has more letters than they are words.
    words = pc.count_substring_regex(
        pc.replace_substring_regex(given, f"[{UNSPACED}]", " "), r"[\pL\pN]+"
    )
    unspaced = pc.greater(letters, words)
    mostly = pc.and_(unspaced, pc.greater(pc.multiply(marked, 2), letters))
    return [
        (given.filter(pc.invert(unspaced)), 1),
        (given.filter(pc.and_not(unspaced, mostly)), LETTERS_A_WORD),
        (given.filter(mostly), MARKED_LETTERS_A_WORD),
    ]


def evaluation_texts(
    paths: Sequence[str | Path], fields: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """The strings in rows of JSONL files, by the file's stem; ``fields`` names the ones to take,
    None takes all.

    Strings inside lists and objects count as well (choices, turns of a conversation).

    Raises:
        UserError: a file is not readable, has a broken line, or no string in such a field.
    """
    found: dict[str, list[str]] = {}
    for path in map(Path, paths):
        strings: list[str] = []
        for number, row in json_rows(path):
            if isinstance(row, bytes):
                raise UserError(f"{path}:{number}: not UTF-8; convert the file")
            strings += _strings(
                [value for key, value in row.items() if fields is None or key in fields]
            )
        if not strings:
            wanted = "any field" if fields is None else " or ".join(map(repr, fields))
            raise UserError(f"{path}: no row has text in {wanted}")
        found.setdefault(path.stem, []).extend(strings)
    return found


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in _strings(part)]
