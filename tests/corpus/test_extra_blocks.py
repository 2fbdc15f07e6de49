"""Blocks that settings name by their class: what they do, what is told of wrong ones, resuming."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_pipeline import checksums, prose, rows

from lit_llm.cli import main
from lit_llm.corpus import block as block_module
from lit_llm.corpus import chain as chain_module
from lit_llm.corpus import pipeline as pipeline_module
from lit_llm.corpus.block import Block, documents, funnel
from lit_llm.corpus.build import build
from lit_llm.corpus.card.page import write_page
from lit_llm.corpus.chain import BLOCKS
from lit_llm.corpus.commands.explain import explain
from lit_llm.corpus.commands.remove import Request, remove
from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.output import score_sketch
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.reading.sources import Source
from lit_llm.errors import UserError

IMPORTS = """\
from dataclasses import dataclass
import pyarrow.compute as pc
from lit_llm.corpus.block import Block, Filter, texts

"""


def example() -> str:
    """The block in the documentation of `block`, as its readers copy it."""
    (lines,) = re.findall(
        r"of a build:\n\n(    @dataclass.*?)\n\nA document", block_module.__doc__ or "", re.S
    )
    return textwrap.dedent(lines)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module ``ours`` that holds the documented example."""
    folder = tmp_path / "code"
    folder.mkdir()
    write(folder / "ours.py", example())
    monkeypatch.syspath_prepend(str(folder))
    yield folder / "ours.py"
    forget()


def write(file: Path, code: str) -> None:
    file.write_text(IMPORTS + code)
    forget()


def forget() -> None:
    """As a new process: the interpreter and the chain know nothing of the module."""
    sys.modules.pop("ours", None)
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = True  # a file changed within a second would be taken for its cache
    chain_module._made.cache_clear()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = random.Random(0)
    for number in range(12):
        text = prose(rng)
        (folder / f"{number:02}.txt").write_text(text.upper() if number in (3, 7) else text)
    return folder


def config(texts: Path, *extra: dict[str, Any], **settings: Any) -> CorpusConfig:
    given = {"vocab_size": 300, "workers": 1, "validation_fraction": 0.2, **settings}
    return CorpusConfig([Source("texts", [str(texts)])], extra_blocks=list(extra), **given)


CAPITALS = {"class_path": "ours.Capitals", "init_args": {"most": 0.2}, "after": "language"}


def test_the_documented_block_is_fifteen_lines_and_works_alone(module: Path) -> None:
    assert len(example().splitlines()) <= 15
    from ours import Capitals  # type: ignore[import-not-found]

    table = Capitals(most=0.4)(documents(["Abc", "ABC abc", "12", ""]))
    assert table["dropped"].to_pylist() == [None, "capitals: shouts", None, None]
    assert table["score_share_of_capitals"].to_pylist() == pytest.approx([1 / 3, 0.5, 0, 0])


def test_a_build_with_it(module: Path, texts: Path, tmp_path: Path) -> None:
    corpus = build(config(texts, CAPITALS), tmp_path / "corpus", progress=False)
    kept, dropped = rows(corpus, "documents"), rows(corpus, "dropped")
    assert {name: (row["stage"], row["reason"]) for name, row in dropped.items()} == {
        "03.txt": ("capitals", "shouts"),
        "07.txt": ("capitals", "shouts"),
    }
    assert len(kept) == 10
    scores = [row["scores"]["share_of_capitals"] for row in kept.values()]
    assert all(0 <= score < 0.2 for score in scores)
    card = corpus.datacard
    stages = [row["stage"] for row in card["funnel"]]
    assert stages[stages.index("capitals") - 1] == "identify_language"
    said = card["scores"]["share_of_capitals"]
    assert (said["documents"], said["missing"]) == (10, 0)
    assert said["highest"] == pytest.approx(max(scores), rel=1e-5)
    assert said["quantiles"]["0.5"] == pytest.approx(np.quantile(scores, 0.5), abs=0.01)
    (described,) = card["settings"]["extra_blocks"]
    assert described["class_path"] == "ours.Capitals" and described["init_args"] == {"most": 0.2}
    page = (corpus.path / "datacard.html").read_text()
    assert "share_of_capitals" in page and "extra_blocks: ours.Capitals" in page
    assert "| share\\_of\\_capitals | 10 | 0 |" in (corpus.path / "README.md").read_text()
    (row,) = explain(corpus.path, "00.txt")
    assert row["steps"]["capitals"] == "kept" and "share_of_capitals" in row["scores"]


def test_scores_stay_when_documents_are_removed(module: Path, texts: Path, tmp_path: Path) -> None:
    corpus = build(config(texts, CAPITALS), tmp_path / "corpus", progress=False)
    before = rows(corpus, "documents")
    remove(corpus.path, Request(frozenset({"00.txt"})), "test", print)
    after = Corpus.load(corpus.path)
    del before["00.txt"]
    assert rows(after, "documents") == before
    assert after.datacard["scores"]["share_of_capitals"]["documents"] == 9


def test_worker_processes_make_the_same(
    module: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(config(texts, CAPITALS), tmp_path / "one", progress=False)
    monkeypatch.setattr(pipeline_module, "_FEW_BYTES", 0)  # processes, not threads
    two = build(config(texts, CAPITALS, workers=2, part_bytes=2000), tmp_path / "two", False)
    assert checksums(one) == checksums(two)
    assert rows(one, "documents") == rows(two, "documents")


@pytest.mark.slow
def test_what_a_block_raises_in_a_worker_process(
    module: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_FEW_BYTES", 0)
    write(module, example().replace("text = ", "raise KeyError(3)\n        text = "))
    with pytest.raises(UserError, match=r"ours\.Capitals raised KeyError: 3 \(ours\.py, line \d+"):
        build(config(texts, CAPITALS, workers=2, part_bytes=2000), tmp_path / "two", False)


def test_a_changed_block_runs_anew(module: Path, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"

    def ran(**settings: Any) -> tuple[int, int]:
        """(parts cleaned, documents kept) of a build."""
        forget()
        corpus = build(config(texts, {**CAPITALS, **settings}), folder, progress=False)
        cleaned = corpus.datacard["build"]["tasks_run"].get("clean", 0)
        return cleaned, corpus.datacard["documents"]

    assert ran() == (1, 10)
    made = (folder / "datacard.json").stat().st_mtime_ns
    ran()
    assert (folder / "datacard.json").stat().st_mtime_ns == made  # the corpus there is returned
    assert ran(init_args={"most": 2.0}) == (1, 12)
    write(module, example().replace('"shouts"', '"screams"'))
    assert ran() == (1, 10)
    assert rows(Corpus.load(folder), "dropped")["03.txt"]["reason"] == "screams"


def test_a_version_and_files_that_a_block_reads_count(
    module: Path, texts: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    code = f"""
class Base(Block):
    name = "base"
    def apply(self, table): return table
    def inputs(self): return ({str(weights)!r},)
"""
    write(module, code)
    (first,) = (one for one in config(texts, {"class_path": "ours.Base"}).blocks()[-1:])
    weights.write_bytes(b"two")
    (second,) = (one for one in config(texts, {"class_path": "ours.Base"}).blocks()[-1:])
    assert first.version != second.version
    versions = []
    for version in "ab":
        from ours import Base

        Base.version = version
        versions.append(config(texts, {"class_path": "ours.Base"}).blocks()[-1].version)
    assert len({second.version, *versions}) == 3
    weights.unlink()
    with pytest.raises(UserError, match=r"weights\.bin: cannot be read"):
        config(texts, {"class_path": "ours.Base"})


def test_a_killed_build_goes_on(
    module: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(texts, CAPITALS, part_bytes=2000)
    whole = build(settings, tmp_path / "whole", progress=False)
    parts = whole.datacard["build"]["tasks_run"]["clean"]
    assert parts > 2
    real, calls = pipeline_module.Clean.__call__, []

    def dies(self: Any) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(pipeline_module.Clean, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        build(settings, tmp_path / "killed", progress=False)
    forget()
    resumed = build(settings, tmp_path / "killed", progress=False)
    assert resumed.datacard["build"]["tasks_run"]["clean"] == parts - 2
    assert checksums(resumed) == checksums(whole)


def test_places(module: Path, texts: Path) -> None:
    code = """
@dataclass(frozen=True)
class Named(Block):
    name: str = "a"
    def apply(self, table): return table
"""
    write(module, code)

    def named(name: str, **place: str) -> dict[str, Any]:
        return {"class_path": "ours.Named", "init_args": {"name": name}, **place}

    extra = [
        named("front", after="read"), named("end"), named("second", after="front"),
        named("off", after="c4"), named("last", after="end"),
        {"class_path": "c4", "init_args": {"min_num_sentences": 1}},
    ]  # fmt: skip
    order = [block.name for block in config(texts, *extra).blocks()]
    assert order == [
        "front", "second", "opt_out", "normalize", "identify_language", "license",
        "gopher_repetition", "c4_quality", "off", "gopher_quality", "redact_pii", "end", "last",
    ]  # fmt: skip


def test_a_filter_of_our_own_is_one_file_and_one_row(
    module: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row goes where the filter runs; its name is what switches it on."""
    rows_before = list(BLOCKS.items())
    at = [name for name, _ in rows_before].index("license")
    table = dict([*rows_before[:at], ("capitals", "ours.Capitals"), *rows_before[at:]])
    for patched in (chain_module, sys.modules[CorpusConfig.__module__]):
        monkeypatch.setattr(patched, "BLOCKS", table)
    assert "capitals" not in [block.name for block in config(texts).blocks()]
    on = {"class_path": "capitals", "init_args": {"most": 0.2}}
    order = [block.name for block in config(texts, on).blocks()]
    assert order.index("capitals") == order.index("license") - 1
    assert build(config(texts, on), tmp_path / "corpus", False).datacard["documents"] == 10


def test_the_table_names_the_classes_of_the_sections() -> None:
    by_name = {field.name: field.type for field in dataclasses.fields(CorpusConfig)}
    for name, path in BLOCKS.items():
        kind = chain_module._class_of(path)
        assert by_name[name] == f"{kind.__name__} | None", name


GOOD = 'class Some(Block):\n    name = "some"\n    def __init__(self, most: float = 1): pass\n'
ROWS = [
    ("ours.Missing", {}, "", "ours has no class Missing"),
    ("ours.Som", {}, "", "did you mean Some"),
    ("theirs.Block", {}, "", "no module 'theirs' is found"),
    ("Some", {}, "", "give its import path"),
    ("json.JSONDecoder", {}, "", "json.JSONDecoder is no block"),
    ("ours.Some", {"most": "much"}, "", "ours.Some: init_args: most=much: must be a number"),
    ("ours.Some", {"mots": 1}, "", "init_args: unknown key mots: did you mean most"),
    ("ours.Some", {"x": 1}, "", "unknown key x; it takes most"),
    ("ours.Some", {}, 'class Some(Block):\n    name = "some"\n    def __init__(self, a: int): 1',
     "required: a"),
    ("ours.Some", {}, 'class Some(Block):\n    name = "s"\n    def __init__(self): 1 / 0',
     "ours.Some: making it raised ZeroDivisionError: division by zero (ours.py, line"),
    ("ours.Some", {}, "class Some(:", "importing ours raised SyntaxError"),
    ("ours.Some", {}, "class Some(Block): pass", "has the name None"),
    ("ours.Some", {}, 'class Some(Block): name = "a: b"', "has the name 'a: b'"),
    ("ours.Some", {}, 'class Some(Block): name = "redact_pii"', "'redact_pii' is taken"),
    ("ours.Some", {}, 'class Some(Block): name = "near_dedup"', "'near_dedup' is taken"),
    ("ours.Some", {}, 'class Some(Block):\n    name = "s"\n    scores = "s"', "a tuple of words"),
    ("ours.Some", {}, 'class Some(Block):\n    name = "s"\n    scores = ("language",)',
     "the score 'language' is there already"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "arguments", "code", "said"), ROWS)
def test_wrong_settings_are_one_line(
    module: Path,
    texts: Path,
    tmp_path: Path,
    path: str,
    arguments: dict[str, Any],
    code: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(module, code or GOOD)
    row = f"[{{class_path: {path}, init_args: {arguments}}}]"
    output = tmp_path / "corpus"
    typed = ["--input", str(texts), "--output", str(output), "--extra_blocks", row]
    status = main(["corpus", "build", *typed])
    told = capsys.readouterr().err
    assert status == 2 and len(told.splitlines()) == 1 and said in told, told
    assert not output.exists()


WRONG = {
    "table.slice(1)": "returned 11 rows of 12",
    "pa.concat_tables([table, table.slice(0, 1)])": "returned 13 rows of 12",
    "table.take(list(range(len(table)))[::-1])": 'changed "id", or the order of the rows',
    'table.drop_columns("text")': "returned no column 'text'",
    'table.drop_columns("url")': "returned no column 'url'",
    'put(table, "text", pc.utf8_length(table["text"]))': "the column 'text' as int64",
    'put(table, "text", pa.nulls(len(table), pa.string()))': 'returned nulls in "text"',
    'put(table, "dropped", table["id"])': "a reason is 'wrong: why'",
    'table.append_column("length", pc.utf8_length(table["text"]))': "added the column 'length'",
    'table.append_column("text", table["text"])': "the column 'text' twice",
    "None": "returned NoneType, not a pyarrow.Table",
    "table.to_pylist()": "returned list, not a pyarrow.Table",
    "1 / 0": "raised ZeroDivisionError: division by zero (ours.py, line",
    'self.drop(table, ["why"])': "raised ArrowInvalid: Added column's length must match",
}


@pytest.mark.parametrize("returned", WRONG)
def test_blocks_that_break_the_promise(
    module: Path, texts: Path, tmp_path: Path, returned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"""
import pyarrow as pa
from lit_llm.corpus.block import with_column as put
class Wrong(Block):
    name = "wrong"
    def apply(self, table): return {returned}
"""
    write(module, code)
    typed = ["--input", str(texts), "--output", str(tmp_path / "corpus"), "--workers", "1"]
    status = main(["corpus", "build", *typed, "--extra_blocks", "[{class_path: ours.Wrong}]"])
    told = [line for line in capsys.readouterr().err.splitlines() if "extra_blocks" in line]
    assert status == 2 and len(told) == 1
    assert (
        told[0].startswith("lit_llm corpus: extra_blocks: ours.Wrong")
        and WRONG[returned] in (told[0])
    ), told


def test_a_score_that_is_promised_and_missing(module: Path, texts: Path, tmp_path: Path) -> None:
    code = """
class Silent(Block):
    name = "silent"
    scores = ("quality",)
    def apply(self, table): return table
class Words(Silent):
    def apply(self, table): return table.append_column("score_quality", table["id"])
"""
    write(module, code)
    for name, said in (("Silent", "returned no score 'quality'"), ("Words", "no numbers")):
        with pytest.raises(UserError, match=rf"ours\.{name} .*{said}"):
            build(config(texts, {"class_path": f"ours.{name}"}), tmp_path / name, progress=False)


def test_a_block_may_return_plain_lists_and_strings(
    module: Path, texts: Path, tmp_path: Path
) -> None:
    """string for large_string, NaN for a score that is not there, a list of reasons."""
    code = """
class Loose(Block):
    name = "loose"
    scores = ("half",)
    def apply(self, table):
        import pyarrow as pa
        text = pa.array([text + "!" for text in table["text"].to_pylist()])
        table = table.set_column(table.schema.get_field_index("text"), "text", text)
        numbers = [float("nan") if i % 2 else i / 2 for i in range(len(table))]
        table = self.score(table, "half", numbers)
        return self.drop(table, [None] * (len(table) - 1) + ["last"])
"""
    write(module, code)
    corpus = build(config(texts, {"class_path": "ours.Loose"}), tmp_path / "corpus", progress=False)
    kept = rows(corpus, "documents")
    assert kept["00.txt"]["text"].endswith("!") and kept["00.txt"]["changed_by"] == "loose"
    assert rows(corpus, "dropped")["11.txt"]["stage"] == "loose"
    card = corpus.datacard["scores"]["half"]
    assert (card["documents"], card["missing"], card["highest"]) == (6, 5, 5.0)


def test_a_block_is_not_called_without_documents(module: Path, texts: Path, tmp_path: Path) -> None:
    code = """
class All(Block):
    name = "all"
    def apply(self, table): return self.drop(table, ["no"] * len(table))
class Never(Block):
    name = "never"
    scores = ("x",)
    def apply(self, table): raise AssertionError
"""
    write(module, code)
    extra = [{"class_path": "ours.All"}, {"class_path": "ours.Never"}]
    with pytest.raises(UserError, match="no usable text"):
        build(config(texts, *extra), tmp_path / "corpus", progress=False)


def test_a_filter_from_a_config_file(module: Path, texts: Path, tmp_path: Path) -> None:
    code = """
@dataclass(frozen=True)
class Has(Filter):
    name = "has"
    words: tuple[str, ...] = ()
    def judge(self, text):
        return [next((w for w in self.words if w in one), None) for one in text.to_pylist()]
"""
    write(module, code)
    file = tmp_path / "corpus.yaml"
    lines = f"""
sources: [{{name: texts, paths: [{texts}]}}]
workers: 1
vocab_size: 300
extra_blocks:
  - class_path: ours.Has
    init_args: {{words: [RIVER, BRIDGE]}}
    after: normalize
"""
    file.write_text(lines)
    main(["corpus", "build", "--config", str(file), "--output", str(tmp_path / "corpus")])
    dropped = rows(Corpus.load(tmp_path / "corpus"), "dropped")
    assert set(dropped) == {"03.txt", "07.txt"}
    assert {row["stage"] for row in dropped.values()} == {"has"}


NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32) | st.none(), max_size=60)


@given(st.lists(NUMBERS, min_size=1, max_size=4))
def test_sketches_add_up_and_quantiles_are_near(parts: list[list[float | None]]) -> None:
    total = score_sketch.sketch(pa.array([], pa.float32()))
    for part in parts:
        total = score_sketch.merged(total, score_sketch.sketch(pa.array(part, pa.float32())))
    values = sorted(value for part in parts for value in part if value is not None)
    card = score_sketch.described(total)
    assert card["documents"] == len(values)
    assert card["missing"] == sum(value is None for part in parts for value in part)
    if not values:
        return
    assert card["lowest"] == pytest.approx(values[0], rel=1e-5)
    assert card["highest"] == pytest.approx(values[-1], rel=1e-5)
    for share in score_sketch.QUANTILES:
        exact = values[int(share * (len(values) - 1))]
        assert card["quantiles"][f"{share:g}"] == pytest.approx(exact, rel=0.006, abs=2e-9)


def test_funnel_counts_what_it_dropped(module: Path) -> None:
    from ours import Capitals

    assert isinstance(Capitals(), Block)
    table = Capitals()(documents(["ABC", "abc", "DEF"]))
    assert funnel(table) == {"capitals: shouts": 2}
    assert pc.sum(table["score_share_of_capitals"]).as_py() == 2.0


def test_old_cards_have_no_scores(texts: Path, tmp_path: Path) -> None:
    corpus = build(config(texts), tmp_path / "corpus", progress=False)
    assert "scores" not in corpus.datacard and "extra_blocks" not in corpus.datacard["settings"]
    write_page(corpus.datacard, tmp_path / "page.html", "corpus")
    assert 'id="scores"' not in (tmp_path / "page.html").read_text()


def test_the_guide_shows_the_same_block() -> None:
    guide = (Path(__file__).parents[2] / "docs/corpus.md").read_text(encoding="utf-8")
    assert example() in guide
