"""What stages leave behind: files named by what they were made from, complete under their names or not there.

A file's name is a digest of the settings and inputs of the step that writes it. So a build that was killed finds what
it had finished, one with another setting finds what does not depend on it, and nothing else needs to be remembered.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lit_llm.corpus.workspace import published

_COUNTS = b"lit_llm"  # key of a table's counters in its file's metadata


def digest(*content: Any) -> str:
    """32 hex digits of the SHA-256 of ``content`` as JSON; what JSON does not know counts by its ``repr``."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder of stages' outputs, ``<stage>/<key><suffix>``; what this build used is kept by ``sweep``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[Path] = set()

    def path(self, stage: str, key: str, suffix: str = ".parquet") -> Path:
        """Where the output lies, or will."""
        path = self.folder / stage / (key + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._used.add(path)
        return path

    def sweep(self) -> None:
        """Remove what this build did not use: other settings' outputs and what a killed build had begun."""
        for stage in [path for path in self.folder.iterdir() if path.is_dir()]:
            for path in stage.iterdir():
                if path not in self._used:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table], counts: dict[str, Any]) -> None:
    """A parquet file with a row group for each table, and ``counts``, as they are at the end, in its metadata."""
    with published(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd", compression_level=1) as file:
        for table in tables:
            if len(table):
                file.write_table(table, row_group_size=len(table))
        file.add_key_value_metadata({_COUNTS: json.dumps(counts).encode()})


def read_counts(path: Path) -> dict[str, Any]:
    """The counters that a file was written with."""
    return json.loads(pq.read_metadata(path).metadata[_COUNTS])


def read_tables(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A file's row groups, one at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


def write_arrow(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """An Arrow file with a batch for each table: for what does not compress, or has no type in parquet."""
    with published(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)


def read_arrow(path: Path) -> Iterator[pa.RecordBatch]:
    """An Arrow file's batches, memory-mapped."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)
