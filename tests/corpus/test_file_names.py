"""What files are called says how they are read: endings in capitals, of other compressors, of
Common Crawl."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from reading import rows
from truth.planted import response

from lit_llm.corpus.reading.sources import Source

TEXTS = ["Überall one", "and two 道"]
LINES = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS).encode()


def zstd_long(data: bytes) -> bytes:
    """What `zstd --long=31` writes, with which dumps of whole sites are made."""
    window = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=window).compressobj()
    return stream.compress(data) + stream.flush()


FILES = {
    "a.jsonl": LINES,
    "a.JSONL.GZ": gzip.compress(LINES),
    "a.jsonl.bz2": bz2.compress(LINES[:20]) + bz2.compress(LINES[20:]),
    "a.jsonl.xz": lzma.compress(LINES),
    "a.json.Zst": zstandard.compress(LINES),
    "long.jsonl.zst": zstd_long(LINES),
    "a.jsonlines": LINES,
    "a.jl.gz": gzip.compress(LINES),
    "utf-16.jsonl": LINES.decode().encode("utf-16"),
    "utf-16.json": codecs.BOM_UTF16_BE
    + json.dumps([{"text": text} for text in TEXTS]).encode("utf-16-be"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", [40, 10**6])
def test_rows_of_json(tmp_path: Path, name: str, target: int) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert [row["text"] for row in rows(Source("s", str(tmp_path / name)), target)] == TEXTS


def test_a_cut_file_of_other_compressors_is_told(tmp_path: Path) -> None:
    for name in ("a.jsonl.bz2", "a.jsonl.xz"):
        (tmp_path / name).write_bytes(FILES[name][:-9])
        found = rows(Source("s", str(tmp_path / name)))
        assert "read: unreadable: the compressed file is cut" in [row["dropped"] for row in found]


def conversion(text: str) -> bytes:
    head = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://example.org/\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(text.encode())}\r\n\r\n"
    )
    return gzip.compress(f"{head}{text}\r\n\r\n".encode())


@pytest.mark.parametrize("name", ["CC-MAIN-1.warc.wet.gz", "a.wet.gz", "a.WARC.GZ"])
def test_texts_of_common_crawl_are_records(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"".join(map(conversion, TEXTS)) + bytes(512))
    found = rows(Source("s", str(tmp_path / name)))
    assert [(row["text"], row["dropped"]) for row in found] == [(text, None) for text in TEXTS]
    assert {row["url"] for row in found} == {"https://example.org/"}


def test_damage_is_no_padding_and_nothing_is_empty(tmp_path: Path) -> None:
    page = response("https://example.org/", b"<p>One page.</p>")
    damaged = gzip.compress(page) + b"\x1f\x8b\x08 broken" + bytes(4)
    (tmp_path / "a.warc.gz").write_bytes(damaged)
    (tmp_path / "b.warc.gz").write_bytes(b"")
    (tmp_path / "c.arc").write_bytes(b"filedesc://x 0.0.0.0 20200101000000 text/plain 10\n1 0 X\n")
    found = [row["dropped"] for row in rows(Source("s", str(tmp_path)))]
    assert found == [
        None,
        "read: damaged record",
        "read: empty",
        "read: ARC file: convert it to WARC",
    ]


def test_settings_of_hugo_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("+++\ntitle = 'x'\n+++\n# Head\n")
    assert [row["text"] for row in rows(Source("s", str(tmp_path)))] == ["# Head\n"]
