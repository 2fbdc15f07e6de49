"""Steps that look at one part of the corpus.

Each step is a task for the engine and writes one file of the store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, score_column, score_names, texts, utf8, with_column
from lit_llm.corpus.config import Evaluations
from lit_llm.corpus.dedup.decontaminate import Decontaminate, evaluation_texts
from lit_llm.corpus.dedup.duplicates import Dedup
from lit_llm.corpus.filters.licensing import LicenseFilter
from lit_llm.corpus.filters.spdx import normalize_license
from lit_llm.corpus.privacy.personal_data import KINDS, RedactPII
from lit_llm.corpus.reading.parts import Part
from lit_llm.corpus.reading.read import read_part
from lit_llm.corpus.storage.store import read_table, read_tables, write_arrow, write_tables

EXAMPLE_CHARACTERS = 200
EXAMPLES = 5  # dropped texts kept as examples per reason and part
REMOVED = "removed: by request"

CLEANED = pa.schema(
    {
        "id": pa.string(), "text": pa.large_string(), "source": pa.string(), "path": pa.string(),
        "offset": pa.int64(), "url": pa.string(), "license": pa.string(), "language": pa.string(),
        "language_score": pa.float32(), "domain": pa.string(),
        "pii": pa.struct({kind: pa.int32() for kind in KINDS}), "changed_by": pa.string(),
        "dropped": pa.string(), "example": pa.string(),
    }
)  # fmt: skip
SELECTED = pa.schema(
    {
        "dropped": pa.string(), "duplicate_of": pa.string(), "contaminated_by": pa.string(),
        "sha256": pa.string(), "bytes": pa.int64(), "position": pa.float64(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Clean:
    """Read a part and run the blocks on its documents.

    Of some dropped documents a redacted example is kept.

    Attributes:
        part: the part to read.
        blocks: the blocks, in the order in which they run.
        target: the file to write, with the schema `CLEANED` and a column for each score.
    """

    part: Part
    blocks: tuple[Block, ...]
    target: Path

    @classmethod
    def of(cls, part: Part, blocks: tuple[Block, ...], target: Path) -> Clean:
        """Make the step. A source's licence counts only for texts that declare none themselves."""
        name, license = part.source.name, part.source.license
        if license is None or normalize_license(license) is None:
            return cls(part, blocks, target)
        # The licence filter gets the source's licence as a fallback. It must not also be in the
        # documents, where it would look like their own.
        found = tuple(
            dataclasses.replace(block, sources={**block.sources, name: license})
            if isinstance(block, LicenseFilter)
            else block
            for block in blocks
        )
        if found != blocks:
            source = dataclasses.replace(part.source, license=None)
            part = dataclasses.replace(part, source=source)
        return cls(part, found, target)

    def __call__(self) -> None:
        # "bytes", "dropped_bytes": UTF-8 bytes of text. Counters: reason -> number.
        counts: dict[str, Any] = {
            "documents": 0,
            "bytes": 0,
            "without_url": 0,
            "dropped": Counter(),
            "dropped_bytes": Counter(),
            "repaired": Counter(),
        }
        schema = CLEANED
        for name in score_names(self.blocks):
            schema = schema.append(pa.field(score_column(name), pa.float32()))
        write_tables(self.target, schema, self._tables(counts, schema), counts)

    def _tables(self, counts: dict[str, Any], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the cleaned tables, and count into ``counts`` meanwhile."""
        shown: Counter[str] = Counter()
        for table in read_part(self.part):
            counts["documents"] += len(table)
            counts["without_url"] += table["url"].null_count
            counts["bytes"] += pc.sum(pc.binary_length(table["text"])).as_py() or 0
            counts["repaired"].update(table["repaired"].drop_null().to_pylist())
            table = _conform(self._cleaned(table, shown, counts["dropped_bytes"]), schema)
            counts["dropped"].update(table["dropped"].drop_null().to_pylist())
            yield table

    def _cleaned(self, table: pa.Table, shown: Counter[str], sizes: Counter[str]) -> pa.Table:
        """Run the blocks on ``table``; the order of the rows stays.

        Rows that a block drops are moved aside, so that later blocks do not copy their text.
        """
        table = with_column(table, "changed_by", pa.nulls(len(table), pa.string()))
        table = table.append_column("row", pa.array(np.arange(len(table))))
        table, *aside = _kept_and_dropped(table, shown, sizes)
        for block in self.blocks:
            before = table["text"]
            table = block(table)
            changed = pc.fill_null(pc.not_equal(before, table["text"]), False)
            if pc.any(changed).as_py():
                names = table["changed_by"]
                longer = pc.binary_join_element_wise(names, block.name, ", ", null_handling="skip")
                table = with_column(table, "changed_by", pc.if_else(changed, longer, names))
            table, *dropped = _kept_and_dropped(table, shown, sizes)
            aside += dropped
        if not aside:
            return table
        both = pa.concat_tables([table, *aside], promote_options="default")
        return both.take(pc.sort_indices(both["row"]))


def _kept_and_dropped(table: pa.Table, shown: Counter[str], sizes: Counter[str]) -> list[pa.Table]:
    """Return a table of the kept rows, then one of the dropped rows, if there are any.

    Dropped rows lose their text, some keep an example. ``sizes`` grows by the bytes of text that
    each reason drops.
    """
    kept = pc.is_null(table["dropped"])
    if table["dropped"].null_count == len(table):
        return [table]
    gone = table.filter(pc.invert(kept))
    _add_bytes(sizes, gone["dropped"], pc.binary_length(gone["text"]))
    redact = RedactPII()
    beginnings: list[str | None] = [None] * len(gone)
    for row, reason in enumerate(gone["dropped"].to_pylist()):
        if shown[reason] < EXAMPLES and (text := gone["text"][row].as_py()):
            shown[reason] += 1
            # Redacted before the cut: half an address would not be recognised.
            redacted = redact.texts([text[: 10 * EXAMPLE_CHARACTERS]])[0]
            beginnings[row] = redacted[:EXAMPLE_CHARACTERS]
    gone = with_column(gone, "text", pa.array([""] * len(gone), pa.large_string()))
    return [table.filter(kept), with_column(gone, "example", pa.array(beginnings, pa.string()))]


def _add_bytes(sizes: Counter[str], reasons: pa.ChunkedArray, lengths: pa.ChunkedArray) -> None:
    for reason, length in zip(reasons.to_pylist(), lengths.to_pylist(), strict=True):
        sizes[reason] += length or 0


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring ``table`` into ``schema``; missing columns and fields of structs become null."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
        elif pa.types.is_struct(field.type):
            given = table[field.name].combine_chunks()
            has = {inner.name for inner in given.type}
            parts = [
                given.field(inner.name).cast(inner.type)
                if inner.name in has
                else pa.nulls(len(given), inner.type)
                for inner in field.type
            ]
            columns.append(
                pa.StructArray.from_arrays(parts, fields=list(field.type), mask=given.is_null())
            )
        else:
            columns.append(table[field.name].cast(field.type))
    return pa.table(columns, schema=schema)


@dataclass(frozen=True)
class Sign:
    """Write the signatures of a part's kept documents, for deduplication.

    A document's id in the file is its row in the part. The pipeline adds the number of the part.

    Attributes:
        cleaned: the file that `Clean` wrote.
        dedup: settings of deduplication.
        target: the file to write.
    """

    cleaned: Path
    dedup: Dedup
    target: Path

    def __call__(self) -> None:
        schema = self.dedup.sign(CLEANED.empty_table()).schema
        signed = (self.dedup.sign(table) for table in self._tables())
        write_arrow(self.target, schema, signed)

    def _tables(self) -> Iterator[pa.Table]:
        row = 0
        for table in read_tables(self.cleaned, ["text", "dropped"]):
            rows = pa.array([f"{row + i:08x}" for i in range(len(table))], pa.string())
            row += len(table)
            yield table.append_column("id", rows)


@dataclass(frozen=True)
class Select:
    """Decide which of a part's documents stay.

    Drops copies, documents with evaluation texts, and documents whose removal was requested.

    Attributes:
        cleaned: the file that `Clean` wrote.
        verdicts: file of deduplication with "row", "duplicate_of" and "dropped"; None without
            deduplication.
        evaluations: settings of decontamination; None without it.
        removed: SHA-256 (hex) of the ids and the texts of removed documents.
        target: the file to write, with the schema `SELECTED` and a row for each row of ``cleaned``.
    """

    cleaned: Path
    verdicts: Path | None
    evaluations: Evaluations | None
    removed: frozenset[str]
    target: Path

    def __call__(self) -> None:
        # "lowest", "highest": smallest and largest position of a kept document.
        counts: dict[str, Any] = {
            "sources": {},
            "lowest": math.inf,
            "highest": -math.inf,
            "dropped": Counter(),
            "removed": [],
            "dropped_bytes": Counter(),
        }
        write_tables(self.target, SELECTED, self._tables(counts), counts)

    def _tables(self, counts: dict[str, Any]) -> Iterator[pa.Table]:
        """Yield the decisions, and count into ``counts`` meanwhile."""
        verdicts = read_table(self.verdicts) if self.verdicts is not None else None
        rows = verdicts["row"].to_numpy() if verdicts is not None else np.zeros(0, np.int64)
        block = contamination(self.evaluations) if self.evaluations is not None else None
        start = 0
        for table in read_tables(self.cleaned, ["id", "text", "source", "dropped"]):
            earlier = table["dropped"]
            duplicate_of = pa.nulls(len(table), pa.string())
            # Copies: set both columns in the rows that deduplication names.
            if verdicts is not None:
                first, last = np.searchsorted(rows, [start, start + len(table)])
                mask = np.zeros(len(table), bool)
                mask[rows[first:last] - start] = True
                found = verdicts.slice(first, last - first)
                duplicate_of = pc.replace_with_mask(
                    duplicate_of, mask, found["duplicate_of"].combine_chunks()
                )
                dropped = pc.replace_with_mask(
                    earlier.combine_chunks(), mask, found["dropped"].combine_chunks()
                )
                table = with_column(table, "dropped", dropped)
            start += len(table)
            # Contamination. The block adds the column itself.
            table = with_column(table, "contaminated_by", pa.nulls(len(table), pa.string()))
            if block is not None:
                table = block(table.drop_columns("contaminated_by"))
            # Removal by request, by the hash of the id or of the text.
            names = [hashlib.sha256(name.encode()).digest() for name in table["id"].to_pylist()]
            text = texts(table["text"])
            hashes = [hashlib.sha256(data).hexdigest() for data in utf8(text)]
            if self.removed:
                gone = pa.array(
                    [
                        name.hex() in self.removed or content in self.removed
                        for name, content in zip(names, hashes, strict=True)
                    ]
                )
                counts["removed"] += table["id"].filter(gone).to_pylist()
                kept = pc.and_(gone, pc.is_null(table["dropped"]))
                table = with_column(table, "dropped", pc.if_else(kept, REMOVED, table["dropped"]))
            # A document's position in [0, 1) is its id's hash; the split is decided by it.
            positions = [int.from_bytes(name[:6], "big") / 2**48 for name in names]
            selected = pa.table(
                [
                    table["dropped"], duplicate_of, table["contaminated_by"],
                    pa.array(hashes, pa.string()), pc.binary_length(text), pa.array(positions),
                ],
                schema=SELECTED,
            )  # fmt: skip
            self._count(counts, selected, table["source"], earlier)
            yield selected

    @staticmethod
    def _count(
        counts: dict[str, Any],
        selected: pa.Table,
        sources: pa.ChunkedArray,
        earlier: pa.ChunkedArray,
    ) -> None:
        """Add the documents dropped here, and the bytes and positions of the kept ones."""
        now = pc.and_(pc.is_null(earlier), pc.is_valid(selected["dropped"]))
        newly = selected.filter(now)
        counts["dropped"].update(newly["dropped"].to_pylist())
        _add_bytes(counts["dropped_bytes"], newly["dropped"], newly["bytes"])
        kept = pc.is_null(selected["dropped"])
        if not pc.any(kept).as_py():
            return
        positions = pc.min_max(selected["position"].filter(kept)).as_py()
        counts["lowest"] = min(counts["lowest"], positions["min"])
        counts["highest"] = max(counts["highest"], positions["max"])
        by_source = (
            pa.table({"source": sources, "bytes": selected["bytes"]})
            .filter(kept)
            .group_by("source")
        )
        for row in by_source.aggregate([("bytes", "sum"), ("bytes", "count")]).to_pylist():
            so_far = counts["sources"].setdefault(row["source"], {"documents": 0, "bytes": 0})
            so_far["documents"] += row["bytes_count"]
            so_far["bytes"] += row["bytes_sum"]


def contamination(settings: Evaluations) -> Decontaminate:
    """Return the block of decontamination with these settings."""
    return Decontaminate.against(
        evaluation_texts(settings.files, settings.fields),
        ngram=settings.ngram,
        shortest=settings.shortest,
    )


def merged(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add up counts by name, the largest sum first."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
