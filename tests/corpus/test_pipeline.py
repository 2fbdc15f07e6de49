"""Builds of a messy folder, end to end: what is kept and dropped, resuming, and that the machine
changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lit_llm.corpus import build as build_module
from lit_llm.corpus import pipeline as pipeline_module
from lit_llm.corpus.build import build
from lit_llm.corpus.config import CorpusConfig, Evaluations, MixtureSettings
from lit_llm.corpus.dedup.duplicates import Dedup
from lit_llm.corpus.filters.optout import OptOut
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import read_tokens
from lit_llm.corpus.progress import Progress
from lit_llm.corpus.reading.sources import Source
from lit_llm.corpus.storage.store import Store
from lit_llm.errors import UserError

PROSE = (
    "the river of a small town that people have long known with its old bridge and market where "
    "every morning "
    "farmers be found to sell bread apples honey wool glass paper letters stories songs maps "
    "lamps boats"
)
WORDS = PROSE.split()
OWLS = "seven wise owls counted forty green lanterns upon a frozen lake at dusk"


def prose(rng: random.Random, words: int = 90) -> str:
    text = [rng.choice(WORDS) for _ in range(words)]
    return " ".join(word + "." * (i % 12 == 11) for i, word in enumerate([*text, "today."]))


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty good texts, and one of each kind of bad one."""
    folder = tmp_path_factory.mktemp("texts") / "messy"
    folder.mkdir()
    rng = random.Random(0)
    texts = [prose(rng) for _ in range(30)]
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    near = texts[4].split()
    near[40] = "zebra"
    rows = [
        {"id": "exact", "text": texts[3]},
        {"id": "near", "text": " ".join(near)},
        {"id": "personal", "text": f"Write to jane.doe@corporation.org or the other. {prose(rng)}"},
        {"id": "mojibake", "text": f"The cafÃ© was closed. {prose(rng)}"},
        {"id": "spam", "text": "buy cheap watches now " * 60},
        {"id": "junk", "text": "#### $$ %% ^^ && ** (( )) ==" * 9},
        {"id": "task", "text": f"{prose(rng)} {OWLS} {prose(rng)}"},
        {"id": "page", "text": prose(rng), "url": "https://news.example.org/a"},
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "binary.txt").write_bytes(b"\0\1\2" * 50)
    (folder / "empty.txt").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def evaluation_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("evaluation") / "owls.jsonl"
    file.write_text(json.dumps({"question": OWLS}))
    return str(file)


def config(folder: Path, **settings: Any) -> CorpusConfig:
    return CorpusConfig(
        [Source("messy", [str(folder)])], **{"vocab_size": 300, "workers": 1, **settings}
    )


def rows(corpus: Corpus, folder: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(corpus.path / folder).to_pylist()}


def checksums(corpus: Corpus) -> dict[str, str]:
    folder = corpus.path / "shards"
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*")) if file.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def built(messy: Path, evaluation_set: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    settings = config(messy, evaluations=Evaluations((evaluation_set,)), validation_fraction=0.2)
    return build(settings, tmp_path_factory.mktemp("built") / "corpus", progress=False)


def test_what_is_kept_and_what_is_dropped_and_why(built: Corpus, messy: Path) -> None:
    kept, dropped = rows(built, "documents"), rows(built, "dropped")
    assert {name: (row["stage"], row["duplicate_of"]) for name, row in dropped.items()} == {
        "binary.txt": ("read", None),
        "empty.txt": ("read", None),
        "exact": ("exact_dedup", "03.txt"),
        "near": ("near_dedup", "04.txt"),
        "spam": ("gopher_repetition", None),
        "junk": (dropped["junk"]["stage"], None),
        "task": ("decontaminate", None),
    }
    assert (
        dropped["junk"]["stage"].startswith("gopher_")
        and dropped["task"]["contaminated_by"] == "owls"
    )
    assert set(kept) == {f"{i:02}.txt" for i in range(30)} | {"personal", "mojibake", "page"}
    assert (
        kept["personal"]["text"].startswith("Write to <EMAIL> or")
        and kept["personal"]["pii"]["email"] == 1
    )
    assert (
        kept["mojibake"]["text"].startswith("The café was")
        and kept["mojibake"]["changed_by"] == "normalize"
    )
    assert kept["page"]["url"] == "https://news.example.org/a" and kept["page"]["language"] == "en"
    first = kept["00.txt"]
    assert first["text"] == (messy / "00.txt").read_text() and first["path"] == str(
        messy / "00.txt"
    )
    assert first["sha256"] == hashlib.sha256((messy / "00.txt").read_bytes()).hexdigest()
    assert first["bytes"] / first["tokens"] == pytest.approx(first["scores"]["bytes_per_token"])


def test_shards_hold_the_documents_in_order(built: Corpus) -> None:
    table = pq.read_table(built.path / "documents").to_pylist()
    for split, folders in (("train", built.train_dirs), ("validation", built.validation_dirs)):
        mine = [row for row in table if row["split"] == split]
        stream = read_tokens(folders["messy"])
        assert built.tokenizer.decode(stream).split("<|endoftext|>")[1:] == [
            row["text"] for row in mine
        ]
        assert built.datacard["splits"][split]["messy"] == {
            "documents": len(mine), "bytes": sum(row["bytes"] for row in mine),
            "tokens": len(stream),
        }  # fmt: skip
        assert len(stream) == sum(row["tokens"] for row in mine)


def test_the_card_counts(built: Corpus) -> None:
    card = built.datacard
    assert card["read"]["documents"] == 40 and card["documents"] == 33 and card["duplicates"] == 2
    left = 40
    for row in card["funnel"]:
        assert row["documents"] == left and row["dropped"] == sum(row["reasons"].values())
        left -= row["dropped"]
    assert left == 33 and sum(card["dropped"].values()) == 7
    assert card["pii"] == {"email": 1} and card["hosts"]["news.example.org"]["documents"] == 1
    assert card["languages"]["en"]["documents"] == sum(card["lengths"].values()) == 33
    assert (
        "jane.doe" not in json.dumps(card)
        and "jane.doe" not in (built.path / "datacard.html").read_text()
    )
    [[name, text]] = card["examples_dropped"]["near_dedup: duplicate"]
    assert name == "near" and len(text) == 200
    assert card["mixture"] == [
        {
            "source": "messy",
            "tokens": built.tokens("train"),
            "weight": 1.0,
            "share": 1.0,
            "epochs": 1.0,
        }
    ]


@pytest.mark.parametrize(
    ("settings", "few"),
    [
        ({"part_bytes": 1500}, 0),
        ({"part_bytes": 700, "workers": 2}, 0),
        ({"part_bytes": 700, "workers": 2}, 10**6),
    ],
    ids=["one by one", "processes", "threads"],
)
def test_parts_and_workers_do_not_change_the_result(
    built: Corpus, messy: Path, evaluation_set: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any], few: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline_module, "_FEW_BYTES", few)
    same = config(
        messy, evaluations=Evaluations((evaluation_set,)), validation_fraction=0.2, **settings
    )
    other = build(same, tmp_path / "corpus", progress=False)
    assert (
        checksums(other) == checksums(built) and len(list((other.path / "documents").iterdir())) > 3
    )
    for folder in ("documents", "dropped"):
        ours, theirs = (
            pq.read_table(corpus.path / folder).to_pylist() for corpus in (built, other)
        )
        strip = ("example",)
        assert [{k: v for k, v in row.items() if k not in strip} for row in ours] == [
            {k: v for k, v in row.items() if k not in strip} for row in theirs
        ]


def test_a_changed_setting_reruns_what_depends_on_it(messy: Path, tmp_path: Path) -> None:
    def ran(**settings: Any) -> set[str]:
        corpus = build(
            config(messy, part_bytes=1500, **settings), tmp_path / "corpus", progress=False
        )
        return {stage for stage, tasks in corpus.datacard["build"]["tasks_run"].items() if tasks}

    every = {
        "clean",
        "sign",
        "dedup",
        "select",
        "tokenizer",
        "encode",
        "documents",
        "dropped",
        "shards",
    }
    assert ran() == every
    created = Corpus.load(tmp_path / "corpus").datacard["created"]
    ran()
    assert (
        Corpus.load(tmp_path / "corpus").datacard["created"] == created
    )  # nothing to do: nothing was written
    later = {"tokenizer", "encode", "documents", "shards"}
    assert ran(vocab_size=310) == later
    assert ran(vocab_size=310, validation_fraction=0.3) == later
    assert ran(vocab_size=310, validation_fraction=0.3, dedup=Dedup(threshold=0.62)) == {"dedup"}
    assert ran(dedup=None) == {"select", *later, "dropped"}
    assert ran(privacy=None, dedup=None) == every - {"sign", "dedup"}


def test_a_new_file_reruns_its_own_part(messy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(prose(random.Random(name)))
    build(config(folder, part_bytes=10, dedup=None), tmp_path / "corpus", progress=False)
    (folder / "d.txt").write_text(prose(random.Random("d")))
    corpus = build(config(folder, part_bytes=10, dedup=None), tmp_path / "corpus", progress=False)
    assert corpus.datacard["build"]["tasks_run"]["clean"] == 1 and corpus.datacard["documents"] == 4


def test_parts_are_small_enough_for_all_workers(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()

    def parts(**settings: Any) -> list[str]:
        pipeline = pipeline_module.Pipeline(
            config(folder, **settings), Store(tmp_path), frozenset(), Progress(False)
        )
        return [part.key for part in pipeline.parts]

    for number in range(12):
        with (folder / f"{number:02}.txt").open("wb") as file:
            file.truncate(3 << 19)
    assert len(parts(workers=1)) == 1 and len(parts(workers=2)) == 12
    assert len(parts(workers=2, part_bytes=1 << 18)) == 12 and len(parts(workers=16)) == 12
    before = parts(workers=2)
    with (folder / "12.txt").open("wb") as file:
        file.truncate(3 << 19)
    assert parts(workers=2)[:12] == before
    (folder / "rows.jsonl").write_bytes(b'{"text": "one"}\n' * 200_000)
    assert len(parts(workers=2)) == 13 + 2


def test_work_that_nothing_needs_goes(messy: Path, tmp_path: Path) -> None:
    work = tmp_path / "corpus" / ".work"
    build(config(messy), tmp_path / "corpus", progress=False)
    before = {path.name for path in (work / "clean").iterdir()}
    (work / "clean" / "begun.partial").write_text("")
    build(config(messy, privacy=None), tmp_path / "corpus", progress=False)
    assert len(list((work / "clean").iterdir())) == 1 and before.isdisjoint(
        p.name for p in (work / "clean").iterdir()
    )
    build(
        config(messy, privacy=None, vocab_size=320, keep_work=False),
        tmp_path / "corpus",
        progress=False,
    )
    assert not work.exists()


class Stopped(BaseException):
    """As a kill, nothing catches it."""


@pytest.mark.parametrize("after", [1, 4, 9, 14, 19, 24])
def test_stopped_after_some_files_and_run_again(
    messy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = build(config(messy, part_bytes=1500), tmp_path / "whole", progress=False)
    renames, real = [0], os.replace

    def stopping(source: Any, target: Any) -> None:
        renames[0] += 1
        if renames[0] > after:
            raise Stopped
        real(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(Stopped):
        build(config(messy, part_bytes=1500), tmp_path / "again", progress=False)
    monkeypatch.undo()
    again = build(config(messy, part_bytes=1500), tmp_path / "again", progress=False)
    assert checksums(again) == checksums(whole)
    done = sum(whole.datacard["build"]["tasks_run"].values()) - sum(
        again.datacard["build"]["tasks_run"].values()
    )
    assert done == min(after, sum(whole.datacard["build"]["tasks_run"].values()))


def test_a_failed_rebuild_leaves_the_corpus_there(
    messy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(config(messy), tmp_path / "corpus", progress=False)
    sums = checksums(before)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module.shutil, "rmtree", full)
    monkeypatch.setattr(Store, "path", full)
    with pytest.raises(
        UserError, match=r"the disk is full; .* MB are free; free some space and build again"
    ):
        build(config(messy, vocab_size=310), tmp_path / "corpus", progress=False)
    monkeypatch.undo()
    assert checksums(Corpus.load(tmp_path / "corpus")) == sums


def test_sources_weights_are_in_the_card(messy: Path, tmp_path: Path) -> None:
    sources = [Source("a", [str(messy / "0*.txt")], weight=3), Source("b", [str(messy / "1*.txt")])]
    settings = dataclasses.replace(
        config(messy), sources=sources, mixture=MixtureSettings(tokens=20_000)
    )
    card = build(settings, tmp_path / "corpus", progress=False).datacard
    assert [(row["source"], row["weight"]) for row in card["mixture"]] == [("a", 3), ("b", 1)]
    assert sum(row["share"] for row in card["mixture"]) == pytest.approx(1)
    assert all(row["epochs"] <= 4.001 for row in card["mixture"])


def test_a_list_of_opt_outs_that_grew_counts(messy: Path, tmp_path: Path) -> None:
    """The corpus that is there was made with another list of the same name."""
    listed = tmp_path / "opt_outs.txt"
    listed.write_text("example.com\n")
    settings = config(messy, opt_out=OptOut(files=(str(listed),)))
    assert "page" in rows(build(settings, tmp_path / "corpus", progress=False), "documents")
    listed.write_text("example.com\nnews.example.org\n")
    assert "page" not in rows(build(settings, tmp_path / "corpus", progress=False), "documents")
