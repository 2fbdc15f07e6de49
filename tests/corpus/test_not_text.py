"""What is read as something else: rich text, front matter, hidden files, Mac OS Roman."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from reading import rows

from lit_llm.corpus.reading.documents import decode
from lit_llm.corpus.reading.files import hidden
from lit_llm.corpus.reading.parts import list_parts
from lit_llm.corpus.reading.read import is_broken, read_part
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError
from lit_llm.io.git_lfs import SAID

GERMAN = "Die Datei für die Übung enthält schöne Wörter, größere Zahlen und müde Käfer. " * 3
FRENCH = "L'été dernier, où les élèves étaient déjà là, le garçon a reçu une lettre à Noël. " * 3


def documents(folder: Path) -> dict[str, tuple[str, str | None]]:
    return {
        row["id"]: (row["text"], row["dropped"])
        for part in list_parts(str(folder))
        for table in read_part(part)
        for row in table.to_pylist()
    }


def test_rich_text_is_dropped_and_front_matter_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.rtf").write_bytes(rb"{\rtf1\ansi\deff0 {\fonttbl} Hello}")
    (tmp_path / "b.md").write_text("---\ntitle: x\ntags: [a]\n---\n\n# Head\ntext\n\n---\n\nmore\n")
    (tmp_path / "c.md").write_text("---\ntitle: only this\n---\n")
    (tmp_path / "d.md").write_text("a rule follows\n\n---\n\ntext\n\n---\n")
    (tmp_path / "e.txt").write_text("---\nkept: as it is\n---\ntext\n")
    found = documents(tmp_path)
    assert found["a.rtf"] == ("", "read: rich text (RTF): save it as plain text")
    assert found["b.md"] == ("\n# Head\ntext\n\n---\n\nmore\n", None)
    assert found["c.md"] == ("", "read: empty")
    assert found["d.md"][0].startswith("a rule") and found["e.txt"][0].startswith("---")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.json", "a.html"])
def test_pointers_of_git_lfs_are_damage(tmp_path: Path, name: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 99999\n"
    (tmp_path / name).write_text(pointer)
    (row,) = rows(str(tmp_path))
    assert row["dropped"] == f"read: unreadable: {SAID}" and is_broken(row["dropped"])
    (tmp_path / "b.txt").write_text(pointer + "This is what a pointer looks like. " * 40)
    assert rows(str(tmp_path / "b.txt"))[0]["dropped"] is None


def test_formats_that_need_another_program_are_named(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    for name, data, reason in (
        ("a.pdf", b"%PDF-1.7 text", "PDF: save its text"),
        ("a.docx", b"PK\3\4abc", "ZIP archive, or .docx, .epub: unpack it, or save its text"),
        ("a.tar.gz", gzip.compress(packed.getvalue()), "tar archive: unpack it"),
    ):
        (tmp_path / name).write_bytes(data)
        (row,) = rows(str(tmp_path / name))
        assert row["dropped"] == f"read: {reason}" and not is_broken(row["dropped"])


def test_an_arrow_file_is_a_mistake(tmp_path: Path) -> None:
    """`Dataset.save_to_disk` writes them, with settings beside them that are no text."""
    (tmp_path / "state.json").write_text('{"_data_files": []}')
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(UserError, match=r"arrow: Arrow files are not read; save the dataset as pa"):
        rows(str(tmp_path))
    assert len(rows(Source("s", str(tmp_path), exclude="*.arrow"))) == 1


def test_hidden_files_are_counted(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", ".git/x", ".git/y", "in/.c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert hidden(str(tmp_path)) == 3
    assert hidden(str(tmp_path / "a.txt")) == hidden("s3://bucket/x") == 0


@pytest.mark.parametrize("text", [GERMAN, FRENCH])
@pytest.mark.parametrize("encoding", ["mac_roman", "cp1252", "latin-1", "cp850", "cp437"])
def test_mac_roman_and_what_it_is_not(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text


def test_spanish_and_turkish_of_dos() -> None:
    spanish = (
        "La ciudad tiene una larga historia. Allí fluye el río, y mañana el niño irá también. "
    )
    turkish = "Bu şehrin uzun bir tarihi var ve burada birçok insan var. Müzede çok resim de var. "
    assert decode((spanish * 2).encode("cp850"))[0] == spanish * 2
    assert decode((turkish * 2).encode("cp857"))[0] == turkish * 2


@pytest.mark.parametrize(
    "text",
    [
        "这座城市有着悠久的历史。",
        "这座城市有着悠久的历史, 一共有3条河。\nAnd one line.\n",
        "この町には長い歴史があります。",
        "이 도시는 오랜 역사를 가지고 있으며 많은 사람들이 살고 있습니다.",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_of_east_asia_needs_no_mark(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text
    for other in ("gb18030", "euc_jp", "cp949", "utf-8"):
        assert decode(text.encode(other, "ignore") * 9)[3] not in ("utf-16-le", "utf-16-be")


def test_cells_of_a_notebook_are_its_text(tmp_path: Path) -> None:
    cells = [
        {
            "cell_type": "markdown",
            "source": ["# Head\n", "Half \ud83d of a pair, in a line of some length."],
        },
        {"cell_type": "code", "source": "x = 1\nx", "outputs": [{"data": {"image/png": "iVBOR"}}]},
        {"cell_type": "raw", "source": []},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    (tmp_path / "b.ipynb").write_text(json.dumps({"cells": [], "nbformat": 4}))
    (tmp_path / "c.ipynb").write_text("no notebook")
    found = documents(tmp_path)
    head = "# Head\nHalf \ufffd of a pair, in a line of some length."
    assert found["a.ipynb"] == (f"{head}\n\n```\nx = 1\nx\n```", None)
    assert found["b.ipynb"] == ("", "read: empty")
    assert found["c.ipynb"] == ("no notebook", None)
