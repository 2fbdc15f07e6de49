"""``lit_llm inspect CONFIG``: examples as a run learns them, and warnings about them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from lit_llm.cli import main
from lit_llm.models.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(question: str, answer: str, **fields: object) -> dict:
    return {"messages": [{"role": "user", "content": question},
                         {"role": "assistant", "content": answer}], **fields}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finetuning config whose data has everything that is warned of."""
    loop = "this line stands here again\n" * 4
    rows = [
        talk("one", "first answer"),
        talk("half", "heavy", weight=0.5),
        talk("two", "same answer"),
        talk("three", "same answer"),
        talk("four", "<think>\n\n</think>\n\nno thoughts"),
        talk("five", loop),
        talk("six", "with a tool", tools=[TOOL]),
        talk("long " * 200, "x"),
        talk("colour \x1b[31m", "y"),
        {"segments": [{"text": "<|endoftext|><|endoftext|>bos twice"}]},
        talk("held", "out", split="validation"),
    ]
    rows = [{"split": "train", **row} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {class_path: lit_llm.SFTModule, init_args: {init_from: " + str(corpus / "tokenizer")
        + "}}\ndata:\n  class_path: lit_llm.InstructionDataModule\n  init_args:\n"
        f"    sources: {tmp_path / 'rows.jsonl'}\n    chat_template: {tmp_path / 't.jinja'}\n"
        f"    seq_len: 256\n    cache_dir: {tmp_path / 'cache'}\n"
    )  # fmt: skip
    return file


def test_examples_with_what_is_learnt(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(config), "--examples", "9"]) == 0
    told = capsys.readouterr().out
    assert "9 for training, 1 for validation" in told
    assert "[[heavy<|im_end|> (weight 0.5)]]" in told
    assert "<|im_start|>assistant\n[[first answer<|im_end|>]]\n" in told
    assert "tools: look_up" in told and '"name": "look_up"' in told
    assert "1 examples are longer than data.seq_len allows and were left out" in told
    for warning in (
        "1 of 9 examples begin with two bos tokens",
        "1 of 9 examples learn an empty block of thoughts",
        "2 of 9 examples have an answer that another example has too",
        "1 of 9 answers repeat a line 3 times or more",
    ):
        assert f"warning    {warning}" in told
    assert "no token that ends" not in told


def test_json_and_settings_that_follow(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(config), "--json", "--examples", "2", "--data.seq_len", "128",
                 "--data.train_on=last", "--data.too_long", "cut"]) == 2  # fmt: skip
    assert "rows.jsonl:8: the prompt alone takes" in capsys.readouterr().err
    assert main(["inspect", str(config), "--json", "--examples", "2",
                 "--data.seq-len", "128"]) == 0  # fmt: skip
    facts = json.loads(capsys.readouterr().out)
    assert facts["seq_len"] == 128 and len(facts["rendered"]) == 2
    first = facts["rendered"][0]
    text = "".join(run["text"] for run in first["runs"])
    assert text.endswith("first answer<|im_end|>") and first["id"].endswith("rows.jsonl:1")
    assert [run["text"] for run in first["runs"] if run["learnt"]] == ["first answer<|im_end|>"]


def test_colours_on_a_terminal(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    assert main(["inspect", str(config), "--examples", "8"]) == 0
    told = capsys.readouterr().out
    assert "\033[32mfirst answer<|im_end|>\033[0m" in told and "[[" not in told
    # What the data hold of control characters does not reach the terminal.
    assert set(re.findall(r"\x1b\[\d+m", told)) == {"\033[32m", "\033[2m", "\033[0m"}


def test_a_template_that_teaches_no_end(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    given = ["--data.bad_rows", "skip"]
    assert main(["inspect", str(config), *given]) == 0
    told = capsys.readouterr().out
    assert "the chat template ends no answer with a token that ends a text" in told
    assert "1 rows are bad and were left out, 1 because: the chat template leaves out" in told


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["CONFIG", "--examples", "0"], "--examples"),
        (["CONFIG", "--data.seqlen", "3"], "unknown key data.seqlen; known are sources,"),
        (["CONFIG", "--data.seq_len"], "--data.seq_len: a value is missing"),
        (["CONFIG", "--data.seq_len", "many"], "data.seq_len must be int, got 'many'"),
        (["pretrain/quickstart"], "data is lit_llm.PretrainDataModule"),
        (["corpus/stdlib"], "a preset of lit_llm corpus build"),
        (["nowhere.yaml"], "no such file or preset"),
        (["TOKENIZER", "--examples", "3"], "--examples and --data.KEY belong to a finetuning"),
        (["TOKENIZER", "--data.seq_len", "3"], "--examples and --data.KEY belong to a finetuning"),
    ],
)
def test_what_cannot_be_inspected(
    config: Path, corpus: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    names = {"CONFIG": str(config), "TOKENIZER": str(corpus / "tokenizer")}
    assert main(["inspect", *(names.get(arg, arg) for arg in args)]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_the_tokenizer_is_that_of_the_model(config: Path, corpus: Path) -> None:
    from lit_llm.terminal.inspect_data import _data_module

    found = _data_module(str(config), {"data": {}, "model": {}}).tokenizer
    assert found.fingerprint() == Tokenizer.from_pretrained(corpus / "tokenizer").fingerprint()
