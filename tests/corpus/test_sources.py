from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from reading import documents_of

from lit_llm.corpus.reading.documents import Document
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.sources import Source, as_sources, list_files
from lit_llm.errors import UserError


def write_rows(file: Path, rows: list[dict]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def test_folders_are_walked_and_hidden_files_left_out(tmp_path: Path) -> None:
    for name in ["b.txt", "a.md", "deep/er/c.py", ".hidden.txt", ".git/config"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\r\n", newline="")
    documents = documents_of(str(tmp_path))
    assert [document.id for document in documents] == ["a.md", "b.txt", "deep/er/c.py"]
    assert documents[2].text == "text of deep/er/c.py\r\n"
    assert documents[2].path == str(tmp_path / "deep/er/c.py")


def test_links_to_folders_are_followed_once_and_broken_links_are_told(tmp_path: Path) -> None:
    for name in ("top/a.txt", "top/in/b.txt", "far/c.txt", "far/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name, target in {
        "top/far": "../far",
        "top/far-again": "../far",
        "far/deep/back": "../../top",  # a loop
        "top/in/up": "../..",  # all of it once more
        "top/in-again": "in",
        "top/gone.txt": "nowhere",
    }.items():
        (tmp_path / name).symlink_to(target)
    told = {found.id: found.dropped for found in documents_of(str(tmp_path / "top"))}
    assert told == {
        "a.txt": None,
        "far/c.txt": None,
        "far/deep/d.txt": None,
        "gone.txt": "could not be read: No such file or directory",
        "in/b.txt": None,
    }
    (gone,) = documents_of(f"{tmp_path}/top/g*.txt")
    assert (gone.id, gone.dropped) == ("gone.txt", told["gone.txt"])


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    for name in ("texts[v2]", "textsv"):
        (tmp_path / name / "a*").mkdir(parents=True)
        (tmp_path / name / "a*" / "b.txt").write_text("b")
        (tmp_path / name / "c[1].txt").write_text("c")
    inside = f"{tmp_path}/texts[v2]"
    for pattern, names in (
        (f"{inside}/*.txt", ["c[1].txt"]),
        (f"{inside}/**/*.txt", ["a*/b.txt", "c[1].txt"]),
        (f"{inside}/a*/*", ["b.txt"]),
        (f"{inside}/c[1].txt", ["c[1].txt"]),
        (f"{tmp_path}/texts*/c[[]1].txt", ["texts[v2]/c[1].txt", "textsv/c[1].txt"]),
    ):
        assert [file.id for file in list_files(pattern)] == names


def test_globs_give_paths_relative_to_their_fixed_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["data/x/one.txt", "data/y/two.txt", "data/y/two.md", "data/three.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    assert [file.id for file in list_files("data/**/*.txt")] == [
        "three.txt",
        "x/one.txt",
        "y/two.txt",
    ]
    assert [file.id for file in list_files("data/*")] == [
        "three.txt",
        "x/one.txt",
        "y/two.md",
        "y/two.txt",
    ]
    assert [file.id for file in list_files(str(tmp_path / "data/y/*.md"))] == ["two.md"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [file.id for file in list_files("~/data/three.txt")] == ["three.txt"]


def test_names_are_made_from_patterns_and_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["wiki/a.txt", "other/wiki/b.txt", "my books!.txt", "part-0.jsonl", "x.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "t"}')
    monkeypatch.chdir(tmp_path)
    sources = [
        "wiki",
        "other/wiki/*.txt",
        "my books!.txt",
        "part-*.jsonl",
        "../" + tmp_path.name + "/x.txt",
    ]
    assert [file.source for file in list_files(sources)] == [
        "wiki",
        "wiki-2",
        "my-books",
        "part",
        "x",
    ]
    named = {"a": "wiki", "b": ["x.txt", "x.txt", "*.txt"]}
    assert [(file.source, file.id) for file in list_files(named)] == [
        ("a", "a.txt"),
        ("b", "my books!.txt"),
        ("b", "x.txt"),
    ]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"../up": "stdlib"}, "cannot name a folder"),
        ({"": "stdlib"}, "cannot name a folder"),
        ({"x": "stdlib", "x-tests": "stdlib"}, "two sources are named 'x-tests'"),
        ([], "empty"),
        ({"x": []}, "empty"),
        ("nothing/*.txt", r"'nothing/\*\.txt' matches no file"),
        ("missing.txt", "matches no file"),
        (["nosuch://x/y"], "nosuch"),
    ],
)
def test_mistaken_sources_say_what_is_wrong(sources, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_files(sources)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a b"}, "'a b' cannot name a folder"),
        ({"paths": []}, "s is empty"),
        ({"kind": "pdf"}, "s.kind is 'pdf'; choose from auto, text, html"),
        ({"weight": -1.0}, "data.sources: s: weight=-1: must be from 0 to"),
        ({"max_line_bytes": 0}, "s: max_line_bytes=0: must be from 1"),
    ],
)
def test_mistaken_fields_say_what_is_wrong(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Source(**{"name": "s", "paths": "x", **fields})


def test_sources_and_patterns_may_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    made = as_sources(
        [Source("law", str(tmp_path), license="MIT"), str(tmp_path / "*.txt"), "stdlib"]
    )
    assert [source.name for source in made] == ["law", tmp_path.name.strip("-._"), "stdlib"]
    assert made[0].paths == (str(tmp_path),)
    assert [file.id for file in list_files(made[0])] == ["a.txt"]
    parts = list_parts(Source("py", "stdlib", license="Python-2.0"))
    assert {(part.source.name, part.source.license) for part in parts} == {
        ("py", "Python-2.0"),
        ("py-tests", "Python-2.0"),
    }


def test_rows_keep_their_ids(tmp_path: Path) -> None:
    rows = [{"id": "mine", "text": "one"}, {"text": "two"}, {"id": 7, "text": "three"}]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl.gz", rows)
    second = (
        len(json.dumps(rows[0])) + 1
    )  # the byte at which the row begins; in a compressed file its number
    expected = [("mine", "one"), (f"a.jsonl#{second}", "two"), ("7", "three")]
    expected += [("mine", "one"), ("b.jsonl.gz#2", "two"), ("7", "three")]
    assert [(document.id, document.text) for document in documents_of(str(tmp_path))] == expected


def test_parquet_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"prose": ["one", None, "three"], "other": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    documents = documents_of(str(tmp_path), text_field="prose")
    assert [(d.id, d.text, d.dropped) for d in documents] == [
        ("a.parquet#1", "one", None),
        ("a.parquet#2", "", "empty"),
        ("a.parquet#3", "three", None),
    ]
    with pytest.raises(UserError, match=r"a\.parquet: no field 'text'.*'prose', 'other'"):
        documents_of(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not one")
    (broken,) = documents_of(str(tmp_path))
    assert broken.id == "a.parquet" and broken.dropped.startswith(
        "unreadable: not a readable parquet file"
    )


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("a.parquet", "pyarrow.parquet"),
        ("a.jsonl.zst", "zstandard"),
        ("a.warc", "fastwarc.warc"),
        ("a.html", "resiliparse.extract.html2text"),
    ],
)
def test_a_format_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"<p>text</p>")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"{name}: .* needs {package}; pip install 'lit_llm\[corpus\]'"
    ):
        documents_of(str(tmp_path))


def test_messy_files_are_dropped_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a_binary.bin").write_bytes(b"\x89PNG\x00\x01")
    (tmp_path / "b_latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "c_empty.txt").write_bytes(b"")
    (tmp_path / "d_blank.txt").write_bytes(b" \n\t\n")
    (tmp_path / "e_bom.txt").write_bytes(b"\xef\xbb\xbfgood")
    (tmp_path / "f_dangling.txt").symlink_to(tmp_path / "gone")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/g_\xff.txt")).write_text("odd name")
    documents = documents_of(str(tmp_path))
    assert [document.dropped for document in documents] == [
        "binary",
        "not UTF-8",
        "empty",
        "empty",
        None,
        "could not be read: No such file or directory",
        None,
    ]
    assert documents[4].text == "good"
    assert documents[6].id == "g_?.txt"


def test_messy_rows_are_dropped_with_a_reason(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b"",
        b'{"text": "caf\xe9"}',
        b'{"text": null}',
        b'{"text": ["a", "list"]}',
        b'{"text": "nul \\u0000 inside"}',
        b'{"text": "half \\ud800 pair", "id": "half \\udc00"}',
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(lines))
    documents = documents_of(str(tmp_path))
    reasons = [None, "not UTF-8", "empty", "not a string", None, None, None]
    assert [document.dropped for document in documents] == reasons
    kept = [document.text for document in documents if not document.dropped]
    assert kept == ["first", "nul  inside", "half \ufffd pair", "last"]
    repaired = [None] * 4 + ["NULs taken out", "half surrogates replaced", None]
    assert [document.repaired for document in documents] == repaired
    assert all(document.id.encode() for document in documents)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "a"}\n{"text": \n', "not valid JSON"),
        (b'{"text": "a"}\n["text"]\n', "not a JSON object"),
        (b'{"text": "a"}\n{"body": "b"}\n', "no field 'text'"),
        (b'{"text": "a"}\n' + b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_row_is_dropped_and_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    documents = documents_of(str(tmp_path / "a.jsonl"))
    assert [(d.id, d.text, d.dropped) for d in documents] == [
        ("a.jsonl#0", "a", None),
        ("a.jsonl#14", "", reason),
    ]


def test_a_file_without_the_field_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n\n{"prose": "b", "n": 1}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:3: no field 'text'.*'prose', 'n'"):
        documents_of(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_cut_gzip_names_the_file(tmp_path: Path, keep: float) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 10_000)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(whole[: int(len(whole) * keep)] or b"not gzip at all")
    *kept, last = documents_of(str(file))
    assert last.id == "a.jsonl.gz" and last.dropped.startswith("unreadable: ")
    assert [document.text for document in kept] == ["a"] * len(kept)


def test_the_standard_library_is_two_sources() -> None:
    files = {file.id: file for file in list_files("stdlib")}
    assert files["argparse.py"].source == "stdlib"
    assert files["pydoc_data/topics.py"].source == "stdlib"
    assert {file.source for file in files.values()} == {"stdlib", "stdlib-tests"}
    assert not any("site-packages" in name for name in files)
    sizes = {name: file.size for name, file in files.items()}
    assert min(sizes.values()) >= 200
    assert [name for name, size in sizes.items() if size > 400_000] == ["pydoc_data/topics.py"]
    tests = [name for name, file in files.items() if file.source == "stdlib-tests"]
    assert all("test" in name for name in tests)
    assert {file.source for file in list_files({"py": "stdlib"})} == {"py", "py-tests"}


def test_documents_come_in_the_same_order_however_the_disk_lists_them(tmp_path: Path) -> None:
    for name in ["zebra", "apple", "mango"]:
        (tmp_path / f"{name}.txt").write_text(name)
    documents = documents_of(str(tmp_path))
    assert [document.text for document in documents] == ["apple", "mango", "zebra"]
    assert isinstance(documents[0], Document) and documents[0].source == tmp_path.name.strip("-._")
