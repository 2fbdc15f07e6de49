"""Exact and near deduplication in three steps: sign each batch, decide once, drop in each batch.

    dedup = Dedup()
    # In any order, on any machine, in parallel:
    signatures = [dedup.sign(table) for table in tables]
    drop = DropDuplicates(dedup.decide(signatures))
    cleaned = [drop(table) for table in tables]

Among copies, the one lowest by (rank, id) is kept. So the result depends on the documents alone.
For a list of texts, `near_duplicates` does all three steps in one call.

Signatures are small tables that can be stored. Give the signatures of an existing corpus, with a
lower rank, beside the new ones: then new copies of its documents are dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, Texts, documents, texts
from lit_llm.corpus.dedup.signatures import SignatureColumns
from lit_llm.corpus.kernels.digest import BYTES, digests
from lit_llm.corpus.kernels.lookup import positions
from lit_llm.corpus.kernels.lsh import component_chunks, components, kept_copies
from lit_llm.corpus.kernels.minhash import sketches
from lit_llm.corpus.ranges import check_section
from lit_llm.errors import UserError
from lit_llm.models.kernels.cpu_threads import usable_cores

EXACT, NEAR = "exact_dedup: duplicate", "near_dedup: duplicate"
_VERDICTS = pa.schema(
    {"id": pa.large_string(), "duplicate_of": pa.string(), "dropped": pa.string()}
)
_BATCH = 1000  # texts signed at a time by `near_duplicates`


@dataclass(frozen=True)
class Dedup:
    """Settings of deduplication.

    FineWeb (arXiv:2406.17557) uses 112 hashes of 5-grams as 14 bands of 8 rows. This finds a copy
    with 5% of its words edited (similarity 0.63) with probability 0.30. It drops every document
    that is connected to another by a chain of such pairs.

    Here the same 112 hashes form 28 bands of 4 rows, which find that copy with probability 0.99.
    Additional pairs that they find cost a comparison, and are dropped only above ``threshold``. Lee
    et al. (arXiv:2107.06499) use 9000 hashes of 5-grams (450 bands of 20) and an edit distance.

    Attributes:
        threshold: minimum estimated Jaccard similarity of word n-grams at which a document is
            dropped, in (0, 1]. The standard error of the estimate is at most
            0.5 / sqrt(bands * rows), 0.047. None: only exact copies are dropped.
        normalize: whether exact copies may differ in case and whitespace.
        ngram: words in an n-gram.
        bands, rows: a sketch has bands * rows entries of two bytes each.
    """

    threshold: float | None = 0.6
    normalize: bool = True
    ngram: int = 5
    bands: int = 28
    rows: int = 4

    def __post_init__(self) -> None:
        check_section(self, "dedup")

    def sign(self, table: pa.Table) -> pa.Table:
        """Signatures of the documents that are not dropped yet, independent of other batches.

        Returns:
            "id" string, "rank" int32 (0 if the table has none), "digest" binary(16), "sketch"
            binary(2 * bands * rows), empty without ``threshold``: 240 bytes per document, and its
            id.
        """
        kept = table.filter(pc.is_null(table["dropped"]))
        text = texts(kept["text"])
        rank = (
            kept["rank"].cast(pa.int32())
            if "rank" in kept.column_names
            else pa.array(np.zeros(len(kept), np.int32))
        )
        if self.threshold is None:
            sketch = np.empty((len(text), 0), np.uint16)
        else:
            sketch = sketches(text, self.ngram, self.bands * self.rows)
        return pa.table({
            "id": kept["id"].cast(pa.string()), "rank": rank,
            "digest": _binary(digests(text, self.normalize), BYTES),
            "sketch": _binary(sketch, 2 * sketch.shape[1]),
        })  # fmt: skip

    def decide(
        self,
        signatures: Iterable[pa.Table],
        memory_limit: int = 4_000_000_000,
        folder: str | Path | None = None,
    ) -> pa.Table:
        """Decide which documents are dropped, and which kept document each is a copy of.

        Memory: ``memory_limit`` bytes of signatures, as much again to sort them (or 1.6 kB for each
        document of the largest connected component), 32 bytes per document, and the result. Further
        signatures are written to files, with 270 bytes and the id for each. The limit does not
        change the result.

        Args:
            signatures: from `sign`, all with these settings; iterated once.
            memory_limit: in bytes.
            folder: folder for the temporary files; None: the system's folder for temporary files.

        Returns:
            Sorted by "id": "id" large_string, "duplicate_of" and "dropped" (the reason) string. If
            a document is a copy of a dropped document, it counts as a near duplicate of the kept
            one.

        Raises:
            UserError: two documents have one id; signatures of other settings.
        """
        bands = 0 if self.threshold is None else self.bands
        verdicts = []
        with tempfile.TemporaryDirectory(prefix="dedup-", dir=folder) as spilled:
            columns = SignatureColumns.gather(
                signatures, bands, self.rows, memory_limit, Path(spilled)
            )
            self._check_ids(columns, memory_limit)
            parent = components([columns.digest, *columns.bands], memory_limit)
            # Memory of `kept_copies` per document: a sketch twice, and five words of 8 bytes per
            # band.
            most = max(1, memory_limit // ((bands + 1) * (4 * self.rows + 40)))
            for rows in component_chunks(parent, most):
                verdicts.append(self._decide_some(columns, np.sort(rows)))
        return pa.concat_tables([_VERDICTS.empty_table(), *verdicts]).sort_by("id").combine_chunks()

    def _decide_some(self, columns: SignatureColumns, rows: np.ndarray) -> pa.Table:
        """The verdicts of ``rows``, which are ascending and consist of whole components."""
        named = columns.ids(rows)
        order = pc.sort_indices(named, [("rank", "ascending"), ("id", "ascending")])
        rows, ids = rows[order.to_numpy()], named["id"].take(order)
        copy_of, exact = kept_copies(
            columns.digest[rows], [band[rows] for band in columns.bands], self.threshold or 1
        )
        gone = np.flatnonzero(copy_of >= 0)
        reasons = pc.if_else(pa.array(exact[gone]), EXACT, NEAR)
        return pa.table([ids.take(gone), ids.take(copy_of[gone]), reasons], _VERDICTS.names).cast(
            _VERDICTS
        )

    @staticmethod
    def _check_ids(columns: SignatureColumns, memory_limit: int) -> None:
        """Refuse equal ids: documents are dropped by id, so both documents would be dropped."""
        lowest = components([columns.id_digest], memory_limit)
        again = np.flatnonzero(lowest != np.arange(len(columns)))
        if len(again):
            name = columns.ids(again[:1])["id"][0]
            raise UserError(
                f"dedup: {len(again)} documents have the id of another ({name}); make ids unique"
            )


@dataclass(frozen=True)
class DropDuplicates(Block):
    """Drop the documents that `Dedup.decide` chose, by id; "duplicate_of" names the kept document.

    Attributes:
        verdicts: the result of `Dedup.decide`.
    """

    name = "dedup"
    verdicts: pa.Table

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill "dropped" and "duplicate_of"."""
        found = positions(texts(table["id"]), texts(self.verdicts["id"]))
        for name in ("dropped", "duplicate_of"):
            column = self.verdicts[name].take(found)
            at = table.schema.get_field_index(name)
            table = (
                table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
            )
        return table


def near_duplicates(given: Texts, threshold: float = 0.6) -> list[int | None]:
    """For each text, the index of the earlier text that it is a copy of; None if it is kept.

    Both exact and near copies are found.

    >>> near_duplicates(["the same words", "other words", "The same  words"])
    [None, None, 0]
    """
    return _copies(Dedup(threshold), given)


def exact_duplicates(given: Texts, normalize: bool = True) -> list[int | None]:
    """For each text, the index of the first text that equals it; None for the first itself.

    With ``normalize``, case and whitespace are ignored.
    """
    return _copies(Dedup(None, normalize), given)


def _copies(dedup: Dedup, given: Texts) -> list[int | None]:
    text = texts(given)
    table = documents(text, rank=pa.array(np.arange(len(text), dtype=np.int32)))
    with ThreadPoolExecutor(usable_cores()) as threads:
        batches = [table.slice(start, _BATCH) for start in range(0, len(table), _BATCH)]
        verdicts = dedup.decide(threads.map(dedup.sign, batches))
    copy_of: list[int | None] = [None] * len(text)
    for row in verdicts.to_pylist():
        copy_of[int(row["id"])] = int(row["duplicate_of"])
    return copy_of


def _binary(rows: np.ndarray, width: int) -> pa.FixedSizeBinaryArray:
    """One binary value per row: the ``width`` bytes of the row."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )
