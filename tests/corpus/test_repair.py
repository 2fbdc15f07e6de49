"""Little that is wrong in a file or row is repaired and counted; what has more of it is no text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from reading import rows
from truth.planted import response

from lit_llm.corpus.config import plain
from lit_llm.corpus.reading.documents import decode
from lit_llm.corpus.reading.repair import repair
from lit_llm.corpus.reading.sources import Source

GERMAN = (
    "Der L\u00f6we ist gro\u00df und sch\u00f6n, aber er ist m\u00fcde und m\u00f6chte schlafen. "
    * 3
)
CHINESE = "\u5b78\u9053\u4e4b\u4eba\uff0c\u4e0d\u53ef\u4e0d\u77e5\u3002" * 40
GB_PAGE = f"<meta charset=gb2312><p>{CHINESE}".encode("gb18030") + b"\xff</p>"
BAD, NULS, HALVES = "bad bytes replaced", "NULs taken out", "half surrogates replaced"


@pytest.mark.parametrize(
    ("text", "found", "repaired", "beyond"),
    [
        ("plain", "plain", None, None),
        ("a\0b", "ab", NULS, None),
        ("\0a\0", "", None, "binary"),
        ("x" * 3000 + "\0\0\0", "x" * 3000, NULS, None),
        ("half \ud83d only", "half \ufffd only", HALVES, None),
        ("\ud83d", "", None, "not UTF-8"),
        ("two \ud83d\ude00", "two \U0001f600", None, None),
        ("\ude00\ud83d swapped", "", None, "not UTF-8"),
        ("caf\udce9", "", None, "not UTF-8"),  # Latin-1, perhaps
        ("caf\udce9 \u20ac", "caf\ufffd \u20ac", BAD, None),
        ("x" * 64 + "\udce2\udc82", "x" * 64 + "\ufffd", BAD, None),  # cut within a character
        ("\0" + "x" * 64 + "\udce9", "x" * 64 + "\ufffd", f"{NULS} and {BAD}", None),
    ],
)
def test_what_is_repaired(text: str, found: str, repaired: str | None, beyond: str | None) -> None:
    assert repair(text) == (found, repaired, beyond)


@pytest.mark.parametrize(
    ("data", "charset", "text", "encoding", "repaired"),
    [
        (GERMAN.encode()[:-1] + b"\xff", None, GERMAN[:-1] + "\ufffd", "utf-8, 1 replaced", BAD),
        (b"plain " * 20 + b"\x81", None, "plain " * 20 + "\ufffd", "utf-8, 1 replaced", BAD),
        (CHINESE.encode("gb18030") + b"\xff", "gb2312", CHINESE + "\ufffd", None, BAD),
        (GB_PAGE, None, GB_PAGE.decode("gb18030", "replace"), None, BAD),
        (b"\xff\xfe" + GERMAN.encode("utf-16-le") + b"x", None, GERMAN + "\ufffd", None, BAD),
        (GERMAN.encode("utf-16-le"), None, GERMAN, "utf-16-le", None),
        (GERMAN.encode("utf-16-be"), None, GERMAN, "utf-16-be", None),
        ((CHINESE + "\n").encode("utf-16-le"), "UTF-16", CHINESE + "\n", "utf-16-le", None),
        ((CHINESE + " \n").encode("utf-16-be"), "utf-16be", CHINESE + " \n", "utf-16-be", None),
        (GERMAN.encode("utf-32-le"), "utf-32", GERMAN, "utf-32-le", None),
        (GERMAN.encode() + b"\0" * 400, None, GERMAN, None, NULS),
        (GERMAN.encode().replace(b"D", b"\0", 1), "utf-8", GERMAN.replace("D", "", 1), None, NULS),
        (GERMAN.encode("cp1252") + b"\0", "cp1252", GERMAN, "cp1252", NULS),
    ],
    ids=range(13),
)  # fmt: skip
def test_files_are_decoded_and_mended(
    data: bytes, charset: str | None, text: str, encoding: str | None, repaired: str | None
) -> None:
    found = decode(data, charset, html=data is GB_PAGE)
    assert (found.text, found.dropped, found.repaired) == (text, None, repaired)
    assert encoding is None or found.encoding == encoding


@pytest.mark.parametrize(
    "data",
    [
        b"a\0b",
        b"\0" * 100,
        b"\x7fELF\0" + bytes(range(256)),
        b"text of a program " * 9 + b"\x01\0",
        b"\0\x01\0\x02" * 99,
        (b"\0" + b"x" * 30) * 9,
    ],
)
def test_what_is_binary_stays_so(data: bytes) -> None:
    assert decode(data)[:2] == ("", "binary")


def test_ascii_is_not_taken_for_utf_16_by_its_header() -> None:
    assert decode(b"text of a page, " * 9 + b"\0.", "utf-16").text == "text of a page, " * 9 + "."
    assert decode(b"text of a page, " * 9, "utf-16").text == "text of a page, " * 9


def test_a_charset_header_of_a_page_without_a_mark(tmp_path: Path) -> None:
    page = f"<html><body><p>{CHINESE}</p></body></html>"
    record = response("http://x.org/", page.encode("utf-16-be"), "text/html; charset=UTF-16")
    (tmp_path / "a.warc").write_bytes(record)
    (row,) = rows(str(tmp_path))
    assert (row["text"], row["encoding"], row["dropped"]) == (CHINESE, "utf-16-be", None)


def test_one_bad_byte_costs_one_character_in_every_format(tmp_path: Path) -> None:
    good, bad = GERMAN.encode(), GERMAN.encode()[:-1] + b"\xff"
    (tmp_path / "a.txt").write_bytes(bad)
    lines = b'{"text": "%s"}\n{"text": "%s"}\n' % (good, bad)
    (tmp_path / "b.jsonl").write_bytes(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "d.json").write_bytes(b"[" + lines.strip().replace(b"\n", b",") + b"]")
    (tmp_path / "e.json").write_bytes(b'{\n"text": "%s"\n}' % bad)
    column = pa.array([good, bad], pa.binary())
    for name, array in [
        ("f", column),
        ("g", pa.StringArray.from_buffers(2, *column.buffers()[1:])),
    ]:
        pyarrow.parquet.write_table(pa.table({"text": array}), tmp_path / f"{name}.parquet")
    (tmp_path / "h.html").write_bytes(b"<p>%s</p>" % bad)
    found = rows(str(tmp_path))
    assert [row["dropped"] for row in found] == [None] * 13
    assert {row["text"].strip() for row in found} == {GERMAN.strip(), GERMAN[:-1] + "\ufffd"}
    assert [row["repaired"] for row in found].count(BAD) == 8


def test_what_was_repaired_is_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_llm.corpus.build import build

    texts = ["a\0b", "half \ud83d only", "good text", "c\0d"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    config = plain([Source("s", [str(tmp_path / "a.jsonl")])], None, 260, 0.0)
    corpus = build(config, tmp_path / "out")
    assert corpus.datacard["read"]["repaired"] == {NULS: 2, HALVES: 1}
    said = "3 of 4 documents are repaired: 2 NULs taken out, 1 half surrogates replaced"
    assert said in capsys.readouterr().err
    page = (tmp_path / "out" / "datacard.html").read_text()
    assert "2 documents: NULs taken out." in page and "1 document: half" in page
