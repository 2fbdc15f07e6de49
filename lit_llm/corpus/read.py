from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from lit_llm.corpus.parts import Part
from lit_llm.corpus.sources import read_documents


def read_part(part: Part) -> Iterator[pa.Table]:
    rows = []
    for file in part.files:
        for offset, d in enumerate(read_documents(file, part.source.text_field)):
            rows.append(
                {
                    "id": d.id,
                    "text": d.text,
                    "source": d.source,
                    "path": d.path,
                    "offset": offset,
                    "url": None,
                    "license": part.source.license,
                    "language": None,
                    "domain": part.source.domain,
                    "dropped": d.dropped and f"read: {d.dropped}",
                }
            )
            if sum(len(r["text"]) for r in rows) > 1_000_000:
                yield _table(rows)
                rows = []
    if rows:
        yield _table(rows)


def _table(rows):
    schema = pa.schema(
        {
            "id": pa.string(),
            "text": pa.large_string(),
            "source": pa.string(),
            "path": pa.string(),
            "offset": pa.int64(),
            "url": pa.string(),
            "license": pa.string(),
            "language": pa.string(),
            "domain": pa.string(),
            "dropped": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)
