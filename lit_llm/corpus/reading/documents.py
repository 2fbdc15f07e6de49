"""Document as it was read: decoding, reasons to drop it, and tables for the cleaning blocks."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lit_llm.corpus.reading.repair import BAD_BYTES, LEAST_TO_JUDGE, NULS, bearable, repair
from lit_llm.corpus.reading.sources import writable

if TYPE_CHECKING:
    import pyarrow as pa

    from lit_llm.corpus.reading.sources import Source, SourceFile

# Bytes of text in a table: enough to make calls cheap, few beside the memory of a worker.
TABLE_BYTES = 8 * 2**20

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16-LE, because it begins with that mark
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# First bytes of binary formats that may not contain a NUL: PDF, PostScript, PNG, GIF, JPEG, zip,
# gzip, bzip2, xz, zstd.
_MAGIC = (
    b"%PDF-",
    b"%!PS",
    b"\x89PNG",
    b"GIF8",
    b"\xff\xd8\xff",
    b"PK\3\4",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"(\xb5/\xfd",
)
# uchardet takes "café" in Latin-1 for ISO 8859-2, and a lone byte for text: it guesses on fewer
# bytes than this.
_LEAST_TO_DETECT = LEAST_TO_JUDGE
# A character that is not white space to ``str.isspace``, as a pattern for RE2.
_INK = r"[^\t-\r\x1c-\x20\x{85}\pZ]"
_C1_CONTROLS = re.compile("[\x80-\x9f]")  # frequent in text decoded with the wrong 8-bit table
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f]")  # without ESC, which some encodings write
# Shares of zero bytes in UTF-16 that holds some ASCII: at least _ZEROS of the even or of the odd
# bytes, and at most _OTHER_ZEROS of the others. _LOOKED_AT bytes are counted.
_ZEROS, _OTHER_ZEROS, _LOOKED_AT = 0.3, 0.01, 2**16
_PRINTABLE = bytes(range(32, 127)) + b"\t\n\r"
_LOW = re.compile(rb"[\x00-\x02]")
_STOPS = re.compile("[ \n\u3000-\u3002\uff0c]")  # with swapped bytes these are not text
_FRAMES = re.compile("[\u2500-\u259f]")  # DOS tables decode bytes that are not letters to these
_WIDE = re.compile(r"utf[-_ ]?(16|32)|ucs-?2|iso-10646", re.I)


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its origin.

    Attributes:
        id: path within the source; for a row, ``#`` and the row's ``offset`` follow, or the row's
            own ``id`` is used.
        source: name of the source, valid as a folder name.
        path: the file that the document was read from.
        text: the text; empty when dropped.
        dropped: why it cannot be used ("not UTF-8", "binary", "empty", ...), or None.
        offset: place in the file. JSONL and WARC: the byte at which the line or record starts (in a
            compressed JSONL the line number, from 1). Parquet: the row, from 1. Whole file: 0.
        url: the address at which it was published; for rows see `row_urls`.
        license: the licence that its row or its source tree names.
        language: the programming language, by the file's name; None for other documents.
        robots: what the publisher's headers and meta tags tell robots: "noai", "tdm-reservation:
            1".
        encoding: the encoding, if it is not UTF-8, or how many bad bytes of a file were replaced.
        repaired: what was repaired so that it could be read ("NULs taken out"), or None.
    """

    id: str
    source: str
    path: str
    text: str
    dropped: str | None = None
    offset: int = 0
    url: str | None = None
    license: str | None = None
    language: str | None = None
    robots: str | None = None
    encoding: str | None = None
    repaired: str | None = None


class Usable(NamedTuple):
    """A text, or the reason why there is none.

    Attributes:
        text: empty when dropped.
        dropped, repaired, encoding: as of a `Document`.
    """

    text: str
    dropped: str | None = None
    repaired: str | None = None
    encoding: str | None = None


def usable(value: object) -> Usable:
    """Return the text of a row's value, with small defects repaired."""
    if value is None:
        return Usable("", "empty")
    if not isinstance(value, str):
        return Usable("", "not a string")
    text, repaired, beyond = repair(value)
    if beyond is not None:
        return Usable("", beyond)
    if not text or text.isspace():
        return Usable("", "empty")
    return Usable(text, None, repaired)


def decode(data: bytes, charset: str | None = None, html: bool = False) -> Usable:
    """Decode a file's bytes.

    Encodings are tried in this order: a byte order mark; UTF-8; ``charset``, which a server named;
    if resiliparse is installed, uchardet's guess (for ``html`` the page's meta tag before it) or
    Windows-1252, chosen by the language of the result. If a text does not decode cleanly in any of
    them, one bad byte, or one in a thousand characters, is replaced by U+FFFD. UTF-16 without a
    mark is recognised by its zero bytes, or by ``charset``. A few NULs are removed from other text.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark) and len(data) > len(mark):
            data = data[len(mark) :]
            return _decoded(data, encoding) or _patched(data, encoding) or Usable("", "not UTF-8")
    if data.startswith(_MAGIC):
        return Usable("", "binary")
    if found := _wide_ideographs(data):
        return found
    if b"\0" in data:
        return _with_zeros(data, charset, html)
    for found in _readings(data, charset, html):
        if found:
            return found
    return Usable("", "not UTF-8")


def _with_zeros(data: bytes, charset: str | None, html: bool) -> Usable:
    """Decode bytes with zeros between them: UTF-16, or text into which NULs were written."""
    for guess in _wide_guesses(data, charset):
        decoded = _decoded(data, guess)
        if decoded and not decoded.dropped and not _CONTROLS.search(decoded.text):
            return decoded
    # Zeros at the end pad a file to the end of its block. A few others may be removed.
    rest = data.rstrip(b"\0")
    few = bearable(rest.count(b"\0"), len(rest)) and len(rest) >= LEAST_TO_JUDGE
    rest = rest.replace(b"\0", b"")
    if not few or rest.startswith(_MAGIC) or _CONTROLS.search(rest.decode("latin-1")):
        return Usable("", "binary")
    found = decode(rest, charset, html)
    repaired = " and ".join(filter(None, [NULS, found.repaired]))
    return found if found.dropped else found._replace(repaired=repaired)


def _wide_ideographs(data: bytes) -> Usable | None:
    """Decode UTF-16 without mark of Chinese, Japanese or Korean; None if it is not that.

    The stops and spaces of these languages have a byte that other text never has (0 to 2).
    """
    if len(data) % 2 or not _LOW.search(data[:_LOOKED_AT]):
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        found = _decoded(data, encoding)
        # Accept if most letters are of these scripts: bytes of another text, read as UTF-16, give
        # arbitrary characters.
        if found and not found.dropped:
            letters = [char for char in found.text[:_LOOKED_AT] if char > "\x7f" and char.isalpha()]
            like = sum("\u3040" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for c in letters)
            enough = like >= max(1, 0.9 * len(letters), len(found.text[:_LOOKED_AT]) // 4)
            if enough and _STOPS.search(found.text) and not _CONTROLS.search(found.text):
                return found
    return None


def _wide_guesses(data: bytes, charset: str | None) -> Iterator[str]:
    """Yield guesses of UTF-16 or UTF-32: by ``charset``, or by where the zeros are."""
    named = _WIDE.match(charset or "")
    ends = [name for name in ("le", "be") if (charset or "").lower().endswith(name)]
    size = "32" if named and named[1] == "32" else "16"
    head = data[:_LOOKED_AT]
    zeros = [head[side::2].count(0) / max(1, len(head) // 2) for side in (1, 0)]
    order = ["le", "be"] if zeros[0] >= zeros[1] else ["be", "le"]
    if named:
        if len(head.translate(None, _PRINTABLE)) * 10 < len(head):
            return  # the text is ASCII, although ``charset`` says otherwise
        yield from (f"utf-{size}-{end}" for end in ends or order)
    elif len(data) % 2 == 0 and max(zeros) >= _ZEROS and min(zeros) <= _OTHER_ZEROS:
        yield f"utf-16-{order[0]}"


def _readings(data: bytes, charset: str | None, html: bool) -> Iterator[Usable | None]:
    """Yield what the bytes decode to, one encoding after the other."""
    # ISO 2022 writes Japanese with ASCII bytes, which are valid UTF-8.
    if b"\x1b$" in data:
        yield _detected(data, html)
    yield _decoded(data, "utf-8")
    if charset:
        yield _decoded(data, charset)
        # Before Windows-1252, in which any bytes are valid.
        yield None if charset.lower() in ("utf-8", "utf8") else _patched(data, charset)
    yield _detected(data, html)
    yield _patched(data, "utf-8")


def _patched(data: bytes, encoding: str) -> Usable | None:
    """Decode with bad bytes replaced; None if there are more than a few."""
    try:
        name = codecs.lookup(encoding).name
        if name == "utf-8":
            text, repaired, beyond = repair(data.decode("utf-8", "surrogateescape"))
        else:
            text, repaired, beyond = data.decode(encoding, "replace"), BAD_BYTES, None
    except (LookupError, ValueError):
        return None
    bad = text.count("\ufffd")
    if beyond or not repaired or not bearable(bad, len(text)) or _C1_CONTROLS.search(text):
        return None
    if name != "utf-8" and len(data) < LEAST_TO_JUDGE:
        return None
    return Usable(text, None, repaired, f"{name}, {bad} replaced")


def _decoded(data: bytes, encoding: str) -> Usable | None:
    """Decode with one encoding; None if the bytes are not valid in it.

    None also if Python does not know the encoding.
    """
    try:
        name = codecs.lookup(encoding).name
        text = data.decode(encoding)
    except (LookupError, ValueError):  # ValueError: also a name that contains a NUL
        return None
    if name != "utf-8" and _C1_CONTROLS.search(text):
        return None
    found = usable(text)
    return found if found.dropped or name == "utf-8" else found._replace(encoding=name)


def _detected(data: bytes, html: bool) -> Usable | None:
    """Return the text in the likeliest encoding, of those that leave at most a few bad bytes.

    uchardet alone takes Italian in Windows-1252 for Baltic. For Korean it gives a name that is not
    among the web's (by which text that is called Latin-1 is Windows-1252). Of 439 paragraphs in 39
    pairs of language and encoding, 26 came out wrong with it, and none when CLD2's score decides.
    Only Ukrainian in KOI8-U is still read as KOI8-R.
    """
    if len(data) < _LEAST_TO_DETECT:
        return None
    try:
        from resiliparse.parse.encoding import detect_encoding

        from lit_llm.corpus.filters.language import likeness
    except ImportError:
        return None
    read = data.decode(errors="replace")
    # Broken UTF-8: in another encoding most of its letters would become two.
    if 0 < 2 * read.count("\ufffd") <= len(read) - len(read.encode("ascii", "ignore")):
        return None
    named = detect_encoding(data, html5_compatible=True, from_html_meta=html)
    names = [named, detect_encoding(data, html5_compatible=False), "cp1252"]
    names += ["mac_roman"] * (not html and _most(data, 0xA0))
    found = [_decoded(data, name) or _patched(data, name) for name in dict.fromkeys(names) if name]
    if not html and _most(data, 0xA6):
        dos = (_decoded(data, name) for name in ("cp850", "cp857"))
        found += [one for one in dos if one and not _FRAMES.search(one.text)]
    return max(filter(None, found), key=lambda one: likeness(one.text), default=None)


def _most(data: bytes, end: int) -> bool:
    """Whether most bytes beyond ASCII lie between 0x80 and ``end``.

    Mac OS Roman (up to 0xa0) and DOS (up to 0xa6) have their accented letters there. Other 8-bit
    tables have signs there, or nothing.
    """
    letters = sum(0x80 <= byte < end for byte in data)
    return 2 * letters > sum(byte >= 0x80 for byte in data)


def to_tables(read: Iterable[Document | pa.Table], source: Source) -> Iterator[pa.Table]:
    """Collect documents into tables of about ``TABLE_BYTES`` of text.

    Tables are passed on as they are. The order is kept.
    """
    batch: list[Document] = []
    size = 0
    for item in read:
        if isinstance(item, Document):
            batch.append(item)
            size += len(item.text) + 200  # a dropped document is a row too
            if size < TABLE_BYTES:
                continue
        if batch:
            yield _table(batch, source)
            batch, size = [], 0
        if not isinstance(item, Document):
            yield item
    if batch:
        yield _table(batch, source)


def _table(documents: list[Document], source: Source) -> pa.Table:
    """Make one table of documents; fields that a document lacks come from ``source``."""
    import pyarrow as pa

    columns: dict[str, list] = {
        "path": [writable(document.path) for document in documents],
        "license": [document.license or source.license for document in documents],
        "language": [document.language or source.language for document in documents],
        "domain": [source.domain] * len(documents),
        "dropped": [document.dropped and f"read: {document.dropped}" for document in documents],
    }
    names = schema().names
    for name in names:
        if name not in columns:
            columns[name] = [getattr(document, name) for document in documents]
    return pa.table({name: columns[name] for name in names}, schema=schema())


def checked_table(
    source: Source,
    file: SourceFile,
    text: pa.ChunkedArray,
    places: pa.Int64Array,
    ids: pa.ChunkedArray | None,
    urls: pa.ChunkedArray | None,
    licenses: pa.ChunkedArray | None,
) -> pa.Table:
    """Make a table of rows that were read as columns, checked as ``usable`` checks one value.

    The columns hold strings or bytes, which need not be UTF-8.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from lit_llm.corpus.block import replaced

    def said(column: pa.ChunkedArray | None) -> pa.Array:
        """Return the column as strings, null instead of an empty one."""
        if column is None:
            return pa.nulls(len(places), pa.string())
        strings, _ = _utf8(column)
        return pc.replace_with_mask(
            strings, pc.equal(strings, ""), pa.scalar(None, pa.large_string())
        ).cast(pa.string())

    none = pa.scalar(None, pa.string())
    strings, broken = _utf8(text)
    reasons = pc.if_else(pc.is_null(strings), pa.scalar("read: empty"), none)
    strings, repaired = strings.fill_null(""), pa.nulls(len(places), pa.string())
    # Values that are not UTF-8 or contain a NUL are rare: only these are repaired one by one.
    if (np.frombuffer(strings.buffers()[2] or b"", np.uint8) == 0).any():
        nuls = pc.match_substring(strings, "\0")
        broken = nuls if broken is None else pc.or_(broken, nuls)
    if broken is not None:
        rows = pc.indices_nonzero(broken)
        data = text.take(rows).cast(pa.large_binary()).to_pylist()
        found = [usable(value.decode("utf-8", "surrogateescape")) for value in data]
        strings = replaced(strings, rows.to_pylist(), [one.text for one in found])
        said_of = [one.dropped and f"read: {one.dropped}" for one in found]
        reasons = pc.replace_with_mask(reasons, broken, pa.array(said_of, pa.string()))
        mended = pa.array([one.repaired for one in found], pa.string())
        repaired = pc.replace_with_mask(repaired, broken, mended)
    # What has no visible character is empty.
    inked = pc.match_substring_regex(strings, _INK)
    reasons = pc.if_else(pc.or_(inked, pc.is_valid(reasons)), reasons, pa.scalar("read: empty"))
    strings = pc.if_else(pc.is_valid(reasons), pa.scalar("", pa.large_string()), strings)
    made = pc.binary_join_element_wise(file.id, places.cast(pa.string()), "#")
    count = len(places)
    columns = {
        "id": pc.coalesce(said(ids), made),
        "text": strings,
        "source": pa.repeat(pa.scalar(file.source), count),
        "path": pa.repeat(pa.scalar(writable(file.path)), count),
        "offset": places,
        "url": said(urls),
        "license": pc.coalesce(said(licenses), pa.scalar(source.license, pa.string())),
        "language": pa.repeat(pa.scalar(source.language, pa.string()), count),
        "domain": pa.repeat(pa.scalar(source.domain, pa.string()), count),
        "dropped": reasons,
        "repaired": repaired,
    }
    for name in schema().names:
        columns.setdefault(name, pa.nulls(count, pa.string()))
    return pa.table({name: columns[name] for name in schema().names}, schema=schema())


def _utf8(column: pa.ChunkedArray) -> tuple[pa.LargeStringArray, pa.BooleanArray | None]:
    """Return the column as strings, null if not UTF-8, and where that is (None: nowhere)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    data = column.cast(pa.large_binary())
    data = data.chunk(0) if data.num_chunks == 1 else data.combine_chunks()
    try:
        return data.cast(pa.large_string()), None
    except pa.ArrowInvalid:
        decoded = [None if value is None else _strict(value) for value in data.to_pylist()]
        strings = pa.array(decoded, pa.large_string())
        return strings, pc.and_(pc.is_null(strings), pc.is_valid(data))


def _strict(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def schema() -> pa.Schema:
    """Return the schema of tables of documents as read; "dropped" is null or "read: reason"."""
    import pyarrow as pa

    strings = [
        "source",
        "path",
        "url",
        "license",
        "language",
        "domain",
        "robots",
        "encoding",
        "repaired",
        "dropped",
    ]
    columns = [("id", pa.string()), ("text", pa.large_string()), ("offset", pa.int64())]
    return pa.schema(columns + [(name, pa.string()) for name in strings])
