"""What a cleaning step is: a function from a table of documents to a table of the same documents,
in the same order.

A document is a row. Every table has the columns "id" (string), "text" (large_string) and "dropped"
(string: null while the document is kept, else "block: reason"); what else there is ("source",
"url", "language", "license", scores) is carried along. Nothing is removed on the way: a dropped row
stays with its reason until the engine puts it aside, and later blocks leave it alone. So blocks
hold no state, what they did is counted from the tables (`funnel`), and the same block runs alone,
under Daft, Ray Data or Spark, on batches of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Texts: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class Block:
    """A cleaning step. Its settings are its fields; ``block(table)`` is the step.

    Subclasses implement ``apply``, which is called with the rows that are still kept.
    """

    name: ClassVar[str]

    def apply(self, table: pa.Table) -> pa.Table:
        """``table`` (all rows kept) with columns changed, added, or "dropped" filled; same rows,
        same order."""
        raise NotImplementedError

    def __call__(self, table: pa.Table) -> pa.Table:
        """Apply to the rows that are still kept; the others pass through, null in columns that are
        new."""
        if table["dropped"].null_count == len(table):
            return self.apply(table)
        kept = pc.is_null(table["dropped"])
        done = self.apply(table.filter(kept))
        # One take puts the two parts back into the order they came in.
        both = pa.concat_tables([done, table.filter(pc.invert(kept))], promote_options="default")
        positions = pc.sort_indices(
            pc.if_else(kept, 0, 1)
        )  # stable: where each row of `both` came from
        return both.take(pc.sort_indices(positions))

    def drop(self, table: pa.Table, reasons: pa.StringArray) -> pa.Table:
        """``table`` (all rows kept) with "dropped" filled where there is a reason."""
        said = pc.binary_join_element_wise(
            pa.scalar(self.name), reasons, ": ", null_handling="emit_null"
        )
        return with_column(table, "dropped", said.cast(pa.string()))

    def texts(self, text: Texts) -> list[str]:
        """For a list of strings: what each becomes."""
        return self(documents(text))["text"].to_pylist()


@dataclass(frozen=True)
class Filter(Block):
    """A block that only judges texts: subclasses implement ``judge``."""

    def judge(self, text: pa.LargeStringArray) -> pa.StringArray:
        """Why each text is dropped; null where it is kept."""
        raise NotImplementedError

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill "dropped"."""
        return self.drop(table, self.judge(texts(table["text"])))

    def reasons(self, documents: Texts) -> list[str | None]:
        """For a list of strings: why each would be dropped, None where it is kept."""
        return self.judge(texts(documents)).to_pylist()


def texts(documents: Texts) -> pa.LargeStringArray:
    """One contiguous array of them, without nulls: a null counts as empty."""
    if isinstance(documents, pa.ChunkedArray):
        # combine_chunks copies a single chunk too.
        array = documents.chunk(0) if documents.num_chunks == 1 else documents.combine_chunks()
    else:
        array = (
            documents if isinstance(documents, pa.Array) else pa.array(documents, pa.large_string())
        )
    array = array.cast(pa.large_string())
    return array.fill_null("") if array.null_count else array


def utf8(text: pa.LargeStringArray) -> Iterator[bytes]:
    """The bytes of each text, straight out of Arrow's buffers: no Python string is made."""
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    data = memoryview(text.buffers()[2] or b"")
    for start, end in pairwise(offsets.tolist()):
        yield bytes(data[start:end])


def replaced(
    text: pa.LargeStringArray, rows: Sequence[int], values: Sequence[bytes | str]
) -> pa.LargeStringArray:
    """``text`` with new ``values`` at ``rows`` (ascending)."""
    if not rows:
        return text
    mask = np.zeros(len(text), bool)
    mask[rows] = True
    return pc.replace_with_mask(
        text, pa.array(mask), pa.array(values, pa.large_binary()).cast(pa.large_string())
    )


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """``table`` with the column set, or added if it is new."""
    index = table.schema.get_field_index(name)
    return table.append_column(name, values) if index < 0 else table.set_column(index, name, values)


def per_value(
    column: pa.Array | pa.ChunkedArray, judge: Callable[[Any], str | None]
) -> pa.StringArray:
    """``judge`` of each value, null of null, asked once for each distinct one: for columns in which
    few are."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = array.dictionary_encode()
    judged = [None if value is None else judge(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(judged, pa.string()).take(encoded.indices)


def documents(text: Texts, **columns: Sequence | pa.Array) -> pa.Table:
    """A table of documents from their texts and further ``columns``; "id" counts them unless it is
    given."""
    array = (
        text if isinstance(text, (pa.Array, pa.ChunkedArray)) else pa.array(text, pa.large_string())
    )
    ids = columns.pop("id", None)
    if ids is None:
        ids = pa.array([str(i) for i in range(len(array))], pa.string())
    table = pa.table({"id": ids, "text": array.cast(pa.large_string()), **columns})
    return table.append_column("dropped", pa.nulls(len(array), pa.string()))


def funnel(table: pa.Table) -> dict[str, int]:
    """How many rows were dropped for each "block: reason", the most frequent first."""
    counted = pc.value_counts(table["dropped"].drop_null()).to_pylist()
    return {
        row["values"]: row["counts"]
        for row in sorted(counted, key=lambda row: (-row["counts"], row["values"]))
    }
