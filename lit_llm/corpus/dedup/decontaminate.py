"""Decontamination: find documents that contain parts of evaluation texts.

A benchmark does not measure a model that was trained on its texts.

A document is contaminated if it shares an n-gram of ``ngram`` words with an evaluation text, in
lower case and without punctuation. The default of 13 words is that of GPT-3 (arXiv:2005.14165,
appendix C). If an evaluation text is shorter, the whole text is one n-gram, as long as it has at
least ``shortest`` words. Shorter texts are ignored, because they occur anywhere. In scripts without
spaces between words, two letters count as a word; in Thai and similar scripts, four.

Llama 3 and Tülu 3 use ratios of overlapping 8-grams. Those grade evaluation items after training.
Here the question is which documents to leave out.
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
"""For Chinese and Japanese. Running Chinese has about 1.6 letters per word, Japanese 2."""
MARKED_LETTERS_A_WORD = 4
"""For Thai, Lao, Burmese and Khmer, including vowel signs."""
_MARKED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"


@dataclass(frozen=True)
class Decontaminate(Block):
    """Drop documents that share an n-gram with evaluation texts.

    "contaminated_by" names the set of evaluation texts that the document's first such n-gram
    belongs to.

    Attributes:
        names: the names of the sets of evaluation texts.
        lengths: [k] int64, ascending: the lengths of the n-grams in words.
        hashes: for each length, the sorted hashes of its n-grams, uint64.
        owners: for each hash, the index of its set in ``names``.
    """

    name = "decontaminate"
    names: tuple[str, ...]
    lengths: np.ndarray = field(repr=False)
    hashes: tuple[np.ndarray, ...] = field(repr=False)
    owners: tuple[np.ndarray, ...] = field(repr=False)

    @classmethod
    def against(
        cls,
        evaluations: Mapping[str, Texts],
        ngram: int = 13,
        shortest: int = 8,
    ) -> Decontaminate:
        """Build the block from evaluation texts; the keys are names of tasks or files.

        Questions and answers of a task should be separate texts. An n-gram that spans a question
        and its answer would miss a document that contains only one of them, or both apart.

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
            # In unspaced scripts the kernels count each letter as a word.
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
        reason = pa.scalar(f"{self.name}: shares words with an evaluation text", pa.string())
        dropped = pc.if_else(by.is_valid(), reason, pa.scalar(None, pa.string()))
        return table.set_column(table.schema.get_field_index("dropped"), "dropped", dropped)

    def contaminated(self, given: Texts) -> list[str | None]:
        """For each text, the name of the set that it is contaminated by, None if it is clean."""
        return self.apply(documents(given))["contaminated_by"].to_pylist()


def _by_script(given: pa.LargeStringArray) -> list[tuple[pa.Array, int]]:
    """Group texts by script: [(texts, letters that count as a word)].

    The number is 1 for texts with spaces between most words: there, words are counted.
    """

    def count(pattern: str) -> pa.Array:
        return pc.count_substring_regex(given, pattern)

    letters, marked = count(f"[{UNSPACED}]"), count(f"[{_MARKED}]")
    # A text is unspaced if it has more letters of unspaced scripts than words of other scripts. So
    # a Chinese name in an English text does not change its group.
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
    """The strings in the rows of JSONL files, by the file's stem.

    ``fields`` names the fields to read; None reads all. Strings inside lists and objects are read
    too (choices, turns of a conversation).

    Raises:
        UserError: a file is not readable, has a broken line, or no string in such a field.
    """
    found: dict[str, list[str]] = {}
    for path in map(Path, paths):
        strings: list[str] = []
        for number, row in json_rows(path):
            if isinstance(row, bytes):
                raise UserError(f"{path}:{number}: not UTF-8; convert the file")
            strings += strings_in(
                [value for key, value in row.items() if fields is None or key in fields]
            )
        if not strings:
            wanted = "any field" if fields is None else " or ".join(map(repr, fields))
            raise UserError(f"{path}: no row has text in {wanted}")
        found.setdefault(path.stem, []).extend(strings)
    return found


def strings_in(value: Any) -> list[str]:
    """All strings in a JSON value, at any depth."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in strings_in(part)]
