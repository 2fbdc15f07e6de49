"""Rows of JSONL and parquet files: lines cut out of a file, parsed, and given with the number a user finds them by."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from lit_llm.corpus.files import SupportsRead, open_input
from lit_llm.errors import UserError

JSON_ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
BOM = b"\xef\xbb\xbf"
_BLOCK = 8 * 2**20  # bytes read at a time


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a JSONL file, gzipped or not; empty lines are skipped.

    Raises:
        UserError: a line is no JSON object, or the file is cut; names file and line.
    """
    for number, row in json_lines(path):
        if isinstance(row, str):
            raise UserError(f"{path}:{number}: {row}")
        yield number, row


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """`json_rows`, with the reason in place of a row that a line does not hold.

    Raises:
        UserError: the file is cut.
    """
    number = 0
    try:
        with open_input(str(path)) as stream:
            for _, block in line_blocks(stream, 0, None, sys.maxsize):
                assert block is not None  # no line is that long
                for line in block.removesuffix(b"\n").split(b"\n"):
                    number += 1
                    line = line.removeprefix(BOM) if number == 1 else line
                    if not line.strip():
                        continue
                    row = parse_row(line)
                    reason = f"{row}; mend the line or take it out" if isinstance(row, str) else row
                    yield number, reason
    except OSError as error:
        raise UserError(f"{path}: cannot be read after line {number} ({error})") from error


def parse_row(line: bytes) -> dict[str, Any] | str:
    """The object on a line of JSONL, or why there is none."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not valid JSON"
    return row if isinstance(row, dict) else "not a JSON object"


def line_blocks(
    stream: SupportsRead, start: int, stop: int | None, longest: int
) -> Iterator[tuple[int, bytes | None]]:
    """(place of its first byte, whole lines) of the lines that begin in [start, stop).

    A line that outgrows ``longest`` bytes while it is read is not kept in memory: (place, None) stands for it.
    """
    at, rest = start, b""
    skipping = (
        start > 0
    )  # to the end of the line that the byte before start is in: a newline there ends it at once
    if skipping:
        at = start - 1
        cast(IO[bytes], stream).seek(at)
    while chunk := stream.read(_BLOCK):
        if skipping:
            at += (end := chunk.find(b"\n") + 1) or len(chunk)
            skipping = not end
            if stop is not None and at >= stop:
                return
            if skipping:
                continue
            chunk = chunk[end:]
        rest += chunk
        if (
            stop is not None
            and at + len(rest) >= stop
            and (last := rest.find(b"\n", stop - 1 - at)) >= 0
        ):
            yield at, rest[: last + 1]
            return
        if end := rest.rfind(b"\n") + 1:
            yield at, rest[:end]
            at, rest = at + end, rest[end:]
        if len(rest) > longest:
            yield at, None
            at, rest, skipping = at + len(rest), b"", True
    if rest:
        yield at, rest


def parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(row number from 1, row) of a parquet file, all columns; the reason in place of a row that is not readable.

    A column of structs has every field in every row. Those that are null are left out of the row: whoever wrote
    {"a": 1} beside {"b": 2} did not write {"a": 1, "b": null}.

    Raises:
        UserError: pyarrow is missing, or the file is not readable.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})"
        ) from error


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a pyarrow batch, or why one is none: a text is not UTF-8, a map has a key twice."""
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict")
    except (UnicodeDecodeError, KeyError) as error:
        if len(batch) == 1:
            yield "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"{error}"
        else:
            for i in range(len(batch)):
                yield from _python_rows(batch.slice(i, 1))
        return
    yield from ({key: _without_nulls(value) for key, value in row.items()} for row in rows)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
