"""Find the field of a file's rows that holds the text, if the user has not set it."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from lit_llm.corpus.reading.files import SupportsRead, open_raw, open_utf8
from lit_llm.corpus.reading.formats.csv_file import csv_columns
from lit_llm.corpus.reading.parts import Part
from lit_llm.corpus.reading.rows import BOM, array_elements, parse_row
from lit_llm.corpus.reading.sources import Source, SourceFile

OTHERS = ("content", "body", "document")
"""Fields that are used if there is no "text", in this order."""
_told: set[tuple[str, str]] = set()


def with_its_field(part: Part, file: SourceFile, kind: str) -> Part:
    """Return ``part`` with the field that holds the text in the first row of ``file``.

    That is ``text_field``. If the user set none and the row has no "text", it is the first of
    `OTHERS` that holds a string. A line on stderr says so, once for each source.

    Raises:
        OSError: the file cannot be read.
    """
    if part.source.text_field != Source.text_field or kind not in (
        "jsonl",
        "json",
        "csv",
        "parquet",
    ):
        return part
    row = first_row(file, kind, part.source.max_line_bytes)
    if row is None or Source.text_field in row:
        return part
    found = next((name for name in OTHERS if isinstance(row.get(name), str)), None)
    if found is None:
        return part
    if (file.source, found) not in _told:
        _told.add((file.source, found))
        print(
            f"{file.path}: no field {Source.text_field!r}: the text is read from {found!r}",
            file=sys.stderr,
            flush=True,
        )
    return dataclasses.replace(part, source=dataclasses.replace(part.source, text_field=found))


def first_row(file: SourceFile, kind: str, longest: int) -> dict[str, Any] | None:
    """Return the first row of a file; None if there is none or it is not an object.

    For parquet, the values are "" for columns of text and None for others.
    """
    if kind == "parquet":
        return _columns(file)
    if kind == "csv":
        return dict.fromkeys(csv_columns(file, longest, (Source.text_field, *OTHERS)), "")
    with open_utf8(file.path) as stream:
        head = _first_line(stream, longest)
    if not head.startswith(b"["):
        row = parse_row(head)
        return row if isinstance(row, dict) else None
    with open_utf8(file.path) as stream:
        try:
            element = next(array_elements(stream, longest), None)
        except ValueError:
            return None
    return element if isinstance(element, dict) else None


def _first_line(stream: SupportsRead, longest: int) -> bytes:
    """Return the first line that is not empty; of a JSON array, its beginning."""
    head, size = b"", 2**16
    while len(head) <= longest and (chunk := stream.read(size)):
        head = (head + chunk).removeprefix(BOM).lstrip()
        if head.startswith(b"[") or b"\n" in head:
            break
        size *= 8
    return head.partition(b"\n")[0]


def _columns(file: SourceFile) -> dict[str, Any] | None:
    """Return the columns of a parquet file: "" for text, None for other types."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with open_raw(file.path) as raw:
            schema = pyarrow.parquet.read_schema(raw)
    except pa.ArrowException:
        return None  # the reader will report the error
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return {field.name: "" if any(test(field.type) for test in text) else None for field in schema}
