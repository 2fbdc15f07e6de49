"""``lit_llm corpus``: what users type, and what a killed removal leaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litdata import StreamingDataset
from litdata.streaming.item_loader import TokensLoader
from test_pipeline import checksums, config, messy, rows  # noqa: F401 (messy is a fixture)
from truth.planted import sentence

from lit_llm.cli import main
from lit_llm.corpus.build import build
from lit_llm.corpus.commands.explain import explain
from lit_llm.corpus.commands.remove import Request, remove
from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.output import shards
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import ShardWriter, locate, read_tokens, without
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError
from lit_llm.settings.presets import config_folders


@pytest.fixture(scope="module")
def built(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several files and chunks."""
    folder = tmp_path_factory.mktemp("built") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK_TOKENS", 1000)
        build(config(messy, part_bytes=1500, validation_fraction=0.2), folder, progress=False)
    return folder


@pytest.fixture
def corpus(built: Path, tmp_path: Path) -> Corpus:
    """A copy to change."""
    return Corpus.load(shutil.copytree(built, tmp_path / "corpus"))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> (inode, time of change) of what is not work."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*") if path.is_file() and ".work" not in path.parts
    }  # fmt: skip


def check(corpus: Corpus) -> None:
    """Documents, shards and card say the same."""
    table = pq.read_table(corpus.path / "documents").to_pylist()
    for split, folders in (("train", corpus.train_dirs), ("validation", corpus.validation_dirs)):
        texts = [row["text"] for row in table if row["split"] == split]
        stream = read_tokens(folders["messy"])
        assert corpus.tokenizer.decode(stream).split("<|endoftext|>")[1:] == texts
        assert corpus.datacard["splits"][split]["messy"]["documents"] == len(texts)
    assert corpus.datacard["documents"] == len(table)
    assert sum(part["documents"] for part in corpus.datacard["languages"].values()) == len(table)


def test_build_by_the_command_line(
    messy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = [
        "corpus",
        "build",
        "--input",
        str(messy / "*.txt"),
        "--input",
        str(messy / "rows.jsonl"),
    ]
    assert (
        main(
            [
                *args,
                "--output",
                str(tmp_path / "c"),
                "--dedup.threshold",
                "null",
                "--validation_fraction=0",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'c'}\n" and "corpus: clean: " in err and " documents, " in err
    built = Corpus.load(tmp_path / "c")
    assert set(built.train_dirs) == {"messy", "rows"} and "near" in rows(built, "documents")
    assert 260 < built.tokenizer.vocab_size < 32_768  # as many as the text supports


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["build", "--output", "c"], "--input: missing"),
        (["build", "--input", "here"], "--output: missing"),
        (
            ["build", "--input", "no/such*.txt", "--output", "c"],
            r"'no/such\*\.txt' matches no file",
        ),
        (
            ["build", "--input", "here", "--output", "c", "--dedup.treshold", "1"],
            "did you mean dedup.threshold",
        ),
        (
            ["build", "--input", "here", "--output", "c", "--language.keep", "[x]"],
            "'x' is not a language that CLD2 detects",
        ),
        (
            ["build", "--input", "here", "--output", "c", "--language.keep", "[no, en]"],
            r"language\.keep=False: must be text; YAML takes no.*put the word in quotes",
        ),
        (["build", "--config", "corpus/wob", "--output", "c"], "did you mean corpus/web"),
        (
            ["build", "--input", "here", "--output", "c", "--runner", "slurm"],
            "runner=slurm: must be local or ray",
        ),
        (["build", "--input", "here/a", "here/b", "--output", "c"], "here/b: .*pattern.*in quotes"),
        (["build", "--input", "here/a.jsonl", "--output", "c"], r"a\.jsonl:1: no field 'text'"),
        (["sweep"], "no command 'sweep'; commands: build, report, explain, remove"),
        (["report", "here"], r"here/datacard\.json: no such file"),
        (["explain", "here", "id"], r"here/datacard\.json: no such file"),
        (["remove", "here"], "say which documents"),
        (["remove", "here", "--matching", "("], "not a regular expression"),
        (["remove", "here", "--ids_file", "nowhere"], "nowhere: cannot be read"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.jsonl").write_text('{"body": 1}')
    monkeypatch.chdir(tmp_path)
    assert main(["corpus", *args]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert re.search(message, lines[0]), lines[0]


def test_print_config_is_a_config(
    messy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["corpus", "build", "--config", "corpus/web", "--print_config"])
    assert done.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert (
        main(
            [
                "corpus",
                "build",
                "--config",
                str(file),
                "--input",
                str(messy),
                "--output",
                str(tmp_path / "c"),
            ]
        )
        == 0
    )
    dropped = rows(Corpus.load(tmp_path / "c"), "dropped")
    assert dropped["junk"]["stage"] in ("identify_language", "gopher_quality", "c4_quality")


@pytest.mark.parametrize(
    "preset", sorted((config_folders()[0] / "corpus").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_preset_builds(messy: Path, tmp_path: Path, preset: Path) -> None:
    small = tmp_path / "code.py"
    small.write_text(
        "# SPDX-License-Identifier: MIT\n" + "def double(x):\n    return x + x\n\n\n" * 9
    )
    args = ["corpus", "build", "--config", f"corpus/{preset.stem}", "--output", str(tmp_path / "c")]
    given = ["--input", str(messy if preset.stem == "web" else small)]
    if preset.stem == "stdlib":
        given = ["--sources", json.dumps([{"name": "stdlib", "paths": [str(small)]}])]
    assert main([*args, *given, "--vocab_size", "270"]) == 0
    assert Corpus.load(tmp_path / "c").tokens("train") > 100


def test_explain_finds_the_document_in_its_shard(corpus: Corpus) -> None:
    for name in ("00.txt", "17.txt", "personal"):
        [row] = explain(corpus.path, name)
        chunk = np.fromfile(corpus.path / row["shard"], np.uint16)[6:]
        tokens = chunk[row["position"] : row["position"] + row["tokens"]]
        text = rows(corpus, "documents")[name]["text"]
        assert tokens[0] == corpus.tokenizer.eos_id and text.startswith(
            corpus.tokenizer.decode(tokens[1:])
        )
        assert row["file"].startswith("documents/part-") and row["path"].startswith("/")
    assert explain(corpus.path, "personal")[0]["steps"]["redact_pii"] == "changed the text"
    assert explain(corpus.path, "03.txt")[0]["copies"] == ["exact"]


def test_explain_says_why_not(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "explain", str(corpus.path), "near"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("near: dropped by near_dedup\n") and "duplicate_of     04.txt" in said
    assert main(["corpus", "explain", str(corpus.path), "spam", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (
        list(row["steps"].items())[-1][0] == "gopher_repetition"
        and row["steps"]["normalize"] == "kept"
    )
    with pytest.raises(UserError, match="no document has the id 'nobody'"):
        explain(corpus.path, "nobody")


def test_remove_rewrites_only_what_holds_the_documents(corpus: Corpus) -> None:
    places = {name: explain(corpus.path, name)[0] for name in ("03.txt", "21.txt")}
    before, content = files(corpus.path), corpus.content
    assert remove(corpus.path, Request(frozenset(places))) == 2
    after = files(corpus.path)
    changed = {name for name in before if before[name] != after.get(name)} | set(after) - set(
        before
    )
    touched = {row["file"] for row in places.values()} | {row["shard"] for row in places.values()}
    indices = {f"{Path(row['shard']).parent}/index.json" for row in places.values()}
    spilled = {name for name in changed if "/chunk-" in name} - touched
    assert touched | indices | {"removed.jsonl", "datacard.json", "datacard.html"} <= changed
    assert len(spilled) <= 2  # a document may end in the next chunk
    assert not (corpus.path / ".work").exists()
    left = Corpus.load(corpus.path)
    check(left)
    assert left.datacard["dropped"]["removed: by request"] == 2 and "03.txt" not in rows(
        left, "documents"
    )
    assert left.content != content
    for folder in (*left.train_dirs.values(), *left.validation_dirs.values()):
        dataset = StreamingDataset(
            str(folder), item_loader=TokensLoader(block_size=64), shuffle=False
        )
        assert len(dataset) > 0 and len(dataset[0]) == 64
    log = [json.loads(line) for line in (corpus.path / "removed.jsonl").read_text().splitlines()]
    assert {line["id_sha256"] for line in log} == {
        hashlib.sha256(name.encode()).hexdigest() for name in places
    }
    again = files(corpus.path)
    assert remove(corpus.path, Request(frozenset(places))) == 0 and files(corpus.path) == again


def test_removed_documents_stay_out_of_the_next_build(corpus: Corpus, messy: Path) -> None:
    remove(corpus.path, Request(frozenset({"03.txt"})), "letter of 3 May")
    built = build(
        config(messy, part_bytes=1500, validation_fraction=0.1), corpus.path, progress=False
    )
    assert "03.txt" not in rows(built, "documents") and "exact" not in rows(built, "documents")
    assert (
        rows(built, "dropped")["03.txt"]["stage"] == "removed"
        and rows(built, "dropped")["03.txt"]["example"] is None
    )
    assert "letter of 3 May" in str(explain(built.path, "03.txt"))


def test_remove_by_domain_and_by_pattern(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(corpus.path)
    # An address within a host is not the host: the others there have not been asked for.
    assert main(["corpus", "remove", folder, "--domain", "example.org/a"]) == 2
    assert "give the host alone, 'example.org'" in capsys.readouterr().err
    assert main(["corpus", "remove", folder, "--domain", "WWW.example.org:443"]) == 0
    assert main(["corpus", "remove", folder, "--matching", "(?i)CAFÉ"]) == 0
    (tmp_path / "ids").write_text("00.txt\n01.txt\n")
    assert (
        main(["corpus", "remove", folder, "--ids_file", str(tmp_path / "ids"), "--ids", "02.txt"])
        == 0
    )
    assert (
        capsys.readouterr().out.split()
        == " ".join(f"{folder}: {n} documents removed" for n in (1, 1, 3)).split()
    )
    left = Corpus.load(corpus.path)
    check(left)
    assert not {"page", "mojibake", "00.txt", "01.txt", "02.txt"} & set(rows(left, "documents"))
    assert not any("café" in file.read_text().lower() for file in left.path.glob("*.json*"))


def test_examples_of_removed_documents_go(corpus: Corpus) -> None:
    assert "buy cheap" in (corpus.path / "datacard.json").read_text()
    assert remove(corpus.path, Request(frozenset({"spam"}))) == 0
    assert rows(Corpus.load(corpus.path), "dropped")["spam"]["example"] is None
    assert "buy cheap" not in (corpus.path / "datacard.json").read_text()


def everything_said(folder: Path) -> str:
    """All of a corpus folder's texts and examples, and its card and page."""
    said = [file.read_text() for file in folder.glob("datacard.*")]
    for name in ("documents", "dropped"):
        said.append(str(pq.read_table(folder / name).to_pylist()))
    return "\n".join(said)


@pytest.mark.parametrize("asked", ["03.txt", "exact"])
def test_a_removed_text_is_not_shown_by_its_copies_either(corpus: Corpus, asked: str) -> None:
    text = rows(corpus, "documents")["03.txt"]["text"]
    beginning = text[:40].strip()
    assert rows(corpus, "dropped")["exact"]["example"].startswith(beginning)
    assert remove(corpus.path, Request(frozenset({asked}))) == 1
    assert beginning not in everything_said(corpus.path)
    check(Corpus.load(corpus.path))


def test_near_copies_that_stay_are_told(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "remove", str(corpus.path), "--ids", "near"]) == 0
    told = "near was a near copy of 04.txt, which stays; remove that too if it should go"
    assert told in capsys.readouterr().out
    assert rows(Corpus.load(corpus.path), "dropped")["near"]["example"] is None


def numbered(count: int) -> list[str]:
    """Texts of which none is like another."""
    draw = random.Random(7)
    return [" ".join(sentence(draw, 60)).capitalize() + f" The end of {i}." for i in range(count)]


def write_lines(file: Path, texts: list[str]) -> None:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_a_removed_text_stays_out_when_its_place_in_the_file_changes(tmp_path: Path) -> None:
    """Ids are places of lines; one more line at the beginning gives each document another id."""
    file, output = tmp_path / "lines.jsonl", tmp_path / "corpus"
    texts = numbered(30)
    spam = "Buy cheap pills here today. " * 30
    nearly = texts[4].replace("The end of", "The very end of")
    write_lines(file, [*texts, texts[3], nearly, spam])
    settings = CorpusConfig(
        sources=[Source("lines", str(file))], vocab_size=270, validation_fraction=0.1
    )
    built = build(settings, output, progress=False)
    kept = {row["text"].strip(): name for name, row in rows(built, "documents").items()}
    dropped = rows(built, "dropped")
    [pills] = [name for name, row in dropped.items() if "pills" in (row["example"] or "")]
    asked = frozenset({kept[texts[3]], kept[texts[4]], pills})
    assert remove(output, Request(asked)) == 2
    write_lines(file, ["A new first line. " + numbered(31)[-1], *texts, texts[3], nearly, spam])
    again = build(settings, output, progress=False)
    names = set(rows(again, "documents")) | set(rows(again, "dropped"))
    assert not asked & names
    said = everything_said(output)
    for gone in (texts[3], texts[4], "Buy cheap pills"):
        assert gone[:40] not in said
    assert again.datacard["dropped"]["removed: by request"] == 2
    assert len(rows(again, "documents")) == 29


def test_the_end_of_a_build_says_why_documents_were_dropped(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c"
    build(config(messy), folder)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"corpus: dropped most often: \d+ by \w+ \([^()]+\)(, \d+ by \w+ \([^()]+\)){1,2}; "
        + re.escape(f"{folder / 'dropped'} has all dropped documents with their reasons, ")
        + re.escape(f"{folder / 'datacard.html'} has examples"),
        last,
    )
    named = re.findall(r"(\d+) by (\w+) \(([^()]+)\)", last)
    counts = Corpus.load(folder).datacard["dropped"]
    assert [counts[f"{stage}: {why}"] for _, stage, why in named] == [int(n) for n, *_ in named]
    others = [count for reason, count in counts.items() if not reason.endswith(": duplicate")]
    assert sorted(others, reverse=True)[:3] == [int(n) for n, *_ in named]


def test_not_everything_can_be_removed(corpus: Corpus) -> None:
    before = files(corpus.path)
    with pytest.raises(UserError, match="no document for training would be left"):
        remove(corpus.path, Request(matching="."))
    assert {name: files(corpus.path)[name] for name in before} == before


class Stopped(BaseException):
    """As a kill, nothing catches it."""


@pytest.mark.parametrize("after", range(0, 12))
def test_a_removal_that_was_killed(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Stopped at any rename, and with nothing tidied up, the corpus is the old or the new one."""
    old, steps, real = checksums(corpus), [0], os.replace
    names = frozenset({"03.txt", "21.txt"})

    def stopping(source: Any, target: Any) -> None:
        steps[0] += 1
        if steps[0] > after:
            raise Stopped
        real(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    stopped = False
    try:
        remove(corpus.path, Request(names))
    except Stopped:
        stopped = True
    monkeypatch.undo()
    found = Corpus.load(corpus.path)
    check(found)
    assert stopped or after > 8
    gone = not names & set(rows(found, "documents"))
    assert gone == (checksums(found) != old)
    assert remove(corpus.path, Request(names)) == (0 if gone else 2)
    check(Corpus.load(corpus.path))


def test_report_writes_the_page_again(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    page = corpus.path / "datacard.html"
    before = page.read_text()
    page.unlink()
    assert main(["corpus", "report", str(corpus.path)]) == 0
    assert capsys.readouterr().out == f"{page}\n" and page.read_text() == before
    assert "near_dedup" in before and "http" not in before.replace("http-equiv", "").replace(
        "https://news", ""
    )


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(1, 50),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_taken_out_of_a_dataset(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], gone: set[int], chunk: int
) -> None:
    folder, target = (
        tmp_path_factory.mktemp("shards") / "a",
        tmp_path_factory.mktemp("without") / "b",
    )
    before, shards.CHUNK_TOKENS = shards.CHUNK_TOKENS, chunk
    try:
        writer = ShardWriter(folder, np.dtype(np.uint16))
        documents = [np.full(length, number, np.uint16) for number, length in enumerate(lengths)]
        for document in documents:
            writer.append(document)
        writer.close()
    finally:
        shards.CHUNK_TOKENS = before
    starts = np.cumsum([0, *lengths])
    spans = [(int(starts[i]), int(starts[i + 1])) for i in sorted(gone) if i < len(lengths)]
    for name in without(folder, spans, target):
        (folder / name).unlink()
    for file in target.iterdir():
        os.replace(file, folder / file.name)
    left = [document for number, document in enumerate(documents) if number not in gone]
    if left:
        assert (read_tokens(folder) == np.concatenate(left)).all()
        name, at = locate(folder, sum(map(len, left)) - 1)
        assert np.fromfile(folder / name, np.uint16)[6 + at] == left[-1][-1]
    assert (
        shards.shards_digest(folder)
        == hashlib.sha256(b"".join(d.tobytes() for d in left)).hexdigest()
    )
