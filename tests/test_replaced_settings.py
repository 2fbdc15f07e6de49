"""Settings that take the place of others: refused by name where both are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_llm.cli import main
from lit_llm.data.instructions import InstructionDataModule
from lit_llm.data.pretrain import PretrainDataModule
from lit_llm.errors import UserError
from lit_llm.training.pretrain import PretrainModule

SHAPE = {"hidden_size": 32, "num_heads": 2, "num_layers": 1}
TINY: dict[str, Any] = {
    "model": {"class_path": "lit_llm.PretrainModule", "init_args": {"transformer": SHAPE}},
    "data": {
        "class_path": "lit_llm.PretrainDataModule",
        "init_args": {"seq_len": 32, "micro_batch_size": 2, "tokens": 128},
    },
    "trainer": {"accelerator": "cpu", "limit_val_batches": 1},
}


def written(**data: object) -> str:
    config = {**TINY, "data": {**TINY["data"], "init_args": {**TINY["data"]["init_args"], **data}}}
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    return "mine.yaml"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("in_file", "typed", "one", "other"),
    [
        ({}, ["--data.corpus", "CORPUS", "--data.sources", "no/*.txt"], "data.corpus",
         "data.sources"),
        ({}, ["--data.corpus=CORPUS", "--data.sources.wiki=x"], "data.corpus", "data.sources"),
        ({}, ["--data.corpus=CORPUS", "--data.vocab-size", "4096"], "data.corpus",
         "data.vocab_size"),
        ({"corpus": "CORPUS", "sources": "no/*.txt"}, [], "data.corpus", "data.sources"),
        ({"corpus": "CORPUS", "text_field": "body"}, [], "data.corpus", "data.text_field"),
        ({"tokenizer": "x", "vocab_size": 300}, [], "data.tokenizer", "data.vocab_size"),
        (
            {},
            ["--model.init_from", "x", "--model.transformer", "nano-5m"],
            "model.init_from",
            "model.transformer",
        ),
    ],
)  # fmt: skip
def test_both_are_refused_by_name(
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    in_file: dict,
    typed: list[str],
    one: str,
    other: str,
) -> None:
    config = written(**{k: str(corpus) if v == "CORPUS" else v for k, v in in_file.items()})
    args = [word.replace("CORPUS", str(corpus)) for word in typed]
    assert main(["fit", "--config", config, *args]) == 2
    said = capsys.readouterr().err
    assert f"{one} and {other}: {one} takes the place of {other}" in said
    assert not list(Path().glob("runs/*"))


def test_the_command_line_wins_over_the_file_and_says_so(
    tmp_path: Path, corpus: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(corpus=str(corpus))
    assert main(["fit", "--config", config, "--data.sources", "no/such/*.txt"]) == 2
    said = capsys.readouterr().err
    assert f"--data.sources takes the place of data.corpus={corpus} in mine.yaml" in said
    assert "'no/such/*.txt' matches no file" in said
    config = written(sources="no/such/*.txt", vocab_size=300)
    assert main(["fit", "--config", config, "--data.corpus", str(corpus)]) == 0
    said = capsys.readouterr().err
    assert "--data.corpus takes the place of data.sources=no/such/*.txt in mine.yaml" in said
    assert "--data.corpus takes the place of data.vocab_size=300" in said


def test_in_python(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.corpus and data\.sources"):
        PretrainDataModule(corpus=str(corpus), sources="stdlib")
    with pytest.raises(UserError, match=r"data\.tokenizer and data\.vocab_size"):
        PretrainDataModule(tokenizer=str(corpus / "tokenizer"), vocab_size=300)
    with pytest.raises(UserError, match=r"data\.validation and data\.validation_fraction"):
        InstructionDataModule(validation="a.jsonl", validation_fraction=0.2)
    with pytest.raises(UserError, match=r"model\.init_from and model\.transformer"):
        PretrainModule(SHAPE, init_from=str(tmp_path))


def test_a_corpus_build_with_tokenizer_and_vocabulary(
    corpus: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--input", str(text_folder), "--output", "made", "--vocab_size", "300"]
    assert main(["corpus", "build", *args, "--tokenizer", str(corpus / "tokenizer")]) == 2
    assert "tokenizer and vocab_size" in capsys.readouterr().err


def test_no_config_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--data.corpus", "x"], ["--model", "lit_llm.PretrainModule"]):
        assert main(["fit", *args]) == 2
        said = capsys.readouterr().err
        assert "give --config FILE or a preset" in said and "finetune/quickstart" in said


def test_a_suggestion_is_never_the_word_that_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "--config", "finetune/quickstart", "--data.corpus", "x"]) == 2
    said = capsys.readouterr().err
    assert "unknown key data.corpus" in said and "did you mean data.corpus" not in said
