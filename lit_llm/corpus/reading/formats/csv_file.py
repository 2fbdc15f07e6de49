"""CSV and TSV files: a document per row; the first line names the columns."""

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

_HEAD = 2**16  # bytes used to detect the encoding
_DELIMITERS = ",;\t|"
_SAID = re.compile(r"sep=(.)\r?\n?")  # Excel's line that names the delimiter
_ROW_LINES = 10_000  # maximum lines of a row
_GIVEN_AGAIN = 1_000_000  # after this many repeated lines, a row may have only 1% of _ROW_LINES
NOT_CSV = "not valid CSV"


def read_csv(part: Part, file: SourceFile) -> Iterator[Document]:
    """Yield the documents; a row's place is the number of its first line, from 1.

    The delimiter is the one of comma, semicolon, tab and bar with which the first line names
    ``text_field``. A row with more values than there are names is dropped, because it is unclear
    which values belong together.

    Raises:
        OSError: the file cannot be read, or not to its end.
        UserError: there is no column ``source.text_field``, or two columns that are read have the
            same name.
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
            # An unclosed quote takes all that follows into its row, up to the end of the file. So
            # only the row's first line is dropped, and reading goes on at its second.
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
    """Return the names of the columns, read with a delimiter that gives one of ``wanted``.

    Raises OSError.
    """
    try:
        first = _first_lines(_Lines(file, longest))
    except _NoLine:
        return []
    found = [_header(*first, name)[1] for name in wanted]
    return next(
        (names for name, names in zip(wanted, found, strict=True) if name in names), found[0]
    )


def _first_lines(lines: _Lines) -> tuple[str, str]:
    """Return (possible delimiters, line with the names).

    Excel may name the delimiter in a line before: "sep=;".
    """
    first = next((line for line in lines if line.strip()), "")
    if said := _SAID.fullmatch(first):
        return said[1], next((line for line in lines if line.strip()), "")
    if not first:
        raise _NoLine("empty")
    return _DELIMITERS, first


def _header(delimiters: str, line: str, field: str) -> tuple[str, list[str]]:
    """Return (delimiter, names of the columns)."""
    read = [
        (delimiter, [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])])
        for delimiter in delimiters
    ]
    return next((one for one in read if field in one[1]), max(read, key=lambda one: len(one[1])))


class _NoLine(Exception):
    """There is no next line. The message is the reason; if empty, the line is too long."""


class _Lines:
    """A file's lines with their line ends.

    Bytes that are not UTF-8 become surrogates, which `usable` repairs.

    Attributes:
        number: number of the last line returned, from 1.
    """

    def __init__(self, file: SourceFile, longest: int) -> None:
        self.number, self._lines = 0, _lines(file, longest)
        self._row: list[str | None] = []  # lines of the current row so far
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
        """Start a row at the next line, and return the number of that line."""
        self._row = []
        return self.number + 1

    def leave_first(self) -> None:
        """Return the lines of this row once more, except the first one."""
        rest = self._row[1:]
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        self._given_again += len(rest)


def _lines(file: SourceFile, longest: int) -> Iterator[str | None]:
    """Yield a file's lines; None for one longer than ``longest`` bytes."""
    with open_input(file.path) as stream:
        head = stream.read(_HEAD)
    if not _is_utf8(head, len(head) < _HEAD):
        # Excel writes UTF-16 or the country's 8-bit encoding. Detecting it needs the whole file.
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
    """Whether the first bytes of a file are UTF-8; a cut last character is allowed."""
    if b"\0" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return not whole and error.start > len(head) - 4
    return True
