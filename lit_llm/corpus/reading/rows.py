"""Rows of JSONL, JSON and parquet files, with the number by which a user finds them."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from lit_llm.corpus.reading.files import SupportsRead, open_input, open_utf8
from lit_llm.errors import UserError

JSON_ENDINGS = tuple(
    name + compressed for name in (".jsonl", ".ndjson", ".json") for compressed in ("", ".gz")
)
BOM = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder()
_END = object()  # end of an array
_BLOCK = 8 * 2**20  # bytes read at once
_OVER_LINES = "an object over several lines; write one row a line, or an array of all rows"


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, row) of a JSONL file, gzipped or not; empty lines are skipped.

    For a file that holds a JSON array: (number of the element from 1, row).

    Raises:
        UserError: a line is not a JSON object, or the file is cut; names file and line.
    """
    for number, row in json_lines(path):
        if isinstance(row, str):
            raise UserError(f"{path}:{number}: {row}")
        yield number, row


def json_lines(
    path: Path, longest: int = sys.maxsize
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """`json_rows`, but a line without a row gives the reason in its place.

    So does a line of more than ``longest`` bytes.

    Raises:
        UserError: the file is cut.
    """
    number = 0
    try:
        with open_input(str(path)) as stream:
            array = stream.read(4096).removeprefix(BOM).lstrip().startswith(b"[")
        if array:
            yield from _array_rows(path)
            return
        too_long = f"a line of more than {longest:,} bytes; split it or take it out"
        with open_input(str(path)) as stream:
            for _, block in line_blocks(stream, 0, None, longest):
                if block is None:  # the line is skipped to its end
                    number += 1
                    yield number, too_long
                    continue
                for line in block.removesuffix(b"\n").split(b"\n"):
                    number += 1
                    line = line.removeprefix(BOM) if number == 1 else line
                    if not line.strip():
                        continue
                    if len(line) > longest:
                        yield number, too_long
                        continue
                    if line.strip() == b"{":
                        yield number, _OVER_LINES
                        continue
                    row = parse_row(line)
                    reason = f"{row}; mend the line or take it out" if isinstance(row, str) else row
                    yield number, reason
    except OSError as error:
        raise UserError(f"{path}: cannot be read after line {number} ({error})") from error


def _array_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_input(str(path)) as stream:
        number = 0
        try:
            for number, row in enumerate(array_elements(stream, sys.maxsize), start=1):
                if not isinstance(row, dict):
                    raise UserError(f"{path}: element {number} of the array is not a JSON object")
                yield number, row
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{path}: element {number + 1} of the array: {error}") from None


def array_elements(stream: SupportsRead, longest: int, errors: str = "strict") -> Iterator[Any]:
    """Yield the elements of a JSON array, reading one after the other.

    Args:
        stream: the file.
        longest: maximum characters of an element.
        errors: handling of bytes that are not UTF-8, as for ``bytes.decode``.

    Raises:
        ValueError: the following text is not valid JSON, or an element is too long.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    text, at, sign = "", 0, "["
    while True:
        if (found := _element(text, at, sign)) is not None:
            element, at = found
            if element is _END:
                break
            yield element
            sign = ","
            continue
        if len(text) - at > longest:
            raise ValueError(f"not valid JSON, or an element above max_line_bytes={longest}")
        chunk = stream.read(_BLOCK)
        if not chunk:
            raise ValueError("not valid JSON")
        try:
            text, at = text[at:] + decoder.decode(chunk), 0
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None
    if text[at:].strip() or stream.read(_BLOCK).strip():
        raise ValueError("not valid JSON: more follows the array")


def _element(text: str, at: int, sign: str) -> tuple[Any, int] | None:
    """Return the element after ``sign``, or `_END`, and where it ends. None: read more first."""
    at = _after_space(text, at)
    if sign == "," and text.startswith("]", at):
        return _END, at + 1
    if not text.startswith(sign, at):
        return None
    at = _after_space(text, at + 1)
    if sign == "[" and text.startswith("]", at):
        return _END, at + 1
    try:
        element, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    # More text is needed to see the end of a number: "1" is the beginning of "1.5e3".
    return (element, end) if text.startswith((",", "]"), _after_space(text, end)) else None


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def holds_array(path: str) -> bool:
    """Whether a file that is called JSONL is one JSON array instead.

    A row of JSONL may be an array too: then it ends with its line, and more rows follow.

    Raises OSError.
    """
    with open_utf8(path) as stream:
        head = stream.read(2**16).removeprefix(BOM).lstrip()
    if not head.startswith(b"["):
        return False
    line, _, rest = head.partition(b"\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not rest.strip()


def parse_row(line: bytes, errors: str = "strict") -> dict[str, Any] | str:
    """Return the object on a line of JSONL, or the reason why there is none.

    ``errors`` is as for ``bytes.decode``.
    """
    try:
        row = json.loads(line.decode("utf-8", errors))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not valid JSON"
    return row if isinstance(row, dict) else "not a JSON object"


def line_blocks(
    stream: SupportsRead, start: int, stop: int | None, longest: int
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (place of the first byte, whole lines) for the lines that begin in [start, stop).

    A line that exceeds ``longest`` bytes while it is read is not kept in memory; (place, None)
    stands for it.
    """
    at, rest = start, b""
    # Skip to the end of the line that contains the byte before `start`. If that byte is a newline,
    # the line that begins at `start` is not skipped.
    skipping = start > 0
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
        # The line that contains the byte before `stop` is the last one of the piece.
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
    """Yield (row number from 1, row with all columns) of a parquet file.

    A row that is not readable gives the reason in its place. A column of structs has every field in
    every row; null fields are left out of the row. They come from rows that were written with
    different fields, as {"a": 1} and {"b": 2}.

    Raises:
        UserError: pyarrow is missing, the file is not readable, or two columns have the same name.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow; pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number, names = 0, table.schema_arrow.names
            for name in names:
                check_once(path, name, names)
            for batch in table.iter_batches(batch_size=1024):
                for row in _python_rows(batch):
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})"
        ) from error


def check_once(path: str | Path, name: str, names: list[str]) -> None:
    """Raise UserError if several columns of a file have the name: it is unclear which is meant."""
    if names.count(name) > 1:
        raise UserError(
            f"{path}: {names.count(name)} columns are named {name!r}; rename all but one"
        )


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a pyarrow batch, or the reason why one is not readable.

    The reasons: a text is not UTF-8, or a map has a key twice.
    """
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
