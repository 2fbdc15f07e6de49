"""``lit_llm tokenizer``: trained on the build's sample to the byte, and measured as `tokenizers`
itself counts."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.cli import main
from lit_llm.corpus.block import documents
from lit_llm.corpus.build import build, build_corpus
from lit_llm.corpus.config import MixtureSettings, plain
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.reading.sources import Source
from lit_llm.corpus.tokenizers import published as published_module
from lit_llm.corpus.tokenizers.compression import Compression
from lit_llm.corpus.tokenizers.compression_table import told
from lit_llm.corpus.tokenizers.published import published, recognised
from lit_llm.corpus.tokenizers.sample import file_sample, rates, training_sample
from lit_llm.models.tokenizer import Tokenizer

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "udhr.jsonl").read_text("utf-8").splitlines()
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paragraphs of the Declaration of Human Rights in three languages."""
    folder = tmp_path_factory.mktemp("texts")
    for language in ("en", "ru", "ja"):
        rows = [json.dumps({"text": row["text"]}) for row in ROWS if row["language"] == language]
        assert rows
        (folder / f"{language}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def corpus(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Of English, and of Russian and Japanese in a smaller share than their size."""
    sources = [
        Source("english", str(texts / "en.jsonl"), weight=4, domain="law", language="en"),
        Source("others", [str(texts / "ru.jsonl"), str(texts / "ja.jsonl")], weight=1),
    ]
    config = dataclasses.replace(
        plain(sources, None, 400, 0.25), mixture=MixtureSettings(temperature=1.5, tokens=500)
    )
    return build(config, tmp_path_factory.mktemp("built") / "corpus", progress=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Standard output of a command that succeeds."""

    def run(*args: object) -> str:
        capsys.readouterr()
        status = main(["tokenizer", *map(str, args)])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return run


def theirs(folder: Path, text: str) -> list[int]:
    """Ids by the library, without this package."""
    return (
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        .encode(text, add_special_tokens=False)
        .ids
    )


def test_a_corpus_gives_the_tokenizer_that_its_build_has(
    corpus: Corpus, tmp_path: Path, run: Callable[..., str]
) -> None:
    for name in ("one", "two"):
        out = run(
            "train", "--corpus", corpus.path, "--vocab_size", 400, "--output", tmp_path / name
        )
        assert out == f"{tmp_path / name}\n"
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / name / file).read_bytes() == (
                corpus.path / "tokenizer" / file
            ).read_bytes()
    smaller = tmp_path / "smaller"
    run(
        "train",
        "--corpus",
        corpus.path,
        "--vocab_size",
        300,
        "--output",
        smaller,
        "--sample_mb",
        0.004,
    )
    assert Tokenizer.from_pretrained(smaller).vocab_size == 300


def test_the_sample_has_the_shares_of_the_mixture_and_no_validation_text(corpus: Corpus) -> None:
    sample = training_sample(corpus)
    weights = {"english": 4 ** (1 / 1.5), "others": 1.0}
    sizes = {
        name: sum(split[name]["bytes"] for split in corpus.datacard["splits"].values())
        for name in sample.rates
    }
    total = sum(sizes.values())
    for name, rate in sample.rates.items():
        assert rate == pytest.approx(
            min(1.0, total * weights[name] / sum(weights.values()) / sizes[name])
        )
    assert sample.rates["english"] == 1.0 > sample.rates["others"]
    held_out = {
        row["text"]
        for row in pq.read_table(corpus.path / "documents").to_pylist()
        if row["split"] != "train"
    }
    taken = [text for table in sample.tables() for text in table["text"].to_pylist()]
    assert held_out and taken and not held_out & set(taken)


def test_a_larger_sample_holds_a_smaller_one(texts: Path) -> None:
    def sampled(total: int) -> set[str]:
        tables = file_sample([str(texts)], total).tables()
        return {text for table in tables for text in table["text"].to_pylist()}

    everything = {row["text"] for row in ROWS if row["language"] in ("en", "ru", "ja")}
    assert set() < sampled(3_000) < sampled(8_000) < sampled(10**9) == everything


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.integers(0, 10**6), st.floats(0, 1)), min_size=1
    ),
    st.integers(1, 10**7),
)
@settings(deadline=None)
def test_rates_fill_the_sample_in_proportion(
    sources: dict[str, tuple[int, float]], total: int
) -> None:
    whole = sum(weight for _, weight in sources.values()) or 1.0
    wanted = {name: weight / whole for name, (_, weight) in sources.items()}
    sizes = {name: size for name, (size, _) in sources.items()}
    found = rates(sizes, wanted, total)
    assert set(found) == {name for name, size in sizes.items() if size}
    budget = min(total, sum(sizes.values()))
    for name, rate in found.items():
        assert 0 <= rate <= 1
        assert rate * sizes[name] == pytest.approx(min(sizes[name], budget * wanted[name]))


def test_files_train_a_tokenizer_that_transformers_and_a_build_take(
    texts: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "made" / "here"
    run("train", "--files", texts / "en.jsonl", texts / "ru*", "--output", out)
    loaded = Tokenizer.from_pretrained(out)
    assert 260 < loaded.vocab_size < 32_768  # as many as the text supports
    auto = transformers.AutoTokenizer.from_pretrained(out)
    for row in ROWS[:40]:
        ids = auto(row["text"], add_special_tokens=False)["input_ids"]
        assert ids == loaded.encode(row["text"]) == theirs(out, row["text"])
        assert auto.decode(ids) == loaded.decode(ids) == row["text"]
    built = build_corpus(tmp_path / "c", sources=str(texts), tokenizer=str(out), progress=False)
    assert built.tokenizer.fingerprint() == loaded.fingerprint()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
@settings(deadline=None)
def test_what_it_trained_reads_back_any_text(corpus: Corpus, text: str) -> None:
    assert corpus.tokenizer.decode(theirs(corpus.path / "tokenizer", text)) == text


def test_inspection_counts_what_the_library_counts(
    corpus: Corpus, tmp_path: Path, run: Callable[..., str]
) -> None:
    run("train", "--corpus", corpus.path, "--vocab_size", 300, "--output", tmp_path / "small")
    own = corpus.path / "tokenizer"
    said = json.loads(
        run("inspect", own, "--corpus", corpus.path, "--against", tmp_path / "small", own, "--json")
    )
    rows = [
        row
        for row in pq.read_table(corpus.path / "documents").to_pylist()
        if row["split"] == "validation"
    ]
    assert said["all"]["documents"] == len(rows) and set(said["tokenizers"]) == {
        "tokenizer",
        "small",
        "tokenizer-2",
    }
    for name, folder in (("tokenizer", own), ("small", tmp_path / "small"), ("tokenizer-2", own)):
        ids = {row["id"]: theirs(folder, row["text"]) for row in rows}
        for group in ("source", "domain"):
            for value, found in said[group].items():
                mine = [row for row in rows if (row[group] or "unknown") == value]
                size, tokens = (
                    sum(len(row["text"].encode()) for row in mine),
                    sum(len(ids[row["id"]]) for row in mine),
                )
                assert (found["documents"], found["bytes"]) == (len(mine), size)
                assert found["tokenizers"][name]["tokens"] == tokens
                assert found["tokenizers"][name]["bytes_per_token"] == round(size / tokens, 4)
        used = {index for row in ids.values() for index in row}
        vocabulary = said["vocabulary"][name]
        assert vocabulary["unused"] == vocabulary["tokens"] - 4 - len(used)
        lengths = [len(token) for token in Tokenizer.from_pretrained(folder).vocabulary()]
        assert [row["bytes"] for row in vocabulary["longest"]] == sorted(lengths, reverse=True)[:10]
    assert set(said["language"]) == {
        "en",
        "ru",
        "ja",
    }  # two of them found in the text: their source says none
    japanese = said["language"]["ja"]
    assert japanese["words"] == 0 and japanese["tokenizers"]["small"]["tokens_per_word"] is None
    assert said["all"]["words"] == sum(row["words"] for row in said["language"].values())
    en = said["language"]["en"]
    assert en["words"] == sum(
        len(row["text"].split()) for row in rows if row["source"] == "english"
    )
    assert en["tokenizers"]["small"]["tokens_per_word"] == round(
        en["tokenizers"]["small"]["tokens"] / en["words"], 4
    )


def test_the_card_has_the_same_counts(corpus: Corpus) -> None:
    card = corpus.datacard
    table = pq.read_table(corpus.path / "documents").to_pylist()
    for group, column in (("languages", "language"), ("domains", "domain")):
        for name, part in card[group].items():
            mine = [row for row in table if (row[column] or "unknown") == name]
            assert part["bytes"] == sum(row["bytes"] for row in mine)
            assert part["tokens"] == sum(row["tokens"] for row in mine)
    law = card["domains"]["law"]
    assert (
        f'<td class="n">{law["bytes"] / law["tokens"]:.2f}</td>'
        in (corpus.path / "datacard.html").read_text()
    )


def test_pieces_of_characters_and_unknown_tokens() -> None:
    bytes_alone = Tokenizer.train(["a b"], 260)
    spec = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "ab": 1}, "unk_token": "[UNK]"},
    }  # fmt: skip
    words = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)))
    compression = Compression({"bytes": bytes_alone, "words": words})
    table = documents(["ab", "é"], language=["en", "ja"], domain=["x", None], source=["s", "s"])
    compression.add(table.append_column("bytes", pa.array([2, 2])))
    said = compression.report()
    assert [
        said["language"][name]["tokenizers"]["bytes"]["character_pieces"] for name in ("en", "ja")
    ] == [0, 1]
    assert said["all"]["tokenizers"]["bytes"] == {
        "tokens": 4, "bytes_per_token": 1.0, "tokens_per_word": 2.0, "character_pieces": 0.5,
        "unknown": 0.0,
    }  # fmt: skip
    assert (
        said["all"]["tokenizers"]["words"]["unknown"] == 0.5
        and said["vocabulary"]["words"]["unused"] == 0
    )
    assert list(said["domain"]) == ["x", "unknown"]


def counted(tokenizer: Tokenizer, tables: list[list[str]]) -> dict[str, Any]:
    compression = Compression({"it": tokenizer})
    for rows in tables:
        table = documents(
            rows, language=["en"] * len(rows), domain=[None] * len(rows), source=["s"] * len(rows)
        )
        compression.add(
            table.append_column("bytes", pa.array([len(text.encode()) for text in rows]))
        )
    return compression.report()


@given(st.lists(st.text("aé 北\n<|>", max_size=12), min_size=1, max_size=8), st.integers(0, 8))
@settings(deadline=None)
def test_counts_do_not_depend_on_the_tables(corpus: Corpus, rows: list[str], at: int) -> None:
    whole = counted(corpus.tokenizer, [rows])
    cut = [part for part in (rows[:at], rows[at:]) if part]
    assert counted(corpus.tokenizer, cut) == whole
    assert whole["all"]["tokenizers"]["it"]["tokens"] == sum(
        len(corpus.tokenizer.encode(text)) for text in rows
    )


class Known:
    """Stands for a published tokenizer, whose file is too large to keep here: its size, and its ids
    of the probe."""

    def __init__(self, vocab_size: int, ids: list[int]) -> None:
        self.vocab_size, self.ids = vocab_size, ids

    def encode(self, text: str) -> list[int]:
        return self.ids if text == "Hello world 12345" else [0]


def test_published_figures_stand_beside_what_is_theirs(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, run: Callable[..., str]
) -> None:
    gpt2: Any = Known(50_257, [15496, 995, 17031, 2231])
    larger: Any = Known(50_258, gpt2.ids)
    llama3: Any = Known(128_256, [9906, 1917, 220, 4513, 1774])
    assert recognised(gpt2) == "GPT-2" and recognised(larger) is None
    assert recognised(llama3) == "Llama 3"
    assert recognised(corpus.tokenizer) is None
    rows = [row for name in ("GPT-2", "Llama 3") for row in published(name)]
    assert {row.unit for row in rows} == {"bytes", "characters"} and all(
        row.text and row.source for row in rows
    )
    ids = tuple(corpus.tokenizer.encode("Hello world 12345"))
    monkeypatch.setitem(published_module._KNOWN, (400, ids), "Llama 3")
    out = run("inspect", corpus.path / "tokenizer", "--corpus", corpus.path)
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["en"].endswith("3.94 characters") and lines["ru"].endswith(
        "  -"
    )  # none is published for Russian
    assert (
        lines["by"]
        and "arXiv:2407.21783" in out
        and re.search(r"tokenizer +400 .* 4\.40$", lines["tokenizer"])
    )


def test_the_table(corpus: Corpus, run: Callable[..., str]) -> None:
    own, path = corpus.path / "tokenizer", str(corpus.path)
    facts = json.loads(run("inspect", own, "--corpus", path, "--split", "train", "--json"))
    out = run("inspect", own, "--corpus", path, "--split", "train")
    assert out == told(facts) + "\n" and out.startswith(f"train split of {path}: ")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert (
        rows["law"][-1]
        == f"{facts['domain']['law']['tokenizers']['tokenizer']['bytes_per_token']:.2f}"
    )
    assert "published" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("weigh", "no command 'weigh'; commands: train, inspect"),
        ("train", "--corpus: missing; name a corpus folder, or files by --files"),
        ("train --corpus c --files a.txt", "--corpus and --files: name one of them"),
        ("train --corpus nowhere", r"nowhere/datacard\.json: no such file"),
        ("train --files 'no*.txt'", r"no\*\.txt.* matches no file"),
        ("train --files empty.txt", "--files: no usable text in 'empty.txt'"),
        ("train --files a.txt --sample_mb 0", "argument --sample_mb: 0 must be above 0"),
        ("train --files a.txt --sample_mb nan", "argument --sample_mb: nan must be above 0"),
        ("train --files a.txt --vocab_size 100", "argument --vocab_size: 100 must be from 260 to"),
        (
            "train --files a.txt --vocab_size 9000",
            r"vocab_size: the text supports no more than \d+",
        ),
        ("train --files a.txt --vocab 9", "unknown option --vocab: did you mean --vocab_size"),
        ("train --files a.txt --output full", "--output .*full: is not empty; name another folder"),
        ("train --files a.txt --output a.txt/b", "--output .*a.txt/b: cannot be written"),
        ("inspect --files a.txt", "TOKENIZER"),
        ("inspect nowhere --files a.txt", r"nowhere/tokenizer\.json|nowhere: no such file"),
        ("inspect full --files a.txt", r"full/tokenizer\.json: not a tokenizer"),
        ("inspect full --files a.txt --split train", "--split goes with --corpus"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: str,
    message: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "tokenizer.json").write_text("{")
    (tmp_path / "a.txt").write_text("some words " * 20)
    (tmp_path / "empty.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    assert main(["tokenizer", *args.replace("'", "").split()]) == 2
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("lit_llm tokenizer: ")
    ]
    assert len(lines) == 1, lines
    assert re.search(message, lines[0]), lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"full", "a.txt", "empty.txt"}


def test_a_split_or_sample_without_text(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build_corpus(
        tmp_path / "c", sources=str(texts), vocab_size=300, validation_fraction=0, progress=False
    )
    inspect = ["tokenizer", "inspect", str(built.path / "tokenizer"), "--corpus", str(built.path)]
    assert main(inspect) == 0 and capsys.readouterr().out.startswith("train split of")
    assert main([*inspect, "--split", "validation"]) == 2
    assert "has no validation split; it has train" in capsys.readouterr().err
    assert main([*inspect, "--sample_mb", "0.000001"]) == 2
    assert "is too small to contain a document" in capsys.readouterr().err


def test_as_a_command(
    lit_llm_command: Callable[..., CompletedProcess[str]], texts: Path, tmp_path: Path
) -> None:
    made = lit_llm_command(
        "tokenizer", "train", "--files", texts, "--vocab_size", 300, cwd=tmp_path
    )
    assert made.returncode == 0 and made.stdout == f"{tmp_path / 'tokenizer'}\n", made.stderr
    assert "tokenizer: training: " in made.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, lit_llm.cli as cli; cli.main(['tokenizer']); cli.main(['tokenizer', 'train']);"
        "heavy = {'numpy', 'pyarrow', 'tokenizers', 'torch', 'jinja2', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy; cli.main(['tokenizer', 'inspect', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: lit_llm tokenizer COMMAND" in done.stdout and "--against" in done.stdout
    assert "--corpus: missing" in done.stderr
