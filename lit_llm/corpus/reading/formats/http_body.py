"""Body of an HTTP message: join chunks and decompress.

Crawlers often store a decoded body and keep the headers, so a header only counts if the bytes agree
with it. RFC 9112, section 7.1 (chunks); RFC 9110, section 8.4 (content codings).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable

TOO_LONG = "record too long"
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]{0,4096})?\r?\n")
_STEP = 2**16  # bytes that a decompressor returns at once
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18(.{4})", re.S)  # a frame without content
_ZSTD_STEP = 1024  # bytes given to zstd at once: its output has no limit, but is 32 MB at most


class BodyError(ValueError):
    """A body that cannot be decoded; the message is the reason for dropping the document."""


def decode_body(
    data: bytes, transfer: Iterable[str], content: Iterable[str], longest: int
) -> bytes:
    """Return the body that the server meant to send.

    Args:
        data: the bytes in the record.
        transfer: values of the Transfer-Encoding headers.
        content: values of the Content-Encoding headers.
        longest: maximum bytes of a body.

    Raises:
        BodyError: "cut record", "damaged record", "record too long" or "unknown Content-Encoding".
    """
    for name in reversed(_tokens(transfer)):
        data = _joined_chunks(data) if name == "chunked" else _decompressed(name, data, longest)
    for name in reversed(_tokens(content)):
        data = _decompressed(name, data, longest)
    if len(data) > longest:
        raise BodyError(TOO_LONG)
    return data


def _tokens(values: Iterable[str]) -> list[str]:
    """Return the names of codings in the order in which they were applied, in lower case."""
    parts = (
        part.partition(";")[0].strip(" \t\"'").lower() for v in values for part in v.split(",")
    )
    return [part for part in parts if part]


def _joined_chunks(data: bytes) -> bytes:
    """Return the chunks' contents; ``data`` itself if it does not begin with a chunk."""
    first = _CHUNK.match(data)
    size = int(first[1], 16) if first else 0
    # A text may begin like a chunk's size, but then no line ends at the end of the chunk.
    after = data[first.end() + size :][:2] if first else b""
    if first is None or (size and after and not after.startswith((b"\r\n"[: len(after)], b"\n"))):
        return data
    found: list[bytes] = []
    at = 0
    while True:
        head = _CHUNK.match(data, at)
        if head is None:
            raise BodyError("cut record" if len(data) - at < 32 else "damaged record")
        size = int(head[1], 16)
        if size == 0:
            return b"".join(found)
        chunk = data[head.end() : head.end() + size]
        if len(chunk) < size:
            raise BodyError("cut record")
        found.append(chunk)
        at = head.end() + size
        at += 2 if data[at : at + 2] == b"\r\n" else data[at : at + 1] == b"\n"


def _decompressed(name: str, data: bytes, longest: int) -> bytes:
    """Undo the coding ``name``; return ``data`` itself if it does not have this coding."""
    if not data or name in _NO_CODING:
        return data
    # The first bytes decide between gzip, zlib and a body that is already decoded, because servers
    # confuse these names.
    if data.startswith(b"\x1f\x8b\x08") and name in ("deflate", "x-deflate"):
        name = "gzip"
    if name in ("gzip", "x-gzip") and not data.startswith(b"\x1f\x8b"):
        return _inflated(data, 15, longest) if _is_zlib(data) and not _is_text(data) else data
    if name in ("gzip", "x-gzip"):
        return _inflated(data, 31, longest)
    if name in ("deflate", "x-deflate"):
        return _deflated(data, longest)
    if name == "br":
        return _unless_plain(data, lambda: _brotli(data, longest))
    if name == "zstd":
        framed = data.startswith(_ZSTD) or _ZSTD_SKIPPED.match(data)
        return _zstd(data, longest) if framed else data
    if _is_text(data):
        return data
    raise BodyError("unknown Content-Encoding")


# Values of Content-Encoding that servers send but that are not codings.
_NO_CODING = frozenset(
    """identity none utf-8 utf8 binary 8bit 7bit text html text/html iso-8859-1
    windows-1251 windows-1252 unicode ascii us-ascii charset=utf-8 0 off false null
    plain""".split()  # noqa: SIM905
)


def _inflated(data: bytes, window: int, longest: int) -> bytes:
    """Decompress with zlib, all gzip members.

    Trailing bytes that are not a member are ignored, as browsers do.
    """
    found: list[bytes] = []
    size, rest = 0, data
    while rest:
        member = zlib.decompressobj(window)
        while not member.eof:
            try:
                piece = member.decompress(rest, _STEP)
            except zlib.error:
                if found and not member.unconsumed_tail and rest is not data:
                    return b"".join(found)
                raise BodyError("damaged record") from None
            rest = member.unconsumed_tail
            found.append(piece)
            size += len(piece)
            if size > longest:
                raise BodyError(TOO_LONG)
            if not piece and not rest and not member.eof:
                raise BodyError("cut record")
        rest = member.unused_data if member.unused_data.startswith(b"\x1f\x8b") else b""
    return b"".join(found)


def _is_zlib(data: bytes) -> bool:
    """Whether the data begins like zlib's format (RFC 1950, section 2.2)."""
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


def _deflated(data: bytes, longest: int) -> bytes:
    """Decode "deflate": zlib's format, or the raw stream that some servers send instead.

    See RFC 9110, section 8.4.1.2.
    """
    if _is_zlib(data):
        return _inflated(data, 15, longest)
    return _unless_plain(data, lambda: _inflated(data, -15, longest))


def _brotli(data: bytes, longest: int) -> bytes:
    import brotli

    decoder, found, size = brotli.Decompressor(), [], 0
    try:
        piece = decoder.process(data, output_buffer_limit=_STEP)
        while True:
            found.append(piece)
            size += len(piece)
            if size > longest:
                raise BodyError(TOO_LONG)
            if decoder.is_finished():
                return b"".join(found)
            if not piece and decoder.can_accept_more_data():
                raise BodyError("cut record")
            piece = decoder.process(b"", output_buffer_limit=_STEP)
    except brotli.error:
        raise BodyError("damaged record") from None


def _zstd(data: bytes, longest: int) -> bytes:
    """Decompress all frames (RFC 8878, section 3.1).

    Trailing bytes that are not a frame are ignored.
    """
    import zstandard

    found, size, rest = [], 0, data
    while rest.startswith(_ZSTD) or _ZSTD_SKIPPED.match(rest):
        if skipped := _ZSTD_SKIPPED.match(rest):
            rest = rest[8 + int.from_bytes(skipped[1], "little") :]
            continue
        member = zstandard.ZstdDecompressor().decompressobj()
        at = 0
        while not member.eof and at < len(rest):
            try:
                found.append(member.decompress(rest[at : at + _ZSTD_STEP]))
            except (zstandard.ZstdError, MemoryError):
                raise BodyError("damaged record") from None
            at += _ZSTD_STEP
            size += len(found[-1])
            if size > longest:
                raise BodyError(TOO_LONG)
        if not member.eof:
            raise BodyError("cut record")
        rest = member.unused_data + rest[at:]
    return b"".join(found)


def _unless_plain(data: bytes, decode: Callable[[], bytes]) -> bytes:
    """Return ``decode()``, or ``data`` if that fails and ``data`` is readable text.

    Such a body was decoded before it was stored.
    """
    try:
        return decode()
    except BodyError as error:
        if str(error) == TOO_LONG or not _is_text(data):
            raise
        return data


def _is_text(data: bytes) -> bool:
    """Whether the first 4 KB have no control characters except white space."""
    head = data[:4096]
    return b"\0" not in head and sum(byte < 9 or 13 < byte < 32 for byte in head) == 0
