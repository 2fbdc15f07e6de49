"""Parquet: a document per row, from a part's row groups; reads only the columns that are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lit_llm.corpus.reading.documents import TABLE_BYTES, checked_table
from lit_llm.corpus.reading.files import open_raw
from lit_llm.corpus.reading.formats.jsonl import missing_field
from lit_llm.corpus.reading.row_licenses import license_columns, license_label, row_license
from lit_llm.corpus.reading.row_urls import row_url, url_columns
from lit_llm.corpus.reading.rows import check_once
from lit_llm.corpus.reading.sources import SourceFile
from lit_llm.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from lit_llm.corpus.reading.parts import Part


def read_parquet(part: Part, file: SourceFile) -> Iterator[pa.Table]:
    """Yield tables of documents, of about ``TABLE_BYTES``.

    Raises:
        OSError: the file cannot be read, or is not a parquet file.
        UserError: there is no column ``source.text_field``, it does not hold text, or two columns
            that are read have the same name.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet

    field = part.source.text_field
    try:
        with open_raw(file.path) as raw, pyarrow.parquet.ParquetFile(raw) as parquet:
            names = parquet.schema_arrow.names
            if field not in names:
                raise UserError(missing_field(file.path, field, dict.fromkeys(names)))
            groups = list(
                range(part.start, parquet.num_row_groups if part.stop is None else part.stop)
            )
            before = sum(parquet.metadata.row_group(i).num_rows for i in range(part.start))
            read = [parquet.metadata.row_group(i) for i in groups]
            row_bytes = sum(group.total_byte_size for group in read) / max(
                1, sum(group.num_rows for group in read)
            )
            elsewhere, licensed = url_columns(names), license_columns(names)
            wanted = dict.fromkeys((field, "id", "url", "license", *elsewhere, *licensed))
            for name in wanted:
                check_once(file.path, name, names)
            columns = [name for name in wanted if name in names]
            # As many rows per batch as give about TABLE_BYTES.
            rows = max(1, min(2**16, int(TABLE_BYTES / max(1, row_bytes))))
            number = before + 1
            for batch in parquet.iter_batches(batch_size=rows, row_groups=groups, columns=columns):
                table = pa.table(batch)
                text = _strings(table[field])
                if text is None:
                    raise UserError(
                        f"{file.path}: field {field!r} holds {table[field].type}, not text; "
                        "name the one with the text: data.text_field=NAME"
                    )
                places = pa.array(np.arange(number, number + len(table), dtype=np.int64))
                ids, urls = (
                    _strings(table[name]) if name in columns else None for name in ("id", "url")
                )
                urls = _or_elsewhere(table.select(elsewhere), urls, row_url)
                licenses = _licenses(table["license"]) if "license" in columns else None
                licenses = _or_elsewhere(table.select(licensed), licenses, row_license)
                yield checked_table(part.source, file, text, places, ids, urls, licenses)
                number += len(table)
    except pa.ArrowException as error:
        raise OSError(
            f"not a readable parquet file ({' '.join(str(error).split())[:200]})"
        ) from error


def _or_elsewhere(
    elsewhere: pa.Table,
    column: pa.ChunkedArray | None,
    said: Callable[[dict[str, Any]], str | None],
) -> pa.ChunkedArray | None:
    """Fill empty values of a column with what ``said`` finds in other columns of the row."""
    import pyarrow as pa

    if not elsewhere.num_columns:
        return column
    own = [None] * len(elsewhere) if column is None else column.cast(pa.large_binary()).to_pylist()
    found = [
        value or ((other := said(row)) and other.encode(errors="replace"))
        for value, row in zip(own, _rows(elsewhere), strict=True)
    ]
    return pa.chunked_array([pa.array(found, pa.large_binary())])


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows as dicts; an empty one for a row with bytes that are not UTF-8."""
    for at in range(len(table)):
        try:
            yield table.slice(at, 1).to_pylist()[0]
        except (UnicodeDecodeError, KeyError):
            yield {}


def _strings(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column of text, bytes, integers or nulls as strings; None for other types.

    The strings are not checked for UTF-8.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.string())
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    column = column.cast(views.get(column.type, column.type))
    readable = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return column if any(test(column.type) for test in readable) else None


def _licenses(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of licences as strings; values that are not text are read one by one."""
    import pyarrow as pa

    strings = _strings(column)
    if strings is not None and not pa.types.is_integer(column.type):
        return strings
    return pa.chunked_array([pa.array(map(license_label, column.to_pylist()), pa.string())])
