"""Parts are the same every time, wherever files lie, and new when anything changes."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pickle
from pathlib import Path

import pytest
from reading import rows
from truth.planted import response

from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.read import read_part
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError


def test_parts_are_the_same_every_time_and_new_when_something_changes(tmp_path: Path) -> None:
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text("text " * 10)
    source = Source("s", [str(tmp_path)])
    parts = list_parts(source, 100)
    assert [len(part.files) for part in parts] == [2, 2, 2, 2, 1] and parts == list_parts(
        source, 100
    )
    keys = [part.key for part in parts]
    assert len(set(keys)) == 5 and [part.key for part in pickle.loads(pickle.dumps(parts))] == keys
    assert [part.key for part in list_parts(dataclasses.replace(source, weight=2.0), 100)] == keys
    for name, value in {
        "language": "en",
        "text_field": "body",
        "kind": "text",
        "max_line_bytes": 9,
    }.items():
        other = list_parts(dataclasses.replace(source, **{name: value}), 100)
        assert not {part.key for part in other} & set(keys)
    (tmp_path / "3.txt").write_text("text " * 9 + "tent ")
    assert [a.key == b for a, b in zip(list_parts(source, 100), keys, strict=True)] == [
        True,
        False,
        True,
        True,
        True,
    ]


def test_files_behind_urls(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, data in {"a.txt": b"a", "deep/b.txt": b"b", ".hidden": b"h"}.items():
        memory.pipe(f"/readers/{name}", data)
    lines_ = "".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(100)).encode()
    memory.pipe("/readers/deep/c.jsonl", lines_)
    memory.pipe("/readers/d.jsonl.gz", gzip.compress(lines_))
    memory.pipe("/readers/e.warc.gz", gzip.compress(response("http://x.org", b"<p>Page</p>")))
    found = rows("memory://readers", 200)
    assert len(found) == 2 + 100 + 100 + 1 and not any(row["dropped"] for row in found)
    assert {row["id"] for row in found} >= {"a.txt", "deep/b.txt", "d.jsonl.gz#1", "deep/c.jsonl#0"}
    assert [row["text"] for row in rows("memory://readers/*.txt")] == ["a"]
    assert [
        row["text"] for row in rows({"x": ["memory://readers/**/*.txt", "memory://readers/a.txt"]})
    ] == ["a", "b"]
    before = list_parts("memory://readers/a.txt")
    memory.pipe("/readers/a.txt", b"b")
    assert before[0].key != list_parts("memory://readers/a.txt")[0].key
    (tmp_path / "l.txt").write_text("local")
    assert [row["text"] for row in rows(f"file://{tmp_path}/l.txt")] == ["local"]
    with pytest.raises(UserError, match="matches no file"):
        list_parts("memory://readers/none")
    with pytest.raises(UserError, match="nosuch"):
        list_parts("nosuch://x/y")


class ConnectError(Exception):
    """What the package of a store raises: no OSError."""


def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    def fails(*args: object, **kwargs: object) -> None:
        raise ConnectError("no such host")

    names = ("a.txt", "b.jsonl", "c.parquet", "d.warc")
    for name in names:
        fsspec.filesystem("memory").pipe(f"/away/{name}", b"x" * 2000)
    monkeypatch.setattr(MemoryFileSystem, "_open", fails)
    found = rows("memory://away", 100)
    assert [(row["id"], row["dropped"]) for row in found] == [
        (name, "read: could not be read: no such host") for name in names
    ]
    monkeypatch.setattr(MemoryFileSystem, "find", fails)
    with pytest.raises(UserError, match=r"memory://away cannot be listed \(no such host\)"):
        list_parts("memory://away")


def test_folders_with_the_same_names_in_them_are_told_apart(tmp_path: Path) -> None:
    for name in ["one/a.txt", "two/a.txt"]:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    found = rows({"s": [str(tmp_path / "one"), str(tmp_path / "two")]})
    assert [(row["id"], row["text"]) for row in found] == [
        ("one/a.txt", "one/a.txt"),
        ("two/a.txt", "two/a.txt"),
    ]


def test_a_file_that_is_gone_is_a_row(tmp_path: Path) -> None:
    for name in ["a.txt", "b.jsonl", "c.parquet", "d.warc"]:
        (tmp_path / name).write_text("x")
    parts = list_parts(str(tmp_path))
    for file in tmp_path.iterdir():
        file.unlink()
    found = [row for part in parts for table in read_part(part) for row in table.to_pylist()]
    assert [(row["id"], row["dropped"]) for row in found] == [
        (name, "read: could not be read: No such file or directory")
        for name in ["a.txt", "b.jsonl", "c.parquet", "d.warc"]
    ]
