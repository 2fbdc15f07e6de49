"""JSON file: an array of rows, lines of JSON, or one object; anything else is read as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lit_llm.corpus.reading.documents import Document
from lit_llm.corpus.reading.files import open_utf8
from lit_llm.corpus.reading.formats.jsonl import document_of, missing_field, read_lines
from lit_llm.corpus.reading.formats.whole import read_text
from lit_llm.corpus.reading.rows import BOM, array_elements, parse_row
from lit_llm.corpus.reading.sources import SourceFile
from lit_llm.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from lit_llm.corpus.reading.parts import Part

_HEAD = 2**20  # bytes used to decide what the file contains


def read_json(part: Part, file: SourceFile) -> Iterator[pa.Table | Document]:
    """Yield the documents: one for each object or string of an array.

    Lines of JSON are read as `read_lines` reads them. A single object with the text field is one
    document. If a single object has a field with a list of rows, these are the documents. Anything
    else (settings, tables of numbers) is one text.

    Raises:
        OSError: the file cannot be read, or not to its end.
        UserError: the first object of an array has no field ``source.text_field``.
    """
    field = part.source.text_field
    with open_utf8(file.path) as stream:
        head = stream.read(_HEAD).removeprefix(BOM).lstrip()
    # Two lines decide between rows of JSONL and one object that may span several lines.
    first, _, rest = head.partition(b"\n")
    row, following = parse_row(first), parse_row(rest.strip().partition(b"\n")[0])
    if head.startswith(b"["):
        yield from _array(part, file)
    elif isinstance(row, dict) and (field in row or isinstance(following, dict)):
        yield from read_lines(part, file)
    else:
        yield from _object(part, file)


def _array(part: Part, file: SourceFile) -> Iterator[Document]:
    field, number = part.source.text_field, 0
    with open_utf8(file.path) as stream:
        elements = array_elements(stream, part.source.max_line_bytes, "surrogateescape")
        try:
            for number, element in enumerate(elements, start=1):
                if number == 1 and not isinstance(element, dict | str):
                    yield read_text(file, part.source)
                    return
                if number == 1 and isinstance(element, dict) and field not in element:
                    place = f"{file.path}, element 1"
                    raise UserError(missing_field(place, field, element))
                row: Any = {field: element} if isinstance(element, str) else element
                yield document_of(
                    part, file, number, row if isinstance(row, dict) else "not a JSON object"
                )
        except UserError:
            raise
        except ValueError as error:
            yield document_of(part, file, number + 1, str(error))


def _rows_within(value: Any, field: str) -> list[Any]:
    """Return the rows that an object holds in one of its fields.

    Example: {"version": 1, "data": [...]}.
    """
    lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else []
    found = [rows for rows in lists if any(isinstance(r, dict) and field in r for r in rows)]
    if len(found) != 1:
        return []
    return [row if isinstance(row, dict) else "not a JSON object" for row in found[0]]


def _object(part: Part, file: SourceFile) -> Iterator[Document]:
    if file.size <= part.source.max_line_bytes:
        with open_utf8(file.path) as stream:
            try:
                text = stream.read().removeprefix(BOM).decode("utf-8", "surrogateescape")
                row = json.loads(text)
            except ValueError:
                row = None
        if isinstance(row, dict) and part.source.text_field in row:
            yield document_of(part, file, 1, row)
            return
        if elements := _rows_within(row, part.source.text_field):
            for number, element in enumerate(elements, start=1):
                yield document_of(part, file, number, element)
            return
    yield read_text(file, part.source)
