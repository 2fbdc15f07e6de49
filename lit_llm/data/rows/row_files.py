"""Rows of conversations from files: JSONL, JSON, CSV and parquet, here or from the hub."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_llm.corpus.reading.files import COMPRESSED, SupportsRead, open_input
from lit_llm.corpus.reading.rows import BOM, check_once, json_lines, parquet_rows
from lit_llm.corpus.reading.sources import STDLIB, list_files
from lit_llm.data.rows.docstrings import docstring_rows
from lit_llm.data.rows.hub_dataset import HUB, hub_files
from lit_llm.errors import UserError
from lit_llm.io.git_lfs import refuse_pointer

Sources = str | list[str] | dict[str, float]
Row = tuple[str, dict[str, Any] | UserError]
GENERAL = "general"
LONGEST_LINE = 8 * 2**20
"""Most bytes of a line: a conversation of that size fits no row, and is often a whole file."""
_GENERAL_FILE = Path(__file__).with_name("general.jsonl")
_JSON = (".jsonl", ".ndjson", ".json")
_CSV = {".csv": ",", ".tsv": "\t"}


def weights_of(sources: Sources) -> dict[str, float]:
    """The weight of each pattern, 1 if none is given."""
    if isinstance(sources, dict):
        return sources
    return dict.fromkeys([sources] if isinstance(sources, str) else sources, 1)


def files_of(pattern: str) -> list[Path]:
    """The files of a source; of "stdlib", the standard library's."""
    if pattern == GENERAL:
        return [_GENERAL_FILE]
    if pattern.startswith(HUB):
        return hub_files(pattern)
    return [Path(file.path) for file in list_files(pattern)]


def file_key(path: Path) -> list[Any]:
    """What the cache's key holds of a file: name, size, time, and a digest of its content.

    Size and time alone would miss a file that was written within the resolution of the file
    system's clock, or copied with the time of another.
    """
    stat = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [path.name, stat.st_size, stat.st_mtime_ns, digest]


def read_rows(pattern: str) -> Iterator[Row]:
    """Yield (place for error messages, row) for every row of a source.

    A UserError takes the place of a row that cannot be parsed.

    Args:
        pattern: a file or glob: .jsonl, .json, .csv, .tsv or .parquet, the texts also compressed
            (.gz, .zst, .bz2, .xz); "hf://owner/name[:split]"; "stdlib": questions made of
            docstrings; "general": eighty simple questions of general knowledge for rehearsal.

    Raises:
        UserError: nothing matches, a file of another format, or a file that cannot be read
            completely.
    """
    if pattern == STDLIB:
        yield from ((f"{STDLIB}:{row['id']}", row) for row in docstring_rows())
        return
    for path in files_of(pattern):
        refuse_pointer(path)
        name = COMPRESSED.sub("", path.name.lower())
        if path.name.lower().endswith(".parquet"):
            rows = parquet_rows(path)
        elif name.endswith(_JSON):
            rows = json_lines(path, LONGEST_LINE)
        elif (kind := Path(name).suffix) in _CSV:
            rows = csv_rows(path, _CSV[kind])
        else:
            raise UserError(
                f"{path}: instructions are read from .jsonl, .json, .csv, .tsv and .parquet files, "
                "the texts also as .gz and .zst"
            )
        for number, row in rows:
            yield f"{path}:{number}", UserError(row) if isinstance(row, str) else row


def csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (number of the line that ends the row, from 1; row) of a CSV file.

    The first line names the columns. Empty cells are left out. A row that cannot be used gives the
    reason in its place.

    Raises:
        UserError: two columns of one name, no columns, names that are not UTF-8, or the file is not
            readable.
    """
    csv.field_size_limit(LONGEST_LINE)
    number = 0
    try:
        with open_input(str(path)) as stream:
            rows = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
            names = next(rows, [])
            if _not_utf8(names):
                raise UserError(f"{path}: the first line is not UTF-8; save the file as UTF-8")
            if not any(names):
                raise UserError(f"{path}: no columns; the first line of a CSV file names them")
            for name in names:
                check_once(path, name, names)
            while True:
                try:
                    values = next(rows, None)
                except csv.Error as error:
                    number = rows.line_num
                    yield number, f"not valid CSV ({error})"
                    continue
                if values is None:
                    return
                number = rows.line_num
                if values:
                    yield number, _csv_row(names, values)
    except OSError as error:
        raise UserError(f"{path}: cannot be read after line {number} ({error})") from error


def _lines(stream: SupportsRead) -> Iterator[str]:
    """The lines of a stream; bytes that are not UTF-8 become lone surrogates.

    So only the row that has them is refused.
    """
    rest = b""
    first = True
    while chunk := stream.read(2**20):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            line = line.removeprefix(BOM) if first else line
            first = False
            yield (line + b"\n").decode("utf-8", "surrogateescape")
    if rest:
        yield (rest.removeprefix(BOM) if first else rest).decode("utf-8", "surrogateescape")


def _csv_row(names: list[str], values: list[str]) -> dict[str, Any] | str:
    if len(values) != len(names):
        return f"{len(values)} values in a row, and the first line names {len(names)} columns"
    if _not_utf8(values):
        return "not UTF-8; mend the line or take it out"
    return {name: value for name, value in zip(names, values, strict=True) if name and value}


def _not_utf8(values: list[str]) -> bool:
    """Whether `_lines` found bytes that are not UTF-8 in one of the values."""
    return any("\udc80" <= letter <= "\udcff" for value in values for letter in value)
