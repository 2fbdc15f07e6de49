"""Every line and row is read once, however the work is cut; what is no text is named and the rest
is read."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import random
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import rows

from lit_llm.corpus.block import funnel
from lit_llm.corpus.reading import rows as corpus_rows
from lit_llm.corpus.reading.formats import jsonl as lines
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.read import read_part
from lit_llm.corpus.reading.rows import line_blocks
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError

# JSONL


plain = st.builds(lambda text: {"text": text}, st.text(max_size=9))
numbered = st.builds(
    lambda text, n: {"n": n, "text": text}, st.text("aé\n ", max_size=9), st.integers()
)
labelled = st.builds(
    lambda url, text: {"text": text, "url": url, "license": [url]}, st.text("ab"), st.text("xy")
)
odd = [
    "",
    " ",
    '{"text": "a"} {"text": "b"}',
    '{"text": 1}',
    '{"a": 1}',
    "[]",
    "{",
    '{"text": null}',
]
odd += [
    '{"text": "\\ud800"}',
    '{"text": "a\\u0000"}',
    '{"text": "a", "text": "b"}',
    '{"id": 1.5, "text": "a"}',
]
json_lines = st.lists(
    st.one_of(
        st.builds(json.dumps, plain | numbered | labelled, ensure_ascii=st.booleans()),
        st.sampled_from(odd),
    ),
    max_size=9,
)


@settings(deadline=None)
@given(
    lines_=json_lines,
    target=st.integers(1, 60),
    crlf=st.booleans(),
    end=st.booleans(),
    mark=st.booleans(),
)
def test_every_line_is_read_once_wherever_a_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    lines_: list[str],
    target: int,
    crlf: bool,
    end: bool,
    mark: bool,
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    newline = "\r\n" if crlf else "\n"
    content = newline.join(['{"text": "first"}', *lines_]) + newline * end
    data = codecs.BOM_UTF8 * mark + content.encode()
    (folder / "a.jsonl").write_bytes(data)
    whole = rows({"s": str(folder)})
    for row in whole:
        assert row["id"] == f"a.jsonl#{row['offset']}" and (
            row["offset"] == 0 or data[row["offset"] - 1] == 10
        )
    parsed = []
    for line in content.split("\n"):
        if line.strip():
            try:
                row = json.loads(line)
                text = row.get("text") if isinstance(row, dict) else None
                text = text.replace("\0", "").replace("\ud800", "")
            except (ValueError, AttributeError):
                text = None
            parsed.append(text if text and not text.isspace() else "")
    assert [row["text"] for row in whole] == parsed
    assert rows({"s": str(folder)}, target) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_parsed_by_arrow", lambda *block: None)
        assert rows({"s": str(folder)}) == whole


@settings(deadline=None)
@given(
    cut=st.lists(st.integers(0, 80), max_size=4), block=st.integers(1, 30),
    longest=st.integers(1, 40),
    data=st.lists(st.integers(0, 30).map(lambda n: b"x" * n)).map(b"\n".join),
)  # fmt: skip
def test_ranges_of_bytes_give_every_line_once(
    cut: list[int], block: int, longest: int, data: bytes
) -> None:
    edges = sorted({0, len(data), *(edge for edge in cut if edge < len(data))})
    with patch.object(corpus_rows, "_BLOCK", block):
        found = [
            piece
            for start, stop in itertools.pairwise(edges)
            for piece in line_blocks(io.BytesIO(data), start, stop, longest)
        ]
    at = 0
    for place, piece in found:
        assert place == at
        if piece is None:  # too long to keep: up to the end of its line
            end = data.find(b"\n", place)
            at = len(data) if end < 0 else end + 1
            assert at - place > longest
        else:
            assert data[place : place + len(piece)] == piece and (
                piece.endswith(b"\n") or place + len(piece) == len(data)
            )
            at = place + len(piece)
    assert at == len(data)


def test_clean_lines_are_not_parsed_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        {"id": i, "text": f"text {i}", "meta": {"a": [i]}, "url": "http://x.org", "license": "MIT"}
        for i in range(9)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    monkeypatch.setattr(lines, "_parsed", None)
    found = rows(Source("s", [str(tmp_path)], language="en", domain="law", license="CC0-1.0"))
    assert [
        (row["id"], row["url"], row["license"], row["language"], row["domain"]) for row in found
    ] == [(str(i), "http://x.org", "MIT", "en", "law") for i in range(9)]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
def test_compressed_lines_are_counted_and_a_cut_file_is_read_to_the_cut(
    tmp_path: Path, ending: str
) -> None:
    content = b"".join(
        b'{"text": "%d %d"}\n' % (i, random.Random(i).getrandbits(200)) for i in range(50_000)
    )
    press = gzip.compress if ending.endswith("gz") else zstandard.compress
    (tmp_path / f"a{ending}").write_bytes(
        press(content[:100]) + press(content[100:])
    )  # two members, one text
    found = rows(str(tmp_path))
    assert [row["offset"] for row in found] == list(range(1, 50_001)) and found[7][
        "id"
    ] == f"a{ending}#8"
    (tmp_path / f"a{ending}").write_bytes(press(content)[:-1000])
    *kept, last = rows(str(tmp_path))
    assert len(kept) > 10_000 and kept == found[: len(kept)]
    assert last["id"] == f"a{ending}" and last["dropped"].startswith("read: unreadable: ")


def test_long_lines_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a"}\n{"text": "' + "b" * 100 + '"}\n{"text": "c"}\n'
    )
    (tmp_path / "b.txt").write_text("short\n" + "é" * 30, encoding="utf-8")
    found = rows(Source("s", [str(tmp_path)], max_line_bytes=50))
    assert [row["dropped"] for row in found] == [
        None,
        "read: line too long: above max_line_bytes=50",
        None,
        "read: line too long: above max_line_bytes=50",
    ]
    assert [row["text"] for row in found] == ["a", "", "c", ""]


# Parquet


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), target=st.integers(1, 2000))
def test_every_row_is_read_once_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], target: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    content = pa.schema([("text", pa.string()), ("id", pa.int64()), ("other", pa.float64())])
    with pyarrow.parquet.ParquetWriter(folder / "a.parquet", content) as writer:
        for size in sizes:
            made = {
                "text": [f"row {i} of {size}" for i in range(size)],
                "id": [None] * size,
                "other": [0.5] * size,
            }
            writer.write_table(pa.table(made, schema=content))
    found = rows(str(folder), target)
    assert [row["text"] for row in found] == [
        f"row {i} of {size}" for size in sizes for i in range(size)
    ]
    assert [row["id"] for row in found] == [f"a.parquet#{i + 1}" for i in range(sum(sizes))]
    assert len(list_parts(str(folder), 1)) == len(sizes)


KINDS = [
    pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string()),
    pa.string_view(), pa.binary_view(),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_columns_of_text_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one", None, " \n", "nul \0", "two", "\u2003\x1f"]
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()).cast(kind),
            "license": [["MIT", "ISC"]] + [None] * 5,
            "id": list("abcdef"),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = rows(Source("s", [str(tmp_path)], license="CC0-1.0"))
    assert [row["text"] for row in found] == ["one", "", "", "nul ", "two", ""]
    assert [row["dropped"] for row in found] == [
        None, "read: empty", "read: empty", None, None, "read: empty"
    ]  # fmt: skip
    assert [row["repaired"] for row in found] == [None] * 3 + ["NULs taken out"] + [None] * 2
    assert [row["license"] for row in found] == ["(MIT) AND (ISC)"] + ["CC0-1.0"] * 5


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string_view(), ["GPL-3.0", None]),
        (pa.dictionary(pa.int8(), pa.string()), ["GPL-3.0", None]),
        (pa.list_(pa.string()), [["GPL-3.0"], None]),
        (pa.large_list(pa.string()), [["GPL-3.0"], []]),
        (pa.list_(pa.large_string(), 1), [["GPL-3.0"], ["MIT"]]),
        (pa.struct([("spdx_id", pa.string())]), [{"spdx_id": "GPL-3.0"}, None]),
    ],
    ids=lambda kind: str(kind)[:20],
)
def test_a_column_of_licences_of_any_type_counts(
    tmp_path: Path, kind: pa.DataType, values: list
) -> None:
    table = pa.table({"text": ["one", "two"], "license": pa.array(values, kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = rows(Source("s", [str(tmp_path)], license="MIT"))
    assert [row["license"].strip("()") for row in found] == ["GPL-3.0", "MIT"]


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (["MIT", None], "(MIT) AND (unknown)"),
        (["MIT OR GPL-3.0", "ISC"], "(MIT OR GPL-3.0) AND (ISC)"),
        ({"key": "gpl-3.0", "name": "GNU GPL"}, "gpl-3.0"),
        ({"terms": 3}, '{"terms": 3}'),
        (7, "7"),
        ([], "MIT"),
        ("", "MIT"),
    ],
)
def test_a_licence_in_a_row_of_json(tmp_path: Path, said: object, read: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one", "license": said}))
    assert rows(Source("s", [str(tmp_path)], license="MIT"))[0]["license"] == read


def test_a_column_of_nulls_alone(tmp_path: Path) -> None:
    table = pa.table({"text": pa.nulls(2), "license": pa.nulls(2)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [row["dropped"] for row in rows(str(tmp_path))] == ["read: empty"] * 2


def test_columns_that_are_not_utf8_or_not_text(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"caf\xe9"], pa.binary())
    as_text = pa.StringArray.from_buffers(2, *broken.buffers()[1:])
    for name, column in [("a", broken), ("b", as_text)]:
        pyarrow.parquet.write_table(pa.table({"text": column}), tmp_path / f"{name}.parquet")
    found = rows(str(tmp_path))
    assert [(row["text"], row["dropped"]) for row in found] == [
        ("good", None),
        ("", "read: not UTF-8"),
    ] * 2
    pyarrow.parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "c.parquet")
    assert [row["text"] for row in rows(str(tmp_path / "c.parquet"))] == ["1", "2"]
    for name, value in {"double": 0.5, "list<element: string>": ["a", "b"]}.items():
        pyarrow.parquet.write_table(pa.table({"text": [value]}), tmp_path / "d.parquet")
        with pytest.raises(UserError, match=rf"d\.parquet: field 'text' holds {name}, not text"):
            rows(str(tmp_path / "d.parquet"))


# Encodings


GERMAN = "Der Löwe ist groß und schön, aber er ist müde und möchte über Nacht schlafen."
JAPANESE = "日本語のテキストです。今日はいい天気ですね。明日も晴れるでしょう。"
ITALIAN = (
    "Ogni individuo ha diritto alla libertà di pensiero, di coscienza e di religione, perché è "
    "libero."
)
KOREAN = (
    "모든 사람은 생명과 신체의 자유와 안전에 대한 권리를 가진다. "
    "어느 누구도 노예상태에 놓여지지 아니한다."
)
RUSSIAN = "Привет, как дела? Сегодня хорошая погода, и мы пойдём гулять в парк."


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (GERMAN.encode("cp1252"), GERMAN, "cp1252"),
        (ITALIAN.encode("cp1252"), ITALIAN, "cp1252"),
        (KOREAN.encode("euc-kr"), KOREAN, "cp949"),
        (RUSSIAN.encode("cp1251"), RUSSIAN, "cp1251"),
        (RUSSIAN.encode("koi8-r"), RUSSIAN, "koi8-r"),
        (JAPANESE.encode("shift-jis"), JAPANESE, "shift_jis"),
        (JAPANESE.encode("iso2022-jp"), JAPANESE, "iso2022_jp"),
        (codecs.BOM_UTF16_LE + GERMAN.encode("utf-16-le"), GERMAN, "utf-16-le"),
        (codecs.BOM_UTF16_BE + GERMAN.encode("utf-16-be"), GERMAN, "utf-16-be"),
        (codecs.BOM_UTF32_LE + GERMAN.encode("utf-32-le"), GERMAN, "utf-32-le"),
        (codecs.BOM_UTF8 + GERMAN.encode(), GERMAN, None),
    ],
)
def test_other_encodings_are_read_and_named(
    tmp_path: Path, data: bytes, text: str, encoding: str | None
) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (row,) = rows(str(tmp_path))
    assert (row["text"], row["encoding"], row["dropped"]) == (text, encoding, None)


@pytest.mark.parametrize("text", [GERMAN, ITALIAN, RUSSIAN, KOREAN])
def test_broken_utf8_is_not_read_as_another_encoding(tmp_path: Path, text: str) -> None:
    data = text.encode()
    first = next(at for at, byte in enumerate(data) if byte >= 0x80)
    (tmp_path / "hole.txt").write_bytes(data[:first] + data[first + 1 :])
    (tmp_path / "end.txt").write_bytes(
        data[: data.rindex(text[-20:].encode())] * 2 + data[: first + 1]
    )
    found = rows(str(tmp_path))
    assert [row["encoding"] for row in found] == ["utf-8, 1 replaced"] * 2
    assert found[0]["text"].endswith("\ufffd") and found[1]["text"].endswith(text[-20:])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    for name in [
        "a.txt",
        "a.html",
        "a.jsonl",
        "a.jsonl.gz",
        "a.parquet",
        "a.warc",
        "a.py",
        "a.jsonl.zst",
    ]:
        (folder / name).write_bytes(data)
    for row in rows(Source("s", [str(folder)])):
        assert bool(row["text"]) == (row["dropped"] is None)
        assert row["dropped"] is None or row["dropped"].startswith("read: ")


def test_pages_with_few_bad_bytes_are_read(tmp_path: Path) -> None:
    page = f"<p>{GERMAN * 20}</p>".encode()
    (tmp_path / "a.html").write_bytes(page + b"\xc3")
    (tmp_path / "b.html").write_bytes(page + b"\xc3 " * 50)
    (tmp_path / "c.txt").write_bytes(GERMAN.encode() * 20 + b"\xc3\xff")
    found = rows(str(tmp_path))
    assert [(row["encoding"], row["dropped"]) for row in found] == [
        ("utf-8, 1 replaced", None),
        (None, "read: not UTF-8"),
        ("utf-8, 1 replaced", None),
    ]
    assert found[0]["text"].startswith(GERMAN)


def test_binary_files_are_dropped(tmp_path: Path) -> None:
    for name, data in {
        "b.png": b"\x89PNG\r\n",
        "d": b"a\0b",
    }.items():
        (tmp_path / name).write_bytes(data)
    tables = [table for part in list_parts(str(tmp_path)) for table in read_part(part)]
    assert funnel(pa.concat_tables(tables)) == {"read: binary": 2}


# Source code


def test_a_tree_of_source_code(tmp_path: Path) -> None:
    mit = (
        "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a "
        "copy of this"
    )
    apache = "Apache License\nVersion 2.0, January 2004"
    for name, text in {
        "one/LICENSE": mit,
        "one/src/main.rs": "fn main() {}\n",
        "one/src/min.min.js": "x",
        "one/vendor/lib.go": "package lib\n",
        "one/gen.go": "// Code generated by tool. DO NOT EDIT.\npackage gen\n",
        "one/talks.py": "# Do not edit the line below without asking. It is about generators.\nx "
        "= 1\n",
        "one/made.py": "# This file was automatically generated by SWIG.\nx = 1\n",
        "one/picture.svg": "<svg/>",
        "one/data.js": "var x = [" + "1," * 2000 + "];\n",
        "two/LICENSE.txt": apache,
        "two/Makefile": "all:\n",
        "two/lib/COPYING": "Our own terms.\n",
        "two/lib/x.py": "x = 1\n",
        "both/LICENSE-MIT": mit,
        "both/LICENSE-GPL": "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007",
        "both/x.py": "x = 1\n",
        "three.py": "x = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {row["id"]: row for row in rows(Source("s", [str(tmp_path)], kind="code"))}
    kept = {
        id: (row["language"], row["license"]) for id, row in found.items() if not row["dropped"]
    }
    assert kept == {
        "one/src/main.rs": ("Rust", "MIT"),
        "one/talks.py": ("Python", "MIT"),
        "two/Makefile": ("Makefile", "Apache-2.0"),
        "two/lib/x.py": ("Python", "LicenseRef-Unrecognised"),
        "both/x.py": ("Python", "GPL-3.0-only AND MIT"),
        "three.py": ("Python", None),
    }
    assert {id: row["dropped"] for id, row in found.items() if row["dropped"]} == {
        "one/LICENSE": "read: no source code, by its name",
        "one/src/min.min.js": "read: generated or minified code",
        "one/vendor/lib.go": "read: vendored code",
        "one/gen.go": "read: generated or minified code",
        "one/made.py": "read: generated or minified code",
        "one/picture.svg": "read: no source code, by its name",
        "one/data.js": "read: generated or minified code",
        "two/LICENSE.txt": "read: no source code, by its name",
        "two/lib/COPYING": "read: no source code, by its name",
        "both/LICENSE-MIT": "read: no source code, by its name",
        "both/LICENSE-GPL": "read: no source code, by its name",
    }
