"""Encode kept documents, and write the files of kept and of dropped documents, part by part."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import DOCUMENT_SCORES, score_column, with_column
from lit_llm.corpus.output.shards import token_dtype
from lit_llm.corpus.output.statistics import Statistics
from lit_llm.corpus.steps import CLEANED, EXAMPLES
from lit_llm.corpus.storage.removal_log import sha256
from lit_llm.corpus.storage.store import read_arrow, read_tables, write_arrow, write_tables
from lit_llm.models.tokenizer import Tokenizer

_NOT_COPIED = ("language_score", "dropped", "example")
DOCUMENTS = pa.schema(
    {
        **{field.name: field.type for field in CLEANED if field.name not in _NOT_COPIED},
        "scores": pa.struct({name: pa.float32() for name in DOCUMENT_SCORES}),
        "sha256": pa.string(), "bytes": pa.int64(), "tokens": pa.int64(), "split": pa.string(),
    }
)  # fmt: skip
TAIL = "#tail"  # suffix of the id of the held-out end of a document
DROPPED = pa.schema(
    {
        "id": pa.string(), "source": pa.string(), "path": pa.string(), "offset": pa.int64(),
        "url": pa.string(), "domain": pa.string(), "stage": pa.string(), "reason": pa.string(),
        "duplicate_of": pa.string(), "contaminated_by": pa.string(), "sha256": pa.string(),
        "example": pa.string(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Decides which documents are held out for validation.

    Attributes:
        edge: documents are held out whose hashed id, as a fraction of its range, is below.
        tail: share of each document to hold out instead, if there is only one document, or all
            share an id.
    """

    edge: float
    tail: float = 0.0


def kept_documents(
    cleaned: Path, selected: Path, split: Split, columns: list[str]
) -> Iterator[pa.Table]:
    """Yield tables of the kept documents in order.

    They have ``columns`` of `CLEANED`, and "sha256", "bytes" and "split".
    """
    for table, verdict in zip(
        read_tables(cleaned, columns),
        read_tables(selected, ["dropped", "sha256", "bytes", "position"]),
        strict=True,
    ):
        kept = pc.is_null(verdict["dropped"])
        table = (
            table.append_column("sha256", verdict["sha256"])
            .append_column("bytes", verdict["bytes"])
            .filter(kept)
        )
        held_out = pc.less(verdict["position"].filter(kept), split.edge)
        table = table.append_column("split", pc.if_else(held_out, "validation", "train"))
        if len(table):
            yield _with_tails(table, split.tail) if split.tail else table


def _with_tails(table: pa.Table, share: float) -> pa.Table:
    """Cut each document into a head for training and an end for validation."""
    rows = []
    for row in table.to_pylist():
        if len(row["text"]) < 2:
            rows.append({**row, "split": "train"})
            continue
        for part, name, split in zip(
            cut(row["text"], share), ("", TAIL), ("train", "validation"), strict=True
        ):
            data = part.encode()
            hashed = hashlib.sha256(data).hexdigest()
            rows.append(
                {
                    **row,
                    "id": row.get("id", "") + name,
                    "text": part,
                    "split": split,
                    "bytes": len(data),
                }
            )
            rows[-1]["sha256"] = hashed
    return pa.Table.from_pylist(rows, table.schema)


def cut(text: str, share: float) -> tuple[str, str]:
    """Cut a text into head and tail; neither is empty.

    The tail is about ``share`` of the text and begins with a line.
    """
    at = min(max(1, round(len(text) * (1 - share))), len(text) - 1)
    at = text.rfind("\n", 0, at) + 1 or at
    return text[:at], text[at:]


@dataclass(frozen=True)
class Encode:
    """Write the tokens of a part's kept documents, each after a separator.

    The result is an Arrow file with the list column "tokens".

    Attributes:
        cleaned, selected: the files that `Clean` and `Select` wrote.
        split: decides which documents are held out.
        tokenizer: folder of the tokenizer.
        target: the file to write.
    """

    cleaned: Path
    selected: Path
    split: Split
    tokenizer: Path
    target: Path

    def __call__(self) -> None:
        tokenizer = load_tokenizer(self.tokenizer)
        assert tokenizer.eos_id is not None  # checked by the pipeline
        kind = pa.from_numpy_dtype(token_dtype(tokenizer.vocab_size))
        schema = pa.schema({"tokens": pa.large_list(kind)})
        write_arrow(self.target, schema, self._tables(tokenizer, tokenizer.eos_id, schema))

    def _tables(
        self, tokenizer: Tokenizer, separator: int, schema: pa.Schema
    ) -> Iterator[pa.Table]:
        for table in kept_documents(self.cleaned, self.selected, self.split, ["text"]):
            # A list of n ids becomes n + 1 with its separator, so offset i grows by i.
            ids, offsets = tokenizer.encode_ragged(table["text"].to_pylist())
            ids = np.insert(ids, offsets[:-1], separator)
            lists = pa.LargeListArray.from_arrays(
                offsets + np.arange(len(offsets)),
                pa.array(ids, schema.field("tokens").type.value_type),
            )
            yield pa.table([lists], schema=schema)


@functools.lru_cache(maxsize=1)
def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the store's tokenizer, once for all parts that a process encodes."""
    return Tokenizer.from_pretrained(folder)


def read_encoded(path: Path) -> Iterator[pa.Array]:
    """Yield the list arrays that `Encode` wrote, memory-mapped.

    There is one for each table of `kept_documents`.
    """
    return (batch.column(0) for batch in read_arrow(path))


@dataclass(frozen=True)
class WriteDocuments:
    """Write the corpus folder's file of a part's kept documents, with statistics in its metadata.

    Attributes:
        cleaned, selected, encoded: the files that `Clean`, `Select` and `Encode` wrote.
        split: decides which documents are held out.
        scores: names of the blocks' scores.
        target: the file to write, of `documents_schema`.
    """

    cleaned: Path
    selected: Path
    encoded: Path
    split: Split
    scores: tuple[str, ...]
    target: Path

    def __call__(self) -> None:
        write_documents(self.target, self._tables(), documents_schema(self.scores))

    def _tables(self) -> Iterator[pa.Table]:
        schema = documents_schema(self.scores)
        columns = [field.name for field in CLEANED if field.name not in ("dropped", "example")]
        own = [score_column(name) for name in self.scores]
        columns += own
        documents = kept_documents(self.cleaned, self.selected, self.split, columns)
        for table, tokens in zip(documents, read_encoded(self.encoded), strict=True):
            counts = pc.list_value_length(tokens)
            ratio = (
                pc.divide(table["bytes"].cast(pa.float64()), counts)
                .combine_chunks()
                .cast(pa.float32())
            )
            scores = pa.StructArray.from_arrays(
                [
                    table["language_score"].combine_chunks(),
                    ratio,
                    *(table[name].combine_chunks() for name in own),
                ],
                fields=list(schema.field("scores").type),
            )
            table = with_column(with_column(table, "tokens", counts), "scores", scores)
            yield table.select(schema.names).cast(schema)


def documents_schema(scores: Sequence[str]) -> pa.Schema:
    """Return `DOCUMENTS` with these further fields in "scores"."""
    at = DOCUMENTS.get_field_index("scores")
    fields = [*DOCUMENTS.field(at).type, *(pa.field(name, pa.float32()) for name in scores)]
    return DOCUMENTS.set(at, pa.field("scores", pa.struct(fields)))


def write_documents(target: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> None:
    """Write kept documents with ``schema``, with statistics in the file's metadata."""
    statistics = Statistics()

    def counted() -> Iterator[pa.Table]:
        for table in tables:
            statistics.add(table)
            yield table

    write_tables(target, schema, counted(), statistics.content)


@dataclass(frozen=True)
class WriteDropped:
    """Write the corpus folder's file of a part's dropped documents.

    Attributes:
        cleaned, selected: the files that `Clean` and `Select` wrote.
        removed: ids of documents that were removed by request: no example of them or of their
            copies is shown.
        hashes: SHA-256 (hex) of texts that are not shown either, see `removed`.
        target: the file to write, with the schema `DROPPED`.
    """

    cleaned: Path
    selected: Path
    removed: frozenset[str]
    hashes: frozenset[str]
    target: Path

    def __call__(self) -> None:
        counts: dict[str, Any] = {"examples": {}}
        write_tables(self.target, DROPPED, self._tables(counts), counts)

    def _tables(self, counts: dict[str, Any]) -> Iterator[pa.Table]:
        shown: Counter[str] = Counter()
        for table, verdict in zip(
            read_tables(self.cleaned), read_tables(self.selected), strict=True
        ):
            gone = pc.is_valid(verdict["dropped"])
            table, verdict = table.filter(gone), verdict.filter(gone)
            reasons = verdict["dropped"].to_pylist()
            examples = table["example"].to_pylist()
            ids, copied = table["id"].to_pylist(), verdict["duplicate_of"].to_pylist()
            # Examples: none of removed documents and their copies. The first step left examples for
            # its own reasons; those of the later steps are taken from the text.
            for row, (reason, example) in enumerate(zip(reasons, examples, strict=True)):
                if ids[row] in self.removed or copied[row] in self.removed:
                    examples[row] = None
                    continue
                if example is None and shown[reason] < EXAMPLES:
                    examples[row] = example = table["text"][row].as_py()[:200] or None
                if example is not None and sha256(example) in self.hashes:
                    examples[row] = None
                elif example is not None:
                    shown[reason] += 1
                    counts["examples"].setdefault(reason, []).append([ids[row], example])
            hashes = pc.if_else(
                pc.greater(verdict["bytes"], 0), verdict["sha256"], pa.scalar(None, pa.string())
            )
            said = [reason.partition(": ") for reason in reasons]
            yield pa.table(
                [
                    *(table[name] for name in ("id", "source", "path", "offset", "url", "domain")),
                    pa.array([stage for stage, _, _ in said], pa.string()),
                    pa.array([reason for _, _, reason in said], pa.string()),
                    verdict["duplicate_of"], verdict["contaminated_by"], hashes,
                    pa.array(examples, pa.string()),
                ],
                schema=DROPPED,
            )  # fmt: skip
