"""Records of WARC and WET: what they say, and reading on around damage."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from reading import rows
from truth.planted import response

from lit_llm.corpus.reading.sources import Source

PAGES = [
    response(f"http://x.org/{i}", b"<p>Page %d: %s</p>" % (i, b"words " * 99)) for i in range(5)
]


@pytest.mark.parametrize("pressed", [False, True])
def test_pages_are_read_around_damage(tmp_path: Path, pressed: bool) -> None:
    file = tmp_path / ("a.warc.gz" if pressed else "a.warc")
    records = [gzip.compress(page) if pressed else page for page in PAGES]
    file.write_bytes(b"".join(records))
    whole = rows(str(tmp_path))
    assert [row["url"] for row in whole] == [f"http://x.org/{i}" for i in range(5)]
    assert [row["offset"] for row in whole] == [sum(map(len, records[:i])) for i in range(5)]
    assert whole[3]["text"].startswith("Page 3: words")
    damaged = bytearray(b"".join(records))
    begin = whole[2]["offset"] + (20 if pressed else 0)
    damaged[begin : begin + 60] = random.Random(0).randbytes(60)
    file.write_bytes(damaged)
    found = rows(str(tmp_path))
    assert [row["dropped"] for row in found] == [None, None, "read: damaged record", None, None]
    assert [row for row in found if not row["dropped"]] == [*whole[:2], *whole[3:]]
    file.write_bytes(b"".join(records)[:-150])
    found = rows(str(tmp_path))
    assert found[:4] == whole[:4] and found[4]["dropped"] in (
        "read: cut record",
        "read: damaged record",
    )


def test_a_warc_that_is_compressed_as_one(tmp_path: Path) -> None:
    data = gzip.compress(b"".join(PAGES))
    (tmp_path / "a.warc.gz").write_bytes(data)
    assert [row["url"] for row in rows(str(tmp_path))] == [f"http://x.org/{i}" for i in range(5)]
    (tmp_path / "a.warc.gz").write_bytes(data[:-20])
    assert "read: damaged record" in [row["dropped"] for row in rows(str(tmp_path))]


def test_what_servers_say(tmp_path: Path) -> None:
    html = (
        "<html><head><meta name='robots' "
        "content='noarchive'></head><body><p>Grüße</p></body></html>"
    )
    plain = (
        b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://w\r\nWARC-Record-ID: "
        b"<urn:uuid:1>\r\n"
    )
    records = [
        response(
            "http://a",
            html.encode("latin-1"),
            "text/html; charset=iso-8859-1",
            "X-Robots-Tag: noai\r\n",
        ),
        response("http://b", b"<p>b</p>", headers="tdm-reservation: 1\r\n"),
        response("http://c", b"c", "text/plain"),
        response("http://d", b"<p>d</p>", status="404 Not Found"),
        response("http://e", b"e", "image/png"),
        response("http://f", gzip.compress(b"<p>f</p>"), headers="Content-Encoding: gzip\r\n"),
        response("http://g", b"<p>" + b"g" * 500),
        plain + b"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: text/plain\r\nContent-Length: "
        b"4\r\n\r\nwet.\r\n\r\n",
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = rows(Source("s", [str(tmp_path)], max_line_bytes=400))
    assert [(row["text"], row["robots"], row["encoding"], row["dropped"]) for row in found] == [
        ("Grüße", "noai, noarchive", "iso8859-1", None),
        ("b", "tdm-reservation: 1", None, None),
        ("c", None, None, None),
        ("", None, None, "read: HTTP status is not 200"),
        ("", None, None, "read: neither HTML nor plain text"),
        ("f", None, None, None),
        ("", None, None, "read: record too long: above max_line_bytes=400"),
        ("wet.", None, None, None),
    ]


def test_no_record_is_lost_behind_one_that_is_chunked_and_compressed(tmp_path: Path) -> None:
    """fastwarc's own decoding ended the iteration there: 6 of 16 were read, and nothing said so."""
    body = gzip.compress(b"<p>packed</p>")
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(body[i : i + 9]), body[i : i + 9]) for i in range(0, len(body), 9)
    )
    headers = "Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n"
    packed = response("http://p", chunks + b"0\r\n\r\n", headers=headers)
    cut = response("http://q", chunks[:-4], headers=headers)
    records = [PAGES[0]] * 5 + [packed] + [PAGES[1]] * 4 + [cut] + [PAGES[2]] * 5
    for name, data in {
        "a.warc": b"".join(records),
        "a.warc.gz": b"".join(map(gzip.compress, records)),
    }.items():
        for old in tmp_path.iterdir():
            old.unlink()
        (tmp_path / name).write_bytes(data)
        found = rows(str(tmp_path))
        assert len(found) == 16 and found[5]["text"] == "packed"
        assert [(row["url"], row["dropped"]) for row in found if row["dropped"]] == [
            ("http://q", "read: cut record")
        ]


def test_addresses_without_brackets_and_all_robots_headers(tmp_path: Path) -> None:
    said = "X-Robots-Tag: noarchive\r\nX-Robots-Tag: noai\r\n"
    (tmp_path / "a.warc").write_bytes(response("<http://x.org/a>", b"<p>a</p>", headers=said))
    (found,) = rows(str(tmp_path))
    assert found["url"] == "http://x.org/a" and found["robots"] == "noarchive, noai"
