"""Rows whose text is in another field, files that are left out, and messages in the words of the
verb that runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_llm.cli import main
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.read import read_part
from lit_llm.corpus.reading.sources import Source, list_files
from lit_llm.corpus.reading.text_field import _told
from lit_llm.errors import UserError

ROWS = [{"id": str(n), "body": f"text number {n}"} for n in range(6)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def texts(path: Path, target_bytes: int = 2**20) -> list[str]:
    parts = list_parts(str(path), target_bytes)
    return [
        text for part in parts for table in read_part(part) for text in table["text"].to_pylist()
    ]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_usual_names_are_found_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    _told.clear()
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif kind == "csv":
        file.write_text("id;body\n" + "".join(f"{row['id']};{row['body']}\n" for row in ROWS))
    elif kind == "json":
        file.write_text(json.dumps(ROWS))
    else:
        file.write_bytes(gzip.compress(LINES.encode()) if kind == "jsonl.gz" else LINES.encode())
    assert texts(file) == [row["body"] for row in ROWS]
    assert f"{file}: no field 'text': the text is read from 'body'" in capsys.readouterr().err


def test_each_file_by_its_first_row_also_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"content": "a", "document": "no"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "content": "no"}\n{"content": "dropped"}\n')
    (tmp_path / "c.jsonl").write_text(LINES)
    found = texts(tmp_path, target_bytes=64)
    assert found == ["a", "b", "", *(row["body"] for row in ROWS)]


def test_a_field_that_is_named_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    source = Source("a", str(tmp_path / "a.jsonl"), text_field="prose")
    with pytest.raises(UserError, match=r"no field 'prose'.*data\.text_field=body"):
        [table for part in list_parts(source) for table in read_part(part)]


def test_exclude(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "old/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    kept = [file.id for file in list_files(Source("x", str(tmp_path), exclude=["b.*", "old/*"]))]
    assert kept == ["a.txt"]
    with pytest.raises(UserError, match="exclude leaves out all of its 3 files"):
        list_files(Source("x", str(tmp_path), exclude="*.txt"))


def test_one_message_mends_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("some plain text to keep, and some more of it\n" * 9)
    (folder / "rows.jsonl").write_text('{"title": "x", "prose": "a longer text"}\n' * 3)
    build = ["corpus", "build", "--input", str(folder), "--output", str(tmp_path / "c"),
             "--vocab_size", "262", "--dedup", "null", "--gopher_repetition", "null",
             "--gopher_quality", "null", "--validation_fraction", "0"]  # fmt: skip
    assert main(build) == 2
    said = capsys.readouterr().err
    assert "--text_field prose, or give --exclude 'rows.jsonl'" in said and "data." not in said
    assert main([*build, "--exclude", "rows.jsonl"]) == 0
    assert "1 files are left out by exclude" in capsys.readouterr().err
    assert main([*build, "--text_field", "prose"]) == 0
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"sources": [{"name": "in", "paths": [str(folder)]}]}))
    assert main(["corpus", "build", "--config", str(config), "--output", str(tmp_path / "d")]) == 2
    said = capsys.readouterr().err
    assert "write below its source's paths text_field: prose, or exclude: 'rows.jsonl'" in said
    args = ["corpus", "build", "--config", str(config), "--output", "d", "--text_field", "prose"]
    assert main(args) == 2
    assert "--text_field goes with --input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["tokenizer", "train", "--files", "no/*.txt"], "--files: 'no/*.txt' matches no file"),
        (["tokenizer", "train", "--files", "rows.jsonl"], "--text_field prose"),
        (["corpus", "build", "--output", "c", "--input", "no"], "--input: 'no' matches no file"),
        (["generate", "x", "--file", "no.txt"], "--file: no.txt is not readable"),
        (["tokenizer", "train", "--corpus", "c", "--text_field", "a"], "--text_field goes with"),
    ],
)
def test_settings_are_called_as_the_verb_calls_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prose": "a text"}\n')
    assert main(args) == 2
    error = capsys.readouterr().err
    assert said in error and "data." not in error
