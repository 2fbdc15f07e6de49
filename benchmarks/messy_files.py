"""How the documents of messy.py lie on disk: in every format that is read, in web archives, and
broken."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from reading import response

FORMATS = (
    "files",
    "jsonl",
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "parquet",
    "parquet",
)  # rows are the rule, files are not
ROWS = 4000  # in a file, some 16 MB
LAYOUTS = {
    "article": "<main><article><h1>{title}</h1>{body}</article></main>",
    "div": "<div id='content' class='content'><h1>{title}</h1>{body}</div>",
    "plain": "<h1>{title}</h1>{body}",
}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title} | Example</title>\
<style>p {{ margin: 1em }}</style>
<script>window.dataLayer = [];</script></head><body>
<nav class="menu"><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li>
<li><a href="/about">About us</a></li></ul></nav>
{main}
<aside class="sidebar"><a href="/next">Read next</a></aside>
<!-- rendered in 12 ms -->\
<footer><a href="/privacy">Privacy</a> <a href="/terms">Terms of use</a></footer>
<script>track()</script></body></html>"""


def write_rows(folder: Path, texts: Mapping[str, str], rng: random.Random) -> None:
    """``texts`` by id: some as files of that name, the others as rows of JSONL, plain and
    compressed, and parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    folder.mkdir(parents=True)
    shares: dict[str, list[str]] = {}
    for name in texts:
        shares.setdefault(rng.choice(FORMATS), []).append(name)
    for name in shares.pop("files", []):
        (folder / name).write_text(texts[name], encoding="utf-8", newline="")
    for ending, names in shares.items():
        for start in range(0, len(names), ROWS):
            some = names[start : start + ROWS]
            file = folder / f"rows-{start // ROWS}.{ending}"
            if ending == "parquet":
                pq.write_table(pa.table({"id": some, "text": [texts[name] for name in some]}), file)
                continue
            data = b"".join(row(id=name, text=texts[name]) for name in some)
            pack: Callable[[bytes], bytes] = {
                "jsonl": bytes, "jsonl.gz": gzip.compress,
                "jsonl.zst": zstandard.ZstdCompressor().compress,
            }[ending]  # fmt: skip
            file.write_bytes(pack(data))


def row(**fields: object) -> bytes:
    """A line of JSONL."""
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def write_pages(folder: Path, pages: list[list[str]], rng: random.Random) -> list[str]:
    """Pages of a title and paragraphs, with what surrounds them on the web: HTML files, WARC and
    WARC.gz; their ids."""
    folder.mkdir(parents=True)
    archives = {name: bytearray() for name in ("crawl.warc", "crawl.warc.gz")}
    ids = []
    for number, (title, *paragraphs) in enumerate(pages):
        body = "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
        main = LAYOUTS[rng.choice(list(LAYOUTS))].format(title=escape(title), body=body)
        data = PAGE.format(title=escape(title), main=main).encode()
        place = rng.choice(["file", *archives])
        if place == "file":
            ids.append(f"page-{number}.html")
            (folder / ids[-1]).write_bytes(data)
        else:
            ids.append(f"{place}#{len(archives[place])}")
            record = response(f"https://example.org/{number}", data)
            archives[place] += gzip.compress(record) if place.endswith(".gz") else record
    for name, content in archives.items():
        (folder / name).write_bytes(content)
    return ids


def write_bad(folder: Path, below: str, text: str, longest: int) -> list[str]:
    """Files and rows that are no documents, in ``folder/below``; what each is called: a file's
    name, or a row's id.

    Args:
        folder: of the source.
        below: a folder in it.
        text: any text that is not ASCII, to be spoiled.
        longest: bytes of a line that is taken.
    """
    import zstandard

    (folder / below).mkdir(parents=True)
    noise = random.Random(below).randbytes(20_000)
    archived = row(id=below, text=noise.hex())
    data = text.encode()
    page = response("https://example.org/", b"<p>" + data * 20)
    files = {
        "empty.txt": b"", "blank.txt": b" \n\t\n", "picture.png": b"\x89PNG\r\n\x1a\n" + noise,
        "a.out": b"\x7fELF\0" + noise, "paper.pdf": b"%PDF-1.7\n" + data,
        "cut.txt": b"\xff ".join(data.split()), "cut.jsonl.gz": gzip.compress(archived)[:-9000],
        "cut.jsonl.zst": zstandard.compress(archived)[:-9000], "noise.parquet": noise,
        "empty.parquet": b"", "noise.warc": noise, "cut.warc.gz": gzip.compress(page)[:-40],
        "empty.html": b"<html><body></body></html>", "one-line.txt": b"x " * longest,
        "not.jsonl.gz": noise,
    }  # fmt: skip
    for name, content in files.items():
        (folder / below / name).write_bytes(content)
    names = [f"{below}/{name}" for name in files]
    names += _write_records(folder, f"{below}/rows.jsonl", _bad_rows(data, longest))
    gone = response("https://example.org/gone", b"<p>gone", status="404 Not Found")
    picture = response("https://example.org/a.png", noise, kind="image/png")
    return names + _write_records(folder, f"{below}/records.warc", [gone, picture])


def _bad_rows(data: bytes, longest: int) -> list[bytes]:
    return [
        row(text=" "), b"{'text': 'single quotes'}\n", b'["a list"]\n', row(body="no such field"),
        row(text=12), row(text=None), row(text="\0 NULs \0"),
        b'{"text": "\\ud800 halves ' b'\\ud800"}\n', b'{"text": "' + data[:40] + b'\xff \xff"}\n',
        row(text="y" * longest), b'{"text": "cut' + data[:40],
    ]  # fmt: skip


def _write_records(folder: Path, name: str, records: list[bytes]) -> list[str]:
    """All in one file; their ids are the bytes at which they begin."""
    (folder / name).write_bytes(b"".join(records))
    return [f"{name}#{sum(map(len, records[:number]))}" for number in range(len(records))]
