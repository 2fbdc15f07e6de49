"""WARC and WET files: pages, and the headers that servers sent with them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from lit_llm.corpus.reading.documents import Document, decode
from lit_llm.corpus.reading.files import open_raw
from lit_llm.corpus.reading.formats.http_body import TOO_LONG, BodyError, decode_body
from lit_llm.corpus.reading.formats.whole import page
from lit_llm.corpus.reading.sources import SourceFile

if TYPE_CHECKING:
    from lit_llm.corpus.reading.parts import Part

_HTML = ("text/html", "application/xhtml+xml")
_STARTS = (b"\x1f\x8b\x08", b"WARC/1.")  # first bytes of a compressed record, of a plain record
_STRIDE = 2**20


def read_warc(part: Part, file: SourceFile) -> Iterator[Document]:
    """Yield a document per response, resource or conversion record; other records are skipped.

    Damaged records give one dropped document, and reading goes on at the next whole record.

    Raises:
        OSError: the file cannot be opened.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    documents = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    with open_raw(file.path) as raw:
        if not raw.read(1):
            yield Document(file.id, file.source, file.path, "", "empty")
            return
        # The outer loop starts again after each damage. `last` is the place of the last record
        # read, `damaged` that of the record in work, `told` whether the current damage was
        # reported.
        start: int | None = 0
        last, repeats, told = -1, 0, False
        while start is not None:
            raw.seek(start)
            damaged: int | None = start
            try:
                # Bodies are decoded by `decode_body`. fastwarc 2.0.1's own decoding loses the end
                # of a body with both a transfer and a content coding, and all records after it.
                for record in ArchiveIterator(
                    raw, record_types=WarcRecordType.any_type, auto_decode="none"
                ):
                    damaged = record.stream_pos
                    # In a file that is compressed as a whole, all records have the same place.
                    repeats = repeats + 1 if record.stream_pos == last else 0
                    last = record.stream_pos
                    if record.record_type & documents:
                        yield _document(
                            part,
                            file,
                            f"{file.id}#{last}" + (f".{repeats}" if repeats else ""),
                            record,
                        )
                    damaged, told = None, False
                if (cut := _cut_member(raw, max(last, 0))) is not None and not told:
                    yield _damaged(file, cut)
                return
            except OSError:
                # If the last record was whole, the damage lies between it and the next whole one:
                # search from there.
                start = _next_record(raw, last + 1 if damaged is None else damaged + 1)
                if start is None and damaged is None and last >= 0 and _is_padded(raw):
                    return
                damaged = damaged if damaged is not None else start or last + 1
                if not told:
                    yield _damaged(file, damaged)
                told = True


def _document(part: Part, file: SourceFile, id: str, record: Any) -> Document:
    """Make the document of a record: check status and type, decode the body, extract the text."""
    # WARC 1.0's grammar has angle brackets around the address, and old writers follow it.
    url, offset = record.headers.get("WARC-Target-URI"), record.stream_pos
    url = None if url is None else url.strip().removeprefix("<").removesuffix(">")
    http = record.http_headers

    def said(header: str) -> list[str]:
        return [] if http is None else http.get_multiple(header)

    kind = record.http_content_type if http is not None else record.headers.get("Content-Type")
    kind = (kind or "").partition(";")[0].strip().lower()

    def dropped(reason: str) -> Document:
        return Document(id, file.source, file.path, "", reason, offset, url=url)

    if http is not None and http.status_code != 200:
        return dropped("HTTP status is not 200")
    if kind not in _HTML and kind != "text/plain":
        return dropped("neither HTML nor plain text")
    longest = part.source.max_line_bytes
    data = record.reader.read(longest + 1)
    if len(data) > longest:
        return dropped(part.source.too_long("record"))
    if len(data) < record.content_length:
        return dropped("cut record")
    try:
        data = decode_body(data, said("Transfer-Encoding"), said("Content-Encoding"), longest)
    except BodyError as error:
        long = str(error) == TOO_LONG
        return dropped(part.source.too_long("record") if long else str(error))
    reserved = [f"tdm-reservation: {value}" for value in said("tdm-reservation")]
    flags = ", ".join(filter(None, [*said("X-Robots-Tag"), *reserved])) or None
    charset = None if http is None else record.http_charset
    if kind in _HTML:
        return page(file, id, offset, data, url, charset, flags)
    text, reason, repaired, encoding = decode(data, charset)
    return Document(
        id, file.source, file.path, text, reason, offset, url=url, robots=flags, encoding=encoding,
        repaired=repaired,
    )  # fmt: skip


def _damaged(file: SourceFile, offset: int) -> Document:
    return Document(
        f"{file.id}#{offset}.damaged", file.source, file.path, "", "damaged record", offset
    )


def _is_padded(raw: IO[bytes]) -> bool:
    """Whether the file ends with zeros, as tapes and some writers pad it.

    A gzip member ends with seven zeros at most.
    """
    raw.seek(-min(8, raw.seek(0, 2)), 2)
    return raw.read(8) == bytes(8)


def _cut_member(raw: IO[bytes], at: int) -> int | None:
    """Return where the gzip member begins in which the file is cut; None if the file is whole.

    The search starts at the member at ``at``. It is needed because fastwarc takes a file that ends
    within a record's headers for a whole one. For a file that is compressed as a whole fastwarc
    gives no places, so that one is searched from its start.
    """
    raw.seek(at)
    rest = raw.read(_STRIDE)
    if not rest.startswith(_STARTS):
        at = raw.seek(0)
        rest = raw.read(_STRIDE)
    while rest.startswith(_STARTS[0]):
        member = zlib.decompressobj(31)  # 31: with gzip's header
        size = len(rest)
        try:
            member.decompress(rest)
            while not member.eof:
                if not (chunk := raw.read(_STRIDE)):
                    return at
                size += len(chunk)
                member.decompress(chunk)
        except zlib.error:
            return at
        rest = member.unused_data
        at += size - len(rest)
        rest = rest or raw.read(_STRIDE)
    return None


def _next_record(raw: IO[bytes], at: int) -> int | None:
    """Return where the next record may begin, at or after ``at``; None if there is none."""
    raw.seek(at)
    rest = b""
    while chunk := raw.read(_STRIDE):
        window = rest + chunk
        if places := [place for start in _STARTS if (place := window.find(start)) >= 0]:
            return at + min(places)
        rest = window[-8:]
        at += len(window) - len(rest)
    return None
