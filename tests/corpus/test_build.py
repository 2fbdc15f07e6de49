from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lit_llm.cli import main
from lit_llm.corpus.build import build_corpus, cached_corpus, fingerprint
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import ShardWriter, read_tokens
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

SETTINGS = {"vocab_size": 300, "progress": False}


def make_texts(folder: Path, count: int = 60, seed: int = 0) -> Path:
    rng = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "naïve", "北京", "    return", "x = 1\n"]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:03}.txt").write_text(
            f"number {i}\n" + " ".join(rng.choices(words, k=60)), encoding="utf-8"
        )
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def share(doc_id: str) -> float:
    return int(hashlib.sha256(doc_id.encode()).hexdigest(), 16) / 2**256


def test_every_document_is_in_the_shards_once_and_in_its_split(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    (texts / "copy-of-3.txt").write_bytes((texts / "003.txt").read_bytes())
    (texts / "bad.txt").write_bytes(b"\xff\xfe")
    corpus = build_corpus(
        tmp_path / "corpus", sources=str(texts), validation_fraction=0.2, **SETTINGS
    )
    tokenizer = corpus.tokenizer
    lines = pq.read_table(corpus.path / "documents").to_pylist()
    dropped = {
        row["id"]: row["reason"] for row in pq.read_table(corpus.path / "dropped").to_pylist()
    }
    assert [line["id"] for line in lines] == sorted(
        {file.name for file in texts.iterdir()} - set(dropped)
    )
    for split, folders in [("train", corpus.train_dirs), ("validation", corpus.validation_dirs)]:
        stream = read_tokens(folders["texts"])
        documents = tokenizer.decode(stream).split("<|endoftext|>")
        assert documents.pop(0) == ""
        listed = [line for line in lines if line["split"] == split]
        assert documents == [(texts / line["id"]).read_text(encoding="utf-8") for line in listed]
        assert {line["id"] for line in listed} == {
            line["id"] for line in lines if (share(line["id"]) < 0.2) == (split == "validation")
        }
        counts = corpus.datacard["splits"][split]["texts"]
        assert counts["documents"] == len(documents) > 3
        assert (
            counts["bytes"]
            == sum(len(text.encode()) for text in documents)
            == sum(x["bytes"] for x in listed)
        )
        assert (
            counts["tokens"]
            == corpus.tokens(split)
            == len(stream)
            == sum(x["tokens"] for x in listed)
        )
        assert tokenizer.token_bytes()[stream].sum() == counts["bytes"]
    assert corpus.validation_bytes == {
        "texts": corpus.datacard["splits"]["validation"]["texts"]["bytes"]
    }
    assert dropped == {"bad.txt": "not UTF-8", "copy-of-3.txt": "duplicate"}
    card = corpus.datacard
    assert (card["documents"], card["duplicates"]) == (60, 1)
    assert card["dropped"] == {"exact_dedup: duplicate": 1, "read: not UTF-8": 1}
    first = next(line for line in lines if line["id"] == "000.txt")
    assert first["sha256"] == hashlib.sha256((texts / "000.txt").read_bytes()).hexdigest()


def test_the_tokenizer_has_seen_only_training_text(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    corpus = build_corpus(
        tmp_path / "corpus", sources=str(texts), validation_fraction=0.2, **SETTINGS
    )
    training = [file.read_text() for file in sorted(texts.iterdir()) if share(file.name) >= 0.2]
    assert corpus.tokenizer.fingerprint() == Tokenizer.train(training, 300).fingerprint()


def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    first = files_of(build_corpus(tmp_path / "a", sources=str(texts), **SETTINGS).path)
    second = files_of(build_corpus(tmp_path / "b", sources=str(texts), **SETTINGS).path)
    for name in ("datacard.json", "datacard.html"):  # hold the date
        first.pop(name), second.pop(name)
    assert first == second and any(name.endswith(".bin") for name in first)


def test_sources_become_folders_and_share_one_tokenizer(tmp_path: Path) -> None:
    sources = {
        "one": str(make_texts(tmp_path / "1")),
        "two": str(make_texts(tmp_path / "2", seed=1)),
    }
    corpus = build_corpus(tmp_path / "corpus", sources=sources, validation_fraction=0.2, **SETTINGS)
    assert set(corpus.train_dirs) == set(corpus.validation_dirs) == {"one", "two"}
    again = build_corpus(
        tmp_path / "again",
        sources=sources,
        tokenizer=str(corpus.path / "tokenizer"),
        validation_fraction=0.2,
    )
    assert (read_tokens(again.train_dirs["two"]) == read_tokens(corpus.train_dirs["two"])).all()
    assert again.datacard["tokenizer"]["trained"] is False


@pytest.mark.parametrize("name", ["0.txt", "5.txt", "12.txt"])
def test_two_documents_make_two_splits(tmp_path: Path, name: str) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / name).write_text("one " * 200)
    (texts / "other.txt").write_text("two " * 200)
    for fraction in (0.001, 0.5, 0.999):
        corpus = build_corpus(
            tmp_path / str(fraction),
            sources=str(texts),
            vocab_size=261,
            validation_fraction=fraction,
            progress=False,
        )
        assert all(part["texts"]["documents"] == 1 for part in corpus.datacard["splits"].values())


def test_a_single_document_gives_its_tail_to_validation(tmp_path: Path) -> None:
    text = "".join(f"line {i} of the only book\n" for i in range(400))
    (tmp_path / "book.txt").write_text(text)
    corpus = build_corpus(
        tmp_path / "c",
        sources=str(tmp_path / "book.txt"),
        vocab_size=280,
        validation_fraction=0.1,
        progress=False,
    )
    head, tail = (
        corpus.tokenizer.decode(read_tokens(folders["book"])[1:])
        for folders in (corpus.train_dirs, corpus.validation_dirs)
    )
    assert head + tail == text and head.endswith("\n")
    assert 0.08 < len(tail) / len(text) < 0.12


def test_no_validation_when_none_is_asked_for(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts", 1)
    corpus = build_corpus(
        tmp_path / "c", sources=str(texts), vocab_size=270, validation_fraction=0.0, progress=False
    )
    assert (
        corpus.validation_dirs == {}
        and corpus.tokens("validation") == 0
        and corpus.tokens("train") > 0
    )


def test_reuse_follows_sources_and_settings(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    first, reused = cached_corpus(tmp_path / "cache", sources=str(texts), **SETTINGS)
    assert not reused and first.path.name == f"texts-{first.fingerprint[:12]}"
    stamp = (first.path / "datacard.json").stat().st_mtime_ns
    second, reused = cached_corpus(tmp_path / "cache", sources=str(texts), **SETTINGS)
    assert (
        reused
        and second.path == first.path
        and (second.path / "datacard.json").stat().st_mtime_ns == stamp
    )
    assert not cached_corpus(
        tmp_path / "cache", sources=str(texts), vocab_size=301, progress=False
    )[1]
    (texts / "new.txt").write_text("something new")
    third, reused = cached_corpus(tmp_path / "cache", sources=str(texts), **SETTINGS)
    assert not reused and third.path != first.path


def test_the_fingerprint_sees_what_matters(tmp_path: Path) -> None:
    texts = str(make_texts(tmp_path / "texts"))
    base = {"tokenizer": None, "vocab_size": 300, "text_field": "text", "validation_fraction": 0.05}
    prints = {fingerprint(texts, base), fingerprint(texts, {**base, "validation_fraction": 0.1})}
    Tokenizer.train(["a a b b"], 261).save_pretrained(tmp_path / "t")
    own = fingerprint(texts, {**base, "tokenizer": str(tmp_path / "t")})
    assert own == fingerprint(texts, {**base, "tokenizer": str(tmp_path / "t"), "vocab_size": 999})
    prints.add(own)
    os.utime(tmp_path / "texts" / "000.txt", ns=(1, 1))
    prints.add(fingerprint(texts, base))
    assert len(prints) == 4


def test_building_again_into_the_same_folder(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    (tmp_path / "corpus").mkdir()  # empty folders are fine
    corpus = build_corpus(tmp_path / "corpus", sources=str(texts), **SETTINGS)
    before = files_of(corpus.path)
    assert (
        files_of(build_corpus(tmp_path / "corpus", sources=str(texts), **SETTINGS).path) == before
    )
    other = build_corpus(tmp_path / "corpus", sources=str(texts), vocab_size=303, progress=False)
    assert other.tokenizer.vocab_size == 303 and other.path == corpus.path
    with pytest.raises(UserError, match="is not empty"):
        build_corpus(texts, sources=str(texts), **SETTINGS)


@pytest.mark.parametrize("pattern", ["texts", "./texts/**/*", "{tmp}/texts"])
def test_the_output_lies_in_a_source(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pattern: str,
) -> None:
    """What one build writes is not read by the next."""
    monkeypatch.chdir(tmp_path)
    texts = make_texts(tmp_path / "texts")
    args = ["corpus", "build", "--input", pattern.format(tmp=tmp_path), "--output", "texts/[new]",
            "--vocab_size", "300", "--workers", "1"]  # fmt: skip
    assert main(args) == 0
    card = (texts / "[new]" / "datacard.json").read_bytes()
    assert main(args) == 0 and (texts / "[new]" / "datacard.json").read_bytes() == card
    (texts / "more.txt").write_text("another text, alpha and beta and gamma\n" * 9)
    capsys.readouterr()
    assert main(args) == 0
    assert "files are left out by exclude, or because they lie in the" in capsys.readouterr().err
    grown = json.loads((texts / "[new]" / "datacard.json").read_text())
    assert grown["read"]["documents"] == json.loads(card)["read"]["documents"] + 1 == 61


BUILD = """
import sys
from lit_llm.corpus.build import build_corpus
print(build_corpus(sys.argv[1], sources=sys.argv[2], vocab_size=300, progress=False).fingerprint)
"""


def test_builds_at_the_same_time_agree(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts")
    command = [sys.executable, "-c", BUILD, str(tmp_path / "out" / "corpus"), str(texts)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(set(outputs)) == 1 and [path.name for path in (tmp_path / "out").iterdir()] == [
        "corpus"
    ]
    assert Corpus.load(tmp_path / "out" / "corpus").fingerprint == outputs[0]


@pytest.mark.parametrize("step", ["close", "append"])
def test_a_full_disk_says_how_much_is_needed_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch, step: str
) -> None:
    texts = make_texts(tmp_path / "texts")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, step, full)
    with pytest.raises(
        UserError, match=r"out/corpus: the disk is full; the corpus needs up to [\d.]+ MB"
    ):
        build_corpus(tmp_path / "out" / "corpus", sources=str(texts), **SETTINGS)
    assert [path.name for path in (tmp_path / "out" / "corpus").iterdir()] == [".work"]
    monkeypatch.undo()
    corpus = build_corpus(tmp_path / "out" / "corpus", sources=str(texts), **SETTINGS)
    assert corpus.tokens("train") > 0 and corpus.datacard["build"]["tasks_run"]["encode"] == 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts", 3)
    with pytest.raises(UserError, match=r"000\.txt/corpus: cannot be written"):
        build_corpus(texts / "000.txt" / "corpus", sources=str(texts), **SETTINGS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.bin": b"\0\1", "b.txt": b"\xff", "c.txt": b" "},
            r"no usable text .*1 binary, 1 empty, 1 not UTF-8",
        ),
        ({"a.jsonl": b"\n"}, "no usable text .*no rows"),
        ({"a.txt": b"short text"}, r"vocab_size.*no more than \d+"),
        ({"a.jsonl": b'{"body": 1}'}, r"a\.jsonl:1: no field 'text'"),
    ],
)
def test_mistakes_leave_no_corpus_behind(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    (tmp_path / "texts").mkdir()
    for name, content in files.items():
        (tmp_path / "texts" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build_corpus(tmp_path / "out" / "corpus", sources=str(tmp_path / "texts"), **SETTINGS)
    assert [path.name for path in (tmp_path / "out").rglob("*.json")] == []


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    texts = make_texts(tmp_path / "texts", 3)
    Tokenizer.train(["a a b b"], 261).save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    with pytest.raises(UserError, match="no end-of-text token"):
        build_corpus(
            tmp_path / "c", sources=str(texts), tokenizer=str(tmp_path / "t"), progress=False
        )
    with pytest.raises(UserError, match="validation_fraction"):
        build_corpus(tmp_path / "c", sources=str(texts), validation_fraction=1.0, **SETTINGS)


def damage_card(folder: Path) -> None:
    card = json.loads((folder / "datacard.json").read_text())
    card["splits"]["train"]["texts"]["tokens"] += 1
    (folder / "datacard.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "datacard.json").unlink(), r"datacard\.json: no such file"),
        (lambda folder: (folder / "datacard.json").write_text("[]"), r"datacard\.json: broken"),
        (
            lambda folder: (folder / "datacard.json").write_text('{"format": 0, "splits": {}}'),
            "format 0",
        ),
        (damage_card, r"shards/train/texts: holds \d+ tokens, the data card says"),
        (
            lambda folder: os.truncate(folder / "shards/train/texts/chunk-0-0.bin", 100),
            r"chunk-0-0\.bin: 100 bytes",
        ),
        (lambda folder: shutil.rmtree(folder / "shards/validation/texts"), r"index\.json: missing"),
        (
            lambda folder: (folder / "tokenizer/tokenizer.json").unlink(),
            r"tokenizer\.json: missing",
        ),
    ],
)
def test_a_damaged_corpus_does_not_load(tmp_path: Path, damage, message: str) -> None:
    texts = make_texts(tmp_path / "texts")
    corpus = build_corpus(tmp_path / "corpus", sources=str(texts), **SETTINGS)
    damage(corpus.path)
    with pytest.raises(UserError, match=message):
        Corpus.load(corpus.path)


def test_progress_says_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = make_texts(tmp_path / "texts")
    build_corpus(tmp_path / "a", sources=str(texts), vocab_size=300)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"corpus: clean: 0\.0 MB in [\d.]+ s at [\d.]+ MB/s", lines[0]), lines[0]
    assert "corpus: training a tokenizer of 300 tokens" in lines and "60 documents" in lines[-1]
    build_corpus(tmp_path / "b", sources=str(texts), **SETTINGS)
    assert capsys.readouterr() == ("", "")


def test_what_is_too_long_is_told_with_the_setting_that_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_llm.data.pretrain import PretrainDataModule

    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "long.txt").write_text("some words of one line " * 100)
    settings = {"sources": str(texts), "cache_dir": str(tmp_path / "cache"), "vocab_size": 260}
    with pytest.raises(UserError, match="line too long: above max_line_bytes=1000"):
        PretrainDataModule(max_line_bytes=1000, **settings).prepare_data()
    (texts / "short.txt").write_text("other words\n" * 50)
    data = PretrainDataModule(max_line_bytes=1000, **settings)
    data.prepare_data()
    said = capsys.readouterr().err
    assert "1 of 2 documents are dropped: line too long: above max_line_bytes=1000; raise" in said
    dropped = json.loads(data.datacard_file.read_text())["dropped"]
    assert dropped == {"read: line too long: above max_line_bytes=1000": 1}
    data = PretrainDataModule(**settings)
    data.prepare_data()
    assert json.loads(data.datacard_file.read_text())["documents"] == 2
