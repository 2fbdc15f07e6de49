""".json files: arrays and lines of rows, and what is no rows."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from reading import rows

from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf \n"])
def test_an_array_is_a_document_a_row(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    content = [{"text": "one\u2028é", "id": "a", "url": "http://x.org"}, "two", 3, {"text": 4}]
    data = mark + json.dumps(content, indent=indent, ensure_ascii=False).encode()
    (tmp_path / "a.json").write_bytes(data)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(data.replace(b'"a"', b'"b"')))
    found = rows(str(tmp_path))
    assert [(row["id"], row["text"], row["dropped"]) for row in found[:4]] == [
        ("a", "one\u2028é", None),
        ("a.json#2", "two", None),
        ("a.json#3", "", "read: not a JSON object"),
        ("a.json#4", "", found[3]["dropped"]),
    ]
    assert found[0]["url"] == "http://x.org" and found[3]["dropped"]
    assert [row["text"] for row in found[4:]] == [row["text"] for row in found[:4]]


def test_what_is_behind_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"},\n {"text": "two"')
    found = rows(str(tmp_path))
    assert [(row["text"], row["dropped"]) for row in found] == [
        ("one", None),
        ("", "read: not valid JSON"),
    ]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ('{"text": "alone"}', ["alone"]),
        ('{\n "text": "alone",\n "n": 1\n}\n', ["alone"]),
        ('{"settings": [1, 2]}\n', ['{"settings": [1, 2]}\n']),
        ('{\n "settings": [1, 2]\n}\n', ['{\n "settings": [1, 2]\n}\n']),
        ('{"v": 1, "data": [{"text": "one"}, {"text": "two"}]}', ["one", "two"]),
        ('{\n"data": [{"text": "one"}, 3]\n}', ["one", ""]),
        (
            '{"a": [{"text": "one"}], "b": [{"text": "two"}]}',
            ['{"a": [{"text": "one"}], "b": [{"text": "two"}]}'],
        ),
        ("[1, 2]\n", ["[1, 2]\n"]),
        ("[]", []),
    ],
)
def test_lines_objects_and_what_is_no_rows(tmp_path: Path, content: str, texts: list[str]) -> None:
    (tmp_path / "a.json").write_text(content)
    assert [row["text"] for row in rows(str(tmp_path))] == texts


def test_no_such_field_is_told_and_text_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"prose": "x"}]')
    with pytest.raises(UserError, match=r"element 1: no field 'text'.*'prose'"):
        rows(str(tmp_path))
    found = rows(Source("s", [str(tmp_path)], kind="text"))
    assert [row["text"] for row in found] == ['[{"prose": "x"}]']


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("target", [40, 10**6])
def test_an_array_that_is_called_jsonl(tmp_path: Path, indent: int | None, target: int) -> None:
    texts = ["one", "two", "three"]
    content = json.dumps([{"text": text} for text in texts], indent=indent)
    (tmp_path / "a.jsonl").write_text(content + "\n")
    assert [row["text"] for row in rows(str(tmp_path), target)] == texts
    # Rows that are arrays are rows.
    (tmp_path / "a.jsonl").write_text('["a", "b"]\n["c"]\n')
    assert {row["dropped"] for row in rows(str(tmp_path), target)} == {"read: not a JSON object"}


def test_rows_of_instructions(tmp_path: Path) -> None:
    from lit_llm.data.rows.row_files import read_rows

    content = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]
    for name in ("a.json", "b.jsonl"):  # the second is an array under the other name
        (tmp_path / name).write_text(json.dumps(content, indent=1))
        assert list(read_rows(str(tmp_path / name))) == [
            (f"{tmp_path / name}:{number}", row) for number, row in enumerate(content, 1)
        ]
    (tmp_path / "a.json").write_text('[{"a": 1}, 2]')
    with pytest.raises(UserError, match="element 2 of the array is not a JSON object"):
        list(read_rows(str(tmp_path / "a.json")))


def test_an_array_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_llm.corpus.reading import rows as module

    content = [{"a": "é\u2028x" * 9}, "s", [1, [2]], 12345, None, True, -1.5e3, "x" * 50]
    data = b"\xef\xbb\xbf\n" + json.dumps(content, ensure_ascii=False).encode()
    for size in range(1, 12):
        monkeypatch.setattr(module, "_BLOCK", size)
        assert list(module.array_elements(io.BytesIO(data), 1000)) == content
    with pytest.raises(ValueError, match="above max_line_bytes=30"):
        list(module.array_elements(io.BytesIO(data), 30))
    for broken in (b"[1, 2", b"[1 2]", b"[1,]", b"[", b'["\xff"]', b"[1] [2]", b'[{"a":}]'):
        with pytest.raises(ValueError, match=r"not valid JSON|not UTF-8"):
            list(module.array_elements(io.BytesIO(broken), 1000))
