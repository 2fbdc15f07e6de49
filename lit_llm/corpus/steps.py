"""The steps that look at one part of the corpus: tasks for the engine, each of which writes one
file of the store."""

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

from lit_llm.corpus.block import Block, texts, utf8, with_column
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
EXAMPLES = 5  # dropped texts shown a reason and part
REMOVED = "removed: by request"

CLEANED = pa.schema(
    {
        "id": pa.string(), "text": pa.large_string(), "source": pa.string(), "path": pa.string(),
        "offset": pa.int64(),
        "url": pa.string(), "license": pa.string(), "language": pa.string(),
        "language_score": pa.float32(),
        "domain": pa.string(), "pii": pa.struct({kind: pa.int32() for kind in KINDS}),
        "changed_by": pa.string(),
        "dropped": pa.string(), "example": pa.string(),
    }
)  # fmt: skip
SELECTED = pa.schema(
    {
        "dropped": pa.string(), "duplicate_of": pa.string(), "contaminated_by": pa.string(),
        "sha256": pa.string(),
        "bytes": pa.int64(), "position": pa.float64(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Clean:
    """Read a part and put its documents through the blocks. Of a dropped one an example is left,
    redacted.

    Attributes:
        part: what to read.
        blocks: in this order.
        target: the file to write, of `CLEANED`.
    """

    part: Part
    blocks: tuple[Block, ...]
    target: Path

    @classmethod
    def of(cls, part: Part, blocks: tuple[Block, ...], target: Path) -> Clean:
        """The step in which a source's licence counts only where a text declares none itself."""
        name, license = part.source.name, part.source.license
        if license is None or normalize_license(license) is None:
            return cls(part, blocks, target)
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
        counts: dict[str, Any] = {
            "documents": 0,
            "bytes": 0,
            "without_url": 0,
            "dropped": Counter(),
            "dropped_bytes": Counter(),
            "repaired": Counter(),
        }
        write_tables(self.target, CLEANED, self._tables(counts), counts)

    def _tables(self, counts: dict[str, Any]) -> Iterator[pa.Table]:
        shown: Counter[str] = Counter()
        for table in read_part(self.part):
            counts["documents"] += len(table)
            counts["without_url"] += table["url"].null_count
            counts["bytes"] += pc.sum(pc.binary_length(table["text"])).as_py() or 0
            counts["repaired"].update(table["repaired"].drop_null().to_pylist())
            table = _conform(self._cleaned(table, shown, counts["dropped_bytes"]), CLEANED)
            counts["dropped"].update(table["dropped"].drop_null().to_pylist())
            yield table

    def _cleaned(self, table: pa.Table, shown: Counter[str], sizes: Counter[str]) -> pa.Table:
        """``table`` through the blocks, in its order. What one drops is put aside, so that no other
        copies its text."""
        table = with_column(table, "changed_by", pa.nulls(len(table), pa.string()))
        table = table.append_column("row", pa.array(np.arange(len(table))))
        table, *aside = _parted(table, shown, sizes)
        for block in self.blocks:
            before = table["text"]
            table = block(table)
            changed = pc.fill_null(pc.not_equal(before, table["text"]), False)
            if pc.any(changed).as_py():
                names = table["changed_by"]
                longer = pc.binary_join_element_wise(names, block.name, ", ", null_handling="skip")
                table = with_column(table, "changed_by", pc.if_else(changed, longer, names))
            table, *dropped = _parted(table, shown, sizes)
            aside += dropped
        if not aside:
            return table
        both = pa.concat_tables([table, *aside], promote_options="default")
        return both.take(pc.sort_indices(both["row"]))


def _parted(table: pa.Table, shown: Counter[str], sizes: Counter[str]) -> list[pa.Table]:
    """The rows that are kept; then the others, if there are any, without text but for examples.

    ``sizes`` grows by the bytes of text that each reason drops.
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
            # Redacted whole and then cut: half an address is not recognised.
            beginnings[row] = redact.texts([text[: 10 * EXAMPLE_CHARACTERS]])[0][
                :EXAMPLE_CHARACTERS
            ]
    gone = with_column(gone, "text", pa.array([""] * len(gone), pa.large_string()))
    return [table.filter(kept), with_column(gone, "example", pa.array(beginnings, pa.string()))]


def _add_bytes(sizes: Counter[str], reasons: pa.ChunkedArray, lengths: pa.ChunkedArray) -> None:
    for reason, length in zip(reasons.to_pylist(), lengths.to_pylist(), strict=True):
        sizes[reason] += length or 0


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` in exactly these columns, null where it has none; fields of structs too."""
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
    """Signatures of a part's kept documents, for deduplication.

    A document's id there is its row in the part: the pipeline, which knows the part's place among
    all, completes it.

    Attributes:
        cleaned: what `Clean` wrote.
        dedup: settings.
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
    """The last word on each document of a part: copies, evaluation texts and what was asked to be
    removed go.

    Attributes:
        cleaned: what `Clean` wrote.
        verdicts: of deduplication, a file with "row", "duplicate_of" and "dropped"; None without.
        evaluations: settings of decontamination; None without.
        removed: SHA-256 (hex) of the ids and the texts of removed documents.
        target: the file to write: a row for each of ``cleaned``, of `SELECTED`.
    """

    cleaned: Path
    verdicts: Path | None
    evaluations: Evaluations | None
    removed: frozenset[str]
    target: Path

    def __call__(self) -> None:
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
        verdicts = read_table(self.verdicts) if self.verdicts is not None else None
        rows = verdicts["row"].to_numpy() if verdicts is not None else np.zeros(0, np.int64)
        block = contamination(self.evaluations) if self.evaluations is not None else None
        start = 0
        for table in read_tables(self.cleaned, ["id", "text", "source", "dropped"]):
            earlier = table["dropped"]
            duplicate_of = pa.nulls(len(table), pa.string())
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
            table = with_column(table, "contaminated_by", pa.nulls(len(table), pa.string()))
            if block is not None:
                table = block(table.drop_columns("contaminated_by"))
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
            selected = pa.table(
                [
                    table["dropped"], duplicate_of, table["contaminated_by"],
                    pa.array(hashes, pa.string()),
                    pc.binary_length(text), pa.array([int.from_bytes(name[:6],
                        "big") / 2**48 for name in names]),
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
    """The block of these settings."""
    return Decontaminate.against(
        evaluation_texts(settings.files, settings.fields),
        ngram=settings.ngram,
        shortest=settings.shortest,
    )


def merged(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sums by name, the largest first."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
