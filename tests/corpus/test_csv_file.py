"""CSV and TSV files are rows by their first line; and columns of one name."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from reading import rows

from lit_llm.corpus.reading.read import is_broken
from lit_llm.corpus.reading.rows import parquet_rows
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError

CONTENT = 'id,text,license\r\na,"one, ""two""\nlines",MIT\r\n\r\nb,\u00e9t\u00e9 three,\r\n'


def read(folder: Path, **known: object) -> list[tuple]:
    found = rows(Source("s", [str(folder)], **known))
    return [(row["id"], row["text"], row["license"], row["dropped"]) for row in found]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CONTENT.encode()),
        ("a.csv", codecs.BOM_UTF8 + b"\r\n" + CONTENT.encode()),
        ("a.CSV", CONTENT.encode("utf-16")),
        ("a.csv.gz", gzip.compress(CONTENT.encode())),
        ("a.tsv", CONTENT.replace(",", "\t").encode()),
        ("a.csv", CONTENT.replace(",", ";").replace("one;", "one,").encode()),
        ("a.csv", CONTENT.replace(",", "|").replace("one|", "one,").encode()),
        ("a.csv", (CONTENT + "x" * 100 + ",\u00e8 \u00e0\r\n").encode("cp1252")),
    ],
    ids=range(8),
)
def test_a_row_is_a_document(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    found = [(id, text.replace("\t", ","), *rest) for id, text, *rest in read(tmp_path)][:2]
    assert found == [
        ("a", 'one, "two"\nlines', "MIT", None),
        ("b", "\u00e9t\u00e9 three", None, None),
    ]


def test_rows_that_are_not_read_are_told(tmp_path: Path) -> None:
    lines = [
        "title,text",  # 1
        "a,one",
        "b,two, three",  # a comma that is not quoted
        "c",
        "",
        'd,"quo"te',
        "e," + "x" * 200,
        "f,\u00e9\u00e9 bad \udce9 byte",
        "g,",
        'h,"no end',
        "i,behind it",
    ]
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    found = read(tmp_path, max_line_bytes=100)
    assert [(id.partition("#")[2], text, dropped) for id, text, _, dropped in found] == [
        ("2", "one", None),
        ("3", "", "read: not valid CSV"),
        ("4", "", "read: not valid CSV"),
        ("6", "", "read: not valid CSV"),
        ("7", "", "read: row too long: above max_line_bytes=100"),
        ("8", "\u00e9\u00e9 bad \ufffd byte", None),
        ("9", "", "read: empty"),
        ("10", "", "read: not valid CSV"),
        ("11", "behind it", None),
    ]
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200 + "\nlast\n")
    with pytest.MonkeyPatch.context() as patch:  # so that no line of it is whole
        patch.setattr("lit_llm.corpus.reading.rows._BLOCK", 20)
        assert [(text, place) for place, text, *_ in read(tmp_path, max_line_bytes=100)] == [
            ("", "a.csv#2"),
            ("last", "a.csv#3"),
        ]
    assert is_broken("read: not valid CSV")


def test_no_such_column_is_told_and_text_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,prose\nx,y\n")
    with pytest.raises(UserError, match=r"a\.csv: no field 'text'.*'name', 'prose';.*; kind: text"):
        read(tmp_path)
    assert read(tmp_path, text_field="prose")[0][1] == "y"
    assert read(tmp_path, kind="text")[0][1] == "name,prose\nx,y\n"
    (tmp_path / "a.csv").write_text("\n")
    assert read(tmp_path)[0][3] == "read: empty"


def test_a_long_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_llm.corpus.reading.formats.csv_file._HEAD", 7)
    monkeypatch.setattr("lit_llm.corpus.reading.rows._BLOCK", 5)
    (tmp_path / "a.csv").write_text('text\n"\u00e9\n\u00e9"\n' + "\u00e9t\u00e9\n" * 50)
    assert [text for _, text, *_ in read(tmp_path)] == ["\u00e9\n\u00e9"] + ["\u00e9t\u00e9"] * 50


def test_two_columns_of_one_name_are_refused_and_others_do_no_harm(tmp_path: Path) -> None:
    arrays = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pyarrow.parquet.write_table(
        pa.Table.from_arrays(arrays, names=["text", "x", "x"]), tmp_path / "a.parquet"
    )
    assert read(tmp_path)[0][1] == "a"
    file = tmp_path / "a.parquet"
    told = r"a\.parquet: 2 columns are named '{}'; rename all but one"
    with pytest.raises(UserError, match=told.format("x")):
        list(parquet_rows(file))
    for names in (["text", "x", "text"], ["text", "url", "url"]):
        pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, names=names), file)
        with pytest.raises(UserError, match=told.format(names[2])):
            read(tmp_path)
    file.unlink()
    (tmp_path / "b.csv").write_text("text,text\na,b\n")
    with pytest.raises(UserError, match="2 columns are named 'text'"):
        read(tmp_path)


def test_a_header_beyond_the_limit_drops_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_llm.corpus.reading.rows._BLOCK", 50)
    (tmp_path / "a.csv").write_text("title,text," + "x" * 300 + "\na,one\n")
    ((_, text, _, dropped),) = read(tmp_path, max_line_bytes=200)
    assert text == "" and "200" in dropped


def test_a_quote_that_nobody_closed_takes_its_line_alone(tmp_path: Path) -> None:
    good = [f"row {number} of the table" for number in range(30_000)]
    lines = ["text\tid", *(f"{text}\tr{n}" for n, text in enumerate(good))]
    for number in (5, 700, 29_000):
        lines[number] = '"' + lines[number]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    found = read(tmp_path)
    assert len(found) == 30_000
    assert [i + 1 for i, row in enumerate(found) if row[3] == "read: not valid CSV"] == [
        5,
        700,
        29_000,
    ]
    assert [text for _, text, *_ in found if text] == [
        text for number, text in enumerate(good, start=1) if number not in (5, 700, 29_000)
    ]


def test_excel_names_the_delimiter_before_the_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\ntext;id\none, two;a\n")
    assert read(tmp_path) == [("a", "one, two", None, None)]


def test_an_encoding_that_is_not_known_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nGr\xfcn\n")
    assert [row[3] for row in read(tmp_path)] == ["read: not UTF-8"]
