r"""Cleaning step: a function from a table of documents to a table of the same documents.

A block of your own that scores texts and drops some, for ``extra_blocks`` of a build:

    @dataclass(frozen=True)
    class Capitals(Block):
        name = "capitals"  # in dropped/, the data card and ``after``
        scores = ("share_of_capitals",)  # fields that it adds to documents' "scores"
        most: float = 0.5  # a setting, given by init_args

        def apply(self, table):  # called with the documents that are still kept
            text = texts(table["text"])
            letters = pc.max_element_wise(pc.count_substring_regex(text, r"\p{L}"), 1)
            share = pc.divide(pc.count_substring_regex(text, r"\p{Lu}").cast("float"), letters)
            reasons = pc.if_else(pc.greater(share, self.most), "shouts", None)
            return self.drop(self.score(table, "share_of_capitals", share), reasons)

A document is a row. Every table has the columns "id" (string), "text" (large_string) and "dropped"
(string: null while the document is kept, else "block: reason"). Further columns ("source", "url",
"language", "license", scores) are passed through. The rows and their order do not change: a dropped
row stays with its reason until the engine moves it aside, and later blocks ignore it. So blocks
have no state, their effect is counted from the tables (`funnel`), and the same block runs alone or
under Daft, Ray Data or Spark, on batches of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Texts: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray
Numbers: TypeAlias = Sequence[float | None] | np.ndarray | pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class Block:
    """A cleaning step. Its fields are its settings; ``block(table)`` runs it.

    Subclasses implement ``apply``, which is called with the rows that are still kept. It may change
    "text" and other columns, fill "dropped" (`drop`) and add scores (`score`). It returns the same
    rows in the same order, and leaves "id", "source", "path" and "offset" alone.

    A build makes a block once in each process and calls it with the tables of many parts, on a
    small input from several threads: what ``apply`` returns must depend on the table alone.

    Attributes:
        name: a word that names it in the data card, in dropped/ and among the places of a chain.
        scores: names of the numbers that it adds: fields of the column "scores" of documents/.
        version: change it to have a build make documents anew. A change of the file that defines
            the class is seen without it, one in a module or package that the file imports is not.
    """

    name: ClassVar[str]
    scores: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[str] = ""

    def apply(self, table: pa.Table) -> pa.Table:
        """Change or add columns, or fill "dropped", in a table whose rows are all kept.

        The result has the same rows in the same order.
        """
        raise NotImplementedError

    def __call__(self, table: pa.Table) -> pa.Table:
        """Apply the block to the rows that are still kept.

        The other rows pass through; they get null in new columns.
        """
        if table["dropped"].null_count == len(table):
            return self.apply(table)
        kept = pc.is_null(table["dropped"])
        done = self.apply(table.filter(kept))
        # One take restores the original order of the two parts. The sort is stable, so `positions`
        # holds the original place of each row of `both`.
        both = pa.concat_tables([done, table.filter(pc.invert(kept))], promote_options="default")
        positions = pc.sort_indices(pc.if_else(kept, 0, 1))
        return both.take(pc.sort_indices(positions))

    def inputs(self) -> tuple[str, ...]:
        """Return files that the block reads, such as a model. If they change, it runs again."""
        return ()

    def score(self, table: pa.Table, name: str, values: Numbers) -> pa.Table:
        """Return ``table`` with a number for each row as the score ``name``; null or NaN: none."""
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        return with_column(table, score_column(name), array.cast(pa.float32(), safe=False))

    def drop(self, table: pa.Table, reasons: pa.StringArray | Sequence[str | None]) -> pa.Table:
        """Return ``table`` (all rows kept) with "dropped" filled where there is a reason."""
        if not isinstance(reasons, pa.Array | pa.ChunkedArray):
            reasons = pa.array(reasons, pa.string())
        said = pc.binary_join_element_wise(
            pa.scalar(self.name), reasons, ": ", null_handling="emit_null"
        )
        return with_column(table, "dropped", said.cast(pa.string()))

    def texts(self, text: Texts) -> list[str]:
        """Return the text that each string becomes."""
        return self(documents(text))["text"].to_pylist()


@dataclass(frozen=True)
class Filter(Block):
    """A block that only drops documents, by their text: subclasses implement ``judge``."""

    def judge(self, text: pa.LargeStringArray) -> pa.StringArray:
        """Return why each text is dropped; null where it is kept."""
        raise NotImplementedError

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill "dropped"."""
        return self.drop(table, self.judge(texts(table["text"])))

    def reasons(self, documents: Texts) -> list[str | None]:
        """Return why each string would be dropped; None where it is kept."""
        return self.judge(texts(documents)).to_pylist()


def texts(documents: Texts) -> pa.LargeStringArray:
    """Return the texts as one contiguous array without nulls; a null becomes an empty text."""
    if isinstance(documents, pa.ChunkedArray):
        # With a single chunk, combine_chunks would copy it.
        array = documents.chunk(0) if documents.num_chunks == 1 else documents.combine_chunks()
    else:
        array = (
            documents if isinstance(documents, pa.Array) else pa.array(documents, pa.large_string())
        )
    array = array.cast(pa.large_string())
    return array.fill_null("") if array.null_count else array


def utf8(text: pa.LargeStringArray) -> Iterator[bytes]:
    """Yield the bytes of each text from Arrow's buffers, without making a Python string."""
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    data = memoryview(text.buffers()[2] or b"")
    for start, end in pairwise(offsets.tolist()):
        yield bytes(data[start:end])


def replaced(
    text: pa.LargeStringArray, rows: Sequence[int], values: Sequence[bytes | str]
) -> pa.LargeStringArray:
    """Return ``text`` with new ``values`` at ``rows`` (ascending)."""
    if not rows:
        return text
    mask = np.zeros(len(text), bool)
    mask[rows] = True
    return pc.replace_with_mask(
        text, pa.array(mask), pa.array(values, pa.large_binary()).cast(pa.large_string())
    )


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return ``table`` with the column set, or added if it is new."""
    index = table.schema.get_field_index(name)
    return table.append_column(name, values) if index < 0 else table.set_column(index, name, values)


DOCUMENT_SCORES = ("language", "bytes_per_token")
"""Fields of documents' "scores" that every corpus has; those of its blocks follow."""


def score_column(name: str) -> str:
    """The column that holds a score until documents/ are written."""
    return f"score_{name}"


def score_names(blocks: Iterable[Block]) -> tuple[str, ...]:
    """The scores that these blocks add, in their order."""
    return tuple(name for block in blocks for name in block.scores)


def per_value(
    column: pa.Array | pa.ChunkedArray, judge: Callable[[Any], str | None]
) -> pa.StringArray:
    """Call ``judge`` once for each distinct value; null stays null.

    For columns with few distinct values.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = array.dictionary_encode()
    judged = [None if value is None else judge(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(judged, pa.string()).take(encoded.indices)


def documents(text: Texts, **columns: Sequence | pa.Array) -> pa.Table:
    """Make a table of documents from their texts and further ``columns``.

    "id" is the row's number unless it is given.
    """
    array = (
        text if isinstance(text, (pa.Array, pa.ChunkedArray)) else pa.array(text, pa.large_string())
    )
    ids = columns.pop("id", None)
    if ids is None:
        ids = pa.array([str(i) for i in range(len(array))], pa.string())
    table = pa.table({"id": ids, "text": array.cast(pa.large_string()), **columns})
    return table.append_column("dropped", pa.nulls(len(array), pa.string()))


def funnel(table: pa.Table) -> dict[str, int]:
    """Return how many rows were dropped for each "block: reason", the most frequent first."""
    counted = pc.value_counts(table["dropped"].drop_null()).to_pylist()
    return {
        row["values"]: row["counts"]
        for row in sorted(counted, key=lambda row: (-row["counts"], row["values"]))
    }
