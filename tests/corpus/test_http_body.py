"""Bodies of HTTP messages as servers and crawlers leave them."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.reading.formats.http_body import BodyError, decode_body

TEXT = b"<p>" + b"Some text of a page. " * 40 + b"</p>"
CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
}


def chunked(data: bytes, size: int = 100, extension: bytes = b"", end: bytes = b"\r\n") -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    lines = [b"%X%s%s%s%s" % (len(part), extension, end, part, end) for part in parts]
    return b"".join(lines) + b"0" + end + end


@pytest.mark.parametrize("coding", CODED)
def test_codings(coding: str) -> None:
    data = CODED[coding]
    assert decode_body(data, [], [coding.upper()], 10**6) == TEXT
    assert decode_body(chunked(data), ["chunked"], [coding], 10**6) == TEXT
    assert decode_body(TEXT, [], [coding], 10**6) == TEXT  # decoded before it was stored
    assert decode_body(TEXT, ["chunked"], [coding], 10**6) == TEXT
    with pytest.raises(BodyError, match=r"cut record|damaged record"):
        decode_body(data[: len(data) // 2], [], [coding], 10**6)
    with pytest.raises(BodyError, match="record too long"):
        decode_body(data, [], [coding], 100)


def test_a_bomb_is_refused_before_it_is_whole() -> None:
    zeros = bytes(2**26)
    for coding, bomb in {
        "gzip": gzip.compress(zeros),
        "br": brotli.compress(zeros, quality=1),
    }.items():
        with pytest.raises(BodyError, match="record too long"):
            decode_body(bomb, [], [coding], 10**5)


def test_a_bare_deflate_stream() -> None:
    stream = zlib.compressobj(wbits=-15)
    assert decode_body(stream.compress(TEXT) + stream.flush(), [], ["deflate"], 10**6) == TEXT


@pytest.mark.parametrize("said", ["none", "identity", "utf-8", "UTF-8", "", "binary", "text/html"])
def test_what_is_no_coding(said: str) -> None:
    assert decode_body(TEXT, [], [said], 10**6) == TEXT


def test_several_codings_and_headers() -> None:
    twice = gzip.compress(brotli.compress(TEXT))
    for values in (["br, gzip"], ["br", "gzip"], ["br,gzip;q=1"]):
        assert decode_body(twice, [], values, 10**6) == TEXT
    assert decode_body(chunked(gzip.compress(TEXT)), ["gzip, chunked"], [], 10**6) == TEXT
    members = gzip.compress(TEXT[:300]) + gzip.compress(TEXT[300:])
    assert decode_body(members + b"\r\n", [], ["gzip"], 10**6) == TEXT
    frames = zstandard.compress(TEXT[:300]) + zstandard.compress(TEXT[300:])
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"  # RFC 8878, section 3.1.2
    for body in (frames, skipped + frames, zstandard.compress(TEXT) + skipped):
        assert decode_body(body, [], ["zstd"], 10**6) == TEXT
    with pytest.raises(BodyError, match="record too long"):
        decode_body(zstandard.compress(bytes(90)) * 9, [], ["zstd"], 100)
    assert decode_body(TEXT, [], ["aws-chunked"], 10**6) == TEXT
    assert decode_body(zlib.compress(TEXT), [], ["gzip"], 10**6) == TEXT
    assert decode_body(gzip.compress(TEXT), [], ["deflate"], 10**6) == TEXT
    with pytest.raises(BodyError, match="unknown Content-Encoding"):
        decode_body(b"\x1f\x9d\x90", [], ["compress"], 10**6)


@pytest.mark.parametrize(
    "body",
    [
        TEXT, b"10 ways to cook rice\n" + TEXT, b"A\n" + TEXT, b"", b"5\r\nabc", b"ff",
        b"12\nlines",
        b"0\n",
    ],
)  # fmt: skip
def test_said_to_be_chunked_and_is_not(body: bytes) -> None:
    expected = b"" if body == b"0\n" else body
    if body == b"5\r\nabc" or body == b"12\nlines":
        with pytest.raises(BodyError, match="cut record"):
            decode_body(body, ["chunked"], [], 10**6)
    else:
        assert decode_body(body, ["chunked"], [], 10**6) == expected


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=500),
    st.integers(1, 200),
    st.sampled_from([b"", b";a=b", b' ; name="x"', b"  "]),
    st.sampled_from([b"\r\n", b"\n"]),
)
def test_any_body_comes_back_from_its_chunks(
    body: bytes, size: int, extension: bytes, end: bytes
) -> None:
    assert decode_body(chunked(body, size, extension, end), ["chunked"], [], 10**6) == body
    trailer = chunked(body, size, extension, end)[: -len(end)] + b"X-Sum: 1" + end + end
    assert decode_body(trailer, ["Chunked"], [], 10**6) == body


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.sampled_from([*CODED, "chunked"]))
def test_any_bytes_are_a_body_or_a_reason(body: bytes, coding: str) -> None:
    kinds = ([coding], []) if coding == "chunked" else ([], [coding])
    try:
        assert len(decode_body(body, *kinds, 10**6)) <= 10**6
    except BodyError as error:
        assert str(error) in ("cut record", "damaged record", "record too long")
