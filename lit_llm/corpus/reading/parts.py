"""Part of the input: a few small files, or a piece of a large one.

Parts are the units in which the input is read. They do not depend on the machine or its workers.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

from lit_llm.corpus.reading.files import COMPRESSED, is_read_error, is_utf16, open_raw
from lit_llm.corpus.reading.rows import holds_array
from lit_llm.corpus.reading.sources import (
    Source,
    SourceFile,
    Sources,
    as_sources,
    files_of,
    renamed,
)

_FORMAT = 4  # version of the readers' results; another number makes all parts new


@dataclass(frozen=True)
class Part:
    """Files, or one piece of a file, of one source.

    Attributes:
        source: source of the files, with its settings for reading.
        files: in the order of their ids.
        start: first byte of a piece of JSONL (the piece has the lines that begin in it), first row
            group of a piece of parquet; 0 for whole files.
        stop: end of the piece; None for whole files.
        size: bytes to read, as stored.
    """

    source: Source
    files: tuple[SourceFile, ...]
    start: int
    stop: int | None
    size: int

    @functools.cached_property
    def key(self) -> str:
        """sha256 (hex) of everything that the part's documents depend on.

        Files count by their size and version instead of their bytes.
        """
        reader = dataclasses.asdict(self.source)
        for name in ("paths", "weight", "exclude"):
            del reader[name]
        content = [
            _FORMAT,
            reader,
            [dataclasses.astuple(file) for file in self.files],
            self.start,
            self.stop,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def list_parts(
    sources: Sources, target_bytes: int = 64 * 2**20, text_field: str = "text"
) -> list[Part]:
    """Return the parts of ``sources`` in order; equal on any machine with equal files and settings.

    Small files of a source are grouped up to ``target_bytes``. Larger files of uncompressed JSONL
    and of parquet are cut into pieces of about that size. Files that are compressed as a whole, and
    HTML, text and WARC, are not cut.

    Raises:
        UserError: as ``list_files``.
    """
    parts: list[Part] = []
    for given in as_sources(sources, text_field):
        batch: list[SourceFile] = []
        for file in files_of(given):
            full = sum(other.size for other in batch) + file.size > target_bytes
            if batch and (full or batch[0].source != file.source):
                parts.append(_whole(given, batch))
                batch = []
            source = renamed(given, file.source)
            if file.size > target_bytes and (pieces := list(_pieces(source, file, target_bytes))):
                parts += [Part(source, (file,), start, stop, size) for start, stop, size in pieces]
            else:
                batch.append(file)
        if batch:
            parts.append(_whole(given, batch))
    return parts


def _whole(source: Source, batch: list[SourceFile]) -> Part:
    return Part(
        renamed(source, batch[0].source), tuple(batch), 0, None, sum(file.size for file in batch)
    )


def _pieces(source: Source, file: SourceFile, target_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, bytes) of each piece; nothing for a file that is read whole."""
    kind = source.kind_of(file.path)
    try:
        if kind == "jsonl" and not COMPRESSED.search(file.path):
            if not is_utf16(file.path) and not holds_array(file.path):
                count = -(-file.size // target_bytes)
                edges = [file.size * i // count for i in range(count + 1)]
                yield from (
                    (start, stop, stop - start) for start, stop in itertools.pairwise(edges)
                )
        elif kind == "parquet":
            yield from _row_groups(file, target_bytes)
    except Exception as error:
        if not is_read_error(error, file.path):
            raise  # otherwise the reader will report the error


def _row_groups(file: SourceFile, target_bytes: int) -> Iterator[tuple[int, int, int]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with open_raw(file.path) as raw:
            footer = pyarrow.parquet.read_metadata(raw)
    except pa.ArrowException:
        return  # the reader will report the error
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    sizes = [
        sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        for group in groups
    ]
    start = 0
    for stop in range(1, len(sizes) + 1):
        if stop == len(sizes) or sum(sizes[start : stop + 1]) > target_bytes:
            yield start, stop, sum(sizes[start:stop])
            start = stop
