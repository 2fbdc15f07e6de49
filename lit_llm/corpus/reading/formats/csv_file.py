"""CSV and TSV: a document a row, by the names in the first line."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lit_llm.corpus.reading.documents import Document, decode
from lit_llm.corpus.reading.files import open_input
from lit_llm.corpus.reading.formats.jsonl import document_of, missing_field
from lit_llm.corpus.reading.rows import BOM, check_once, line_blocks
from lit_llm.corpus.reading.sources import SourceFile
from lit_llm.errors import UserError

if TYPE_CHECKING:
    from lit_llm.corpus.reading.parts import Part

_HEAD = 2**16  # bytes that are looked at to tell the encoding
_DELIMITERS = ",;\t|"
_SAID = re.compile(r"sep=(.)\r?\n?")
_ROW_LINES = 10_000  # of a row at most
_GIVEN_AGAIN = 1_000_000  # lines; behind them rows are held to be shorter
NOT_CSV = "not valid CSV"


def read_csv(part: Part, file: SourceFile) -> Iterator[Document]:
    """The documents; a row's place is the line that it begins on, from 1.

    The delimiter is the one of comma, semicolon, tab and bar by which the first line names
    ``text_field``. A row of
    more values than there are names is dropped: which of them belong together nobody can tell.

    Raises:
        OSError: the file cannot be read (on).
        UserError: no column ``source.text_field``, or two of a name that is read.
    """
    field, longest = part.source.text_field, part.source.max_line_bytes
    lines = _Lines(file, longest)
    try:
        delimiter, names = _header(*_first_lines(lines), field)
    except _NoLine as error:
        reason = str(error) or part.source.too_long("line")
        yield Document(file.id, file.source, file.path, "", reason)
        return
    if field not in names:
        missing = missing_field(file.path, field, dict.fromkeys(names))
        raise UserError(f"{missing}; kind: text reads the file as one text")
    for name in (field, "id", "url", "license"):
        check_once(file.path, name, names)
    csv.field_size_limit(longest)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        place = lines.begin_row()
        try:
            values = next(rows, None)
        except (csv.Error, _NoLine) as error:
            # A quote that nobody closed takes what follows with it, up to the end of the file.
            long = isinstance(error, _NoLine) and lines.number == place
            long = long or "limit" in str(error)
            lines.leave_first()
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
            yield document_of(part, file, place, part.source.too_long("row") if long else NOT_CSV)
            continue
        if values is None:
            return
        if values:
            row = dict(zip(names, values, strict=False))
            whole = field in row and len(values) <= len(names)
            yield document_of(part, file, place, row if whole else NOT_CSV)


def csv_columns(file: SourceFile, longest: int, wanted: Sequence[str]) -> list[str]:
    """Names of the columns, read with the delimiter by which one of ``wanted`` is among them.
    Raises OSError."""
    try:
        first = _first_lines(_Lines(file, longest))
    except _NoLine:
        return []
    found = [_header(*first, name)[1] for name in wanted]
    return next(
        (names for name, names in zip(wanted, found, strict=True) if name in names), found[0]
    )


def _first_lines(lines: _Lines) -> tuple[str, str]:
    """(the delimiters that may be, the line with the names); Excel may name the delimiter before:
    "sep=;"."""
    first = next((line for line in lines if line.strip()), "")
    if said := _SAID.fullmatch(first):
        return said[1], next((line for line in lines if line.strip()), "")
    if not first:
        raise _NoLine("empty")
    return _DELIMITERS, first


def _header(delimiters: str, line: str, field: str) -> tuple[str, list[str]]:
    """(delimiter, names of the columns)."""
    read = [
        (delimiter, [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])])
        for delimiter in delimiters
    ]
    return next((one for one in read if field in one[1]), max(read, key=lambda one: len(one[1])))


class _NoLine(Exception):
    """There is no line, for this reason; without one: it is too long to keep in memory."""


class _Lines:
    """A file's lines, with their ends; bytes that are not UTF-8 as surrogates, which `usable`
    repairs.

    Attributes:
        number: of the line given last, from 1.
    """

    def __init__(self, file: SourceFile, longest: int) -> None:
        self.number, self._lines = 0, _lines(file, longest)
        self._row: list[str | None] = []  # its lines so far
        self._again: deque[str | None] = deque()
        self._given_again = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self._row.append(line)
        most = _ROW_LINES if self._given_again < _GIVEN_AGAIN else _ROW_LINES // 100
        if line is None or len(self._row) > most:
            raise _NoLine
        return line

    def begin_row(self) -> int:
        """The number of the line that is given next, with which a row begins."""
        self._row = []
        return self.number + 1

    def leave_first(self) -> None:
        """Give the lines of this row again, but for its first."""
        rest = self._row[1:]
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        self._given_again += len(rest)


def _lines(file: SourceFile, longest: int) -> Iterator[str | None]:
    with open_input(file.path) as stream:
        head = stream.read(_HEAD)
    if not _is_utf8(head, len(head) < _HEAD):
        # Excel writes UTF-16 and the 8-bit encoding of the country, which are told from all of the
        # file.
        with open_input(file.path) as stream:
            read = decode(stream.read())
        if read.dropped:
            raise _NoLine(read.dropped)
        yield from io.StringIO(read.text, newline="")
        return
    with open_input(file.path) as stream:
        for place, block in line_blocks(stream, 0, None, longest):
            if block is None:
                yield None
                continue
            block = block.removeprefix(BOM) if place == 0 else block
            yield from io.StringIO(block.decode("utf-8", "surrogateescape"), newline="")


def _is_utf8(head: bytes, whole: bool) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return not whole and error.start > len(head) - 4
    return True
