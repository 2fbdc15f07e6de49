"""``lit_llm corpus build`` on what is broken: one line that names it, exit status 2 or a count, and
nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_kills import content, finished
from test_pipeline import messy, prose, rows  # noqa: F401 (messy is a fixture)
from truth.planted import response

from lit_llm.cli import main
from lit_llm.corpus.build import WORK
from lit_llm.corpus.output.folder import Corpus

Build = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def build(capsys: pytest.CaptureFixture[str]) -> Build:
    """``build(source, output, *args)``: the exit status, and the lines on stderr."""

    def run(source: Path, output: Path, *args: str) -> tuple[int, list[str]]:
        given = [
            "--input",
            str(source),
            "--output",
            str(output),
            *([] if "--tokenizer" in args else ["--vocab_size", "280"]),
            "--workers",
            "1",
            *args,
        ]
        status = main(["corpus", "build", *given])
        said = capsys.readouterr().err.splitlines()
        return status, said[: next((i for i, s in enumerate(said) if s.startswith("card: ")), None)]

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(prose(random.Random(number)))
    return folder


@pytest.fixture
def forbidding(left: Path) -> Iterator[Path]:
    """A folder of a user for whom permissions hold; for root, who this test may be, they do not.

    What a build imports has been imported for ``left``: the other user need not be able to.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


# The disk


def test_a_disk_that_fills_at_any_point(build: Build, messy: Path, small_disk: Path) -> None:
    """The corpus there stays, what is done stays, and with room the build goes on to what it would
    have been."""
    parts = ("--part_bytes", "1500")
    assert build(messy, small_disk / "whole", *parts)[0] == 0
    expected = content(small_disk / "whole")
    used = shutil.disk_usage(small_disk).used
    shutil.rmtree(small_disk / "whole")
    output, filler = small_disk / "corpus", small_disk / "filler"
    stopped = set()
    for share in (0.02, 0.2, 0.4, 0.6, 0.8, 0.95):
        shutil.rmtree(output, ignore_errors=True)
        assert build(messy, output, "--keep_work", "false", "--dedup", "null")[0] == 0
        older = content(output)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - int(share * used)))
        status, said = build(messy, output, *parts)
        assert status == 2 and said[-1].startswith(
            f"lit_llm corpus: {output}: the disk is full; the corpus needs"
        )
        assert all(line.startswith("corpus: ") for line in said[:-1])
        assert content(Corpus.load(output).path) == older
        assert not [*output.rglob("*.partial"), *output.glob(".next")]
        done = finished(output)
        stopped.add(len(done))
        filler.unlink()
        assert build(messy, output, *parts)[0] == 0
        assert content(output) == expected and done.items() <= finished(output).items()
    assert len(stopped) > 3


# What earlier builds left


def damaged(output: Path, how: str) -> None:
    """Cut the largest file of a stage's output, change a byte of it, or empty it."""
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    file = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[100] ^= (
        1  # text or tokens: parquet's description of its pages, at the end, has no checksum
    )
    file.unlink()
    file.write_bytes({"cut": data[: len(data) // 2], "changed": data, "empty": b""}[how])


@pytest.fixture(scope="module")
def left(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that a build with kept work left."""
    folder = tmp_path_factory.mktemp("left") / "corpus"
    args = ["--input", str(messy), "--output", str(folder), "--vocab_size", "280", "--workers", "1"]
    assert main(["corpus", "build", *args, "--part_bytes", "1500"]) == 0
    return folder


STAGES = [
    "clean",
    "sign",
    "dedup",
    "select",
    "tokenizer",
    "encode",
    "documents",
    "dropped",
    "shards",
]


@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damaged_work_is_made_again(
    build: Build,
    messy: Path,
    left: Path,
    tmp_path: Path,
    how: str,
) -> None:
    output = tmp_path / "corpus"
    output.mkdir()
    stages = [
        stage for stage in STAGES if (stage, how) != ("tokenizer", "changed")
    ]  # that is valid JSON still
    shutil.copytree(left / WORK, output / WORK)
    broken = [min((output / WORK / stage).iterdir()) for stage in stages]
    for path in broken:
        damaged(path, how)
    status, said = build(messy, output, "--part_bytes", "1500")
    assert status == 0 and content(output) == content(left)
    assert [line for line in said if line.endswith("damaged; it is made again")] == [
        f"corpus: {path}: damaged; it is made again" for path in broken
    ]
    ran = Corpus.load(output).datacard["build"]["tasks_run"]
    assert ran == {
        **{stage: 0 for stage in STAGES if stage in ran},
        **{stage: 1 for stage in stages},
    }


@pytest.mark.parametrize("command", [["explain", "30.txt"], ["remove", "--ids", "30.txt"]])
def test_damaged_files_of_a_corpus_are_named(
    left: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    corpus = shutil.copytree(left, tmp_path / "corpus")
    file = corpus / "documents" / "part-00003.parquet"
    damaged(file, "changed")
    assert main(["corpus", command[0], str(corpus), *command[1:]]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"lit_llm corpus: {file}: damaged (") and "build the corpus again" in line
    )


# Sources


def cut_gzip(file: Path) -> None:
    lines = "".join(
        json.dumps({"text": prose(random.Random(f"row {i}"))}) + "\n" for i in range(900)
    )
    file.write_bytes(gzip.compress(lines.encode())[:-900])


def bad_parquet(file: Path, cut: bool) -> None:
    texts = [f"{i} {prose(random.Random(f'parquet {i}'), 300)}" for i in range(20)]
    pq.write_table(pa.table({"text": texts}), file, compression="zstd")
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(
        36
    )  # what a page says of itself: without it nothing of the row group is found
    file.write_bytes(data[:-100] if cut else data)


def bad_warc(file: Path, cut: bool) -> None:
    pages = [
        response(f"http://x.org/{i}", f"<p>{prose(random.Random(f'page {i}'))}</p>".encode())
        for i in range(5)
    ]
    records = [gzip.compress(page) for page in pages] if file.suffix == ".gz" else pages
    if not cut:
        records[2] = random.Random(0).randbytes(len(records[2]))
    data = b"".join(records)
    file.write_bytes(data[:-120] if cut else data)


BAD_FILES = {
    "rows.jsonl.gz": (cut_gzip, "unreadable: the compressed file is cut"),
    "cut.parquet": (lambda file: bad_parquet(file, True), "unreadable: "),
    "hole.parquet": (lambda file: bad_parquet(file, False), "unreadable: "),
    "cut.warc": (lambda file: bad_warc(file, True), "cut record"),
    "hole.warc": (lambda file: bad_warc(file, False), "damaged record"),
    "cut.warc.gz": (lambda file: bad_warc(file, True), "damaged record"),
    "hole.warc.gz": (lambda file: bad_warc(file, False), "damaged record"),
    "lines.jsonl": (lambda file: file.write_text('{"text": "good"}\n{"text": '
                                                 '"cut'), "not valid JSON"),
    "bytes.txt": (lambda file: file.write_bytes(b"caf\xe9 " * 9 + b"\xff\x81\x00"[:2]),
        "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_counted_and_named(
    build: Build, texts: Path, tmp_path: Path, name: str
) -> None:
    write, reason = BAD_FILES[name]
    write(texts / name)
    output = tmp_path / "corpus"
    status, said = build(texts, output)
    assert status == 0
    corpus = Corpus.load(output)
    bad = [row for row in rows(corpus, "dropped").values() if row["stage"] == "read"]
    assert all(row["path"] == str(texts / name) for row in bad) and bad[-1]["reason"].startswith(
        reason
    )
    read = corpus.datacard["read"]["documents"]
    named = ", ".join(f"{row['id']} ({row['reason']})" for row in bad)
    line = f"{len(bad)} of {read} documents are damaged: {named}"
    assert len(bad) <= 2 and f"corpus: {line}; dropped/ lists all of them" in said
    assert {f"{number}.txt" for number in range(4)} <= set(rows(corpus, "documents"))
    assert read - len(bad) - 4 >= {"rows.jsonl.gz": 600}.get(name, 4 if ".warc" in name else 0)
    status, said = build(texts, tmp_path / "strict", "--max_bad_fraction", "0")
    assert status == 2
    assert (
        said[-1]
        == f"lit_llm corpus: max_bad_fraction: {line}, more than 0; fix the sources or raise it"
    )


def test_what_is_no_use_is_not_damaged(build: Build, texts: Path, tmp_path: Path) -> None:
    """Empty and binary files, pages that were not there, files that are no source code."""
    (texts / "empty.txt").write_bytes(b"")
    (texts / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" * 9)
    (texts / "null.jsonl").write_text('{"text": null}\n{"text": 5}\n')
    (texts / "a.warc").write_bytes(response("http://x.org", b"<p>x</p>", status="404 Not Found"))
    status, said = build(texts, tmp_path / "corpus", "--max_bad_fraction", "0")
    assert status == 0 and not any("damaged" in line for line in said)
    dropped = Corpus.load(tmp_path / "corpus").datacard["dropped"]
    assert sum(count for reason, count in dropped.items() if reason.startswith("read: ")) == 5


def test_many_bad_files_are_counted(build: Build, texts: Path, tmp_path: Path) -> None:
    for number in range(5):
        (texts / f"bad{number}.jsonl").write_text("{\n")
    status, said = build(texts, tmp_path / "corpus", "--max_bad_fraction", "0.5")
    assert status == 2
    assert (
        "5 of 9 documents are damaged: bad0.jsonl#0 (not valid JSON), bad1.jsonl#0 (not valid "
        "JSON), " in said[-1]
    )
    assert (
        "bad2.jsonl#0 (not valid JSON), ..., more than 0.5; fix the sources or raise it" in said[-1]
    )
    assert (
        build(texts, tmp_path / "corpus", "--max_bad_fraction", "0.6")[0] == 0
    )  # goes on from there


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_a_text_field_that_is_not_there(
    build: Build, texts: Path, tmp_path: Path, kind: str
) -> None:
    file = texts / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"prose": ["x"]}), file)
    else:
        line = b'{"prose": "x"}\n'
        file.write_bytes(gzip.compress(line) if kind.endswith("gz") else line)
    status, said = build(texts, tmp_path / "corpus")
    assert status == 2 and f"{file}" in said[-1] and "no field 'text'" in said[-1]
    name = "NAME" if kind == "parquet" else "prose"
    assert said[-1].endswith(
        f"the fields there are 'prose'; name the one with the text: --text_field {name}, "
        f"or give --exclude '{file.name}'"
    )
    sources = json.dumps([{"name": "a", "paths": [str(file)], "text_field": "prose"}])
    assert build(texts / "*.txt", tmp_path / "corpus", "--sources", sources)[0] == 0


def test_what_may_not_be_read(build: Build, forbidding: Path) -> None:
    source, output = forbidding / "in", forbidding / "corpus"
    (source / "below").mkdir(parents=True)
    for name in ("a", "b", "below/c"):
        (source / f"{name}.txt").write_text(prose(random.Random(name)))
    (source / "a.txt").chmod(0)
    status, said = build(source, output)
    assert status == 0
    assert (
        "corpus: 1 of 3 documents are damaged: a.txt (could not be read: Permission denied); "
        "dropped/ lists all of them" in said
    )
    status, said = build(source, output)  # tried again each time
    assert status == 0 and "Permission denied" in "".join(said)
    (source / "a.txt").chmod(0o600)  # which does not change the time of the last change
    status, said = build(source, output)
    assert status == 0 and "damaged" not in "".join(said)
    assert Corpus.load(output).datacard["documents"] == 3
    (source / "below").chmod(0)
    status, said = build(source, output)
    assert (status, said) == (
        2,
        [f"lit_llm corpus: --input: {source}/below cannot be listed (Permission denied)"],
    )
    status, said = build(source / "below" / "c.txt", output)
    assert status == 2 and said[-1].endswith("cannot be listed (Permission denied)")
    source.chmod(0o700)
    (source / "below").chmod(0o700)
    output.chmod(0o500)
    status, said = build(source, output, "--vocab_size", "281")
    assert status == 2 and said[-1].startswith(
        f"lit_llm corpus: {output}: cannot be written ({output}/.next: Permission denied)"
    )
    settings = forbidding / "corpus.yaml"
    settings.write_text("workers: 1\n")
    settings.chmod(0)
    status, said = build(source, output, "--config", str(settings))
    assert (status, said) == (
        2,
        [f"lit_llm corpus: {settings}: cannot be read (Permission denied)"],
    )


# Settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_bad_fration: 0.1", "unknown key max_bad_fration: did you mean max_bad_fraction?"),
        ("dedup:\n  treshold: 0.5", "unknown key dedup.treshold: did you mean dedup.threshold?"),
        ("sources:\n- name: a\n  path: x", "unknown key path: did you mean sources.paths?"),
        ("workers: many", "workers=many: must be a whole number"),
        ("part_bytes: 0", "part_bytes=0: must be from 1 to"),
        ("sources: [a", "line 2: broken YAML"),
        ("a: \0", "broken YAML (unacceptable character #x0000"),
        ("- a", "holds no settings"),
        ("opt_out:\n  files: [nowhere]", "nowhere"),
        ("evaluations:\n  files: [nowhere.jsonl]", "nowhere.jsonl: cannot be read (No such file "
                                                   "or directory)"),
    ],
)  # fmt: skip
def test_mistakes_in_a_config_file(
    build: Build, texts: Path, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "corpus.yaml"
    file.write_text(content + "\n")
    status, said = build(texts, tmp_path / "corpus", "--config", str(file))
    assert status == 2 and message in said[-1] and said[-1].startswith("lit_llm corpus: ")
    assert all(line.startswith("corpus: ") for line in said[:-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer.json: no such file"),
        ("", "tokenizer.json: not a tokenizer.json ("),
        (
            '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", '
            '"b"]]}}',
            "not a tokenizer",
        ),
        ("\xff", "tokenizer.json: not a tokenizer.json ("),
    ],
)
def test_a_damaged_tokenizer(
    build: Build, texts: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    if content is not None:
        (folder / "tokenizer.json").write_text(content, encoding="latin-1")
    status, said = build(texts, tmp_path / "corpus", "--tokenizer", str(folder))
    assert status == 2 and len(said) == 1 and message in said[0]
