"""Bad inputs: the line that a run prints, exit status 2, nothing written; and what skip counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_instructions import chat, module

from lit_llm.cli import main
from lit_llm.data.rows.row_files import LONGEST_LINE

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    function = {"name": "look_up", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"function": function, **fields}]}


HEAD = (
    "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('not this one') }}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES_TOOLS = "{% if tools %}{{ raise_exception('no tools here') }}{% endif %}" + HEAD
# It mentions tools and renders no name of one.
DROPS_TOOLS = "{% if tools %}You have tools.{% endif %}" + HEAD

# What is wrong with the row, the row (an object, or the bytes of a line), what is said of it, and
# the chat template if the row is wrong for one.
BAD: list[tuple[str, Any, str, str | None]] = [
    ("no role", {"messages": [{"content": "q"}, ASSISTANT]},
     "message 1 must be an object with 'role' and 'content'", None),
    ("no content", {"messages": [USER, {"role": "assistant"}]},
     "message 2 has neither content nor tool_calls", None),
    ("an unknown role", {"messages": [{"role": "narrator", "content": "q"}, ASSISTANT]},
     "message 1 has role 'narrator'; roles are system, user", None),
    ("messages of a wrong type", {"messages": {"role": "user"}},
     "'messages' must be a list of {role, content} and not empty", None),
    ("content of a wrong type", {"messages": [{"role": "user", "content": 3}, ASSISTANT]},
     "message 1 has content of type int, not text", None),
    ("arguments that are not JSON", {"messages": [USER, call("{x: 1")]},
     "message 2: the arguments of tool call 1 are a text that is not JSON", None),
    ("arguments that are no object", {"messages": [USER, call("[1]")]},
     "message 2: the arguments of tool call 1 must be an object or JSON text of one", None),
    ("arguments nested without end", {"messages": [USER, call("[" * 100_000)]},
     "message 2: the arguments of tool call 1 are a text that is not JSON", None),
    ("half a character in arguments", {"messages": [USER, call('{"a": "\\ud83d"}')]},
     "message 2: the arguments of tool call 1.a holds the lone surrogate \\ud83d", None),
    ("messages as a text without end", {"messages": "[" * 100_000},
     "'messages' is a text that is not JSON", None),
    ("a call without a name", {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]},
     "message 2: tool call 1 must be", None),
    ("a tool's answer without a call",
     {"messages": [USER, ASSISTANT, {"role": "tool", "content": "42"}, ASSISTANT]},
     "message 3 is a tool's answer, but message 2 calls no tool", None),
    ("a tool's answer to another call",
     {"messages": [USER, call({}, id="a"), {"role": "tool", "content": "42", "tool_call_id": "b"}]},
     "message 3 answers the tool call 'b', which message 2 does not make", None),
    ("a call that nobody answers", {"messages": [USER, call({}), USER, ASSISTANT]},
     "message 3 is the user's where the tool's answer to message 2 is expected", None),
    ("a template that raises", {"messages": [{**USER, "content": "bad"}, ASSISTANT]},
     "the chat template refuses the messages: not this one", HEAD),
    ("a template that refuses tools", {"messages": [USER, ASSISTANT], "tools": [TOOL]},
     "the chat template refuses the messages: no tools here", REFUSES_TOOLS),
    ("a template that drops tools", {"messages": [USER, ASSISTANT], "tools": [TOOL]},
     "the chat template leaves out the tools", DROPS_TOOLS),
    ("a template that takes no tools", {"messages": [USER, ASSISTANT], "tools": [TOOL]},
     "the chat template leaves out the tools", HEAD),
    ("tools that are not JSON", {"messages": [USER, ASSISTANT], "tools": "[{"},
     "'tools' is a text that is not JSON", None),
    ("an image", {"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]},
     "message 1: part 1 of its content has the type 'image'; only text can be used", None),
    ("a column of images", {"messages": [USER, ASSISTANT], "images": ["a.png"]},
     "the row has 'images', a part of the conversation that its other keys do not use", None),
    ("an empty answer", {"messages": [USER, {**ASSISTANT, "content": " \n"}]},
     "message 2: the answer is empty", None),
    ("no answer", {"messages": [USER]}, "no supervised token: the assistant says nothing", None),
    ("no learnt answer", {"messages": [USER, {**ASSISTANT, "weight": 0}]},
     "no supervised token: all of it is marked as not learnt", None),
    ("no learnt segment", {"segments": [{"text": "a b", "train": False}]},
     "no supervised token: all of it is marked as not learnt", None),
    ("a file of splits", {"train": [{"messages": [USER, ASSISTANT]}], "validation": [{"a": 1}]},
     "an object with rows in 'train', 'validation', not a row", None),
    ("a file of rows below a key", {"data": [{"messages": [USER, ASSISTANT]}]},
     "an object with rows in 'data', not a row", None),
    ("invalid JSON", b'{"messages": [', "not valid JSON; mend the line or take it out", None),
    ("no object", b'["q", "a"]', "not a JSON object; mend the line or take it out", None),
    ("a line of 10 MB", b'{"prompt": "' + b"x" * 10_000_000 + b'", "completion": "a"}',
     f"a line of more than {LONGEST_LINE:,} bytes; split it or take it out", None),
    ("not UTF-8", b'{"prompt": "\xff", "completion": "a"}',
     "not UTF-8; mend the line or take it out", None),
    ("half a character", {"prompt": "\ud83d", "completion": "a"},
     "message 1.content holds the lone surrogate", None),
    ("a preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, "a preference row", None),
    ("no conversation", {"dialog": [USER, ASSISTANT]},
     "no conversation in the row: 'messages' (or", None),
]  # fmt: skip


def written(folder: Path, row: Any) -> Path:
    """A file whose tenth line is the bad row, and an eleventh that is good."""
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    good = [json.dumps(chat(n)).encode() for n in range(10)]
    file = folder / "a.jsonl"
    file.write_bytes(b"\n".join([*good[:9], line, good[9]]) + b"\n")
    return file


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A tiny model with a tokenizer."""
    import torch

    import lit_llm

    folder = tmp_path_factory.getbasetemp() / "bad-rows-base"
    if not folder.exists():
        tokenizer = lit_llm.Tokenizer.from_pretrained(tokenizer_folder)
        torch.manual_seed(0)
        config = lit_llm.TransformerConfig(
            vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=1, num_heads=2,
            max_seq_len=128,
        )  # fmt: skip
        lit_llm.Transformer(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("row", "said", "template"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_one_line_and_nothing_written(
    row: Any,
    said: str,
    template: str | None,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = written(tmp_path, row)
    given = ["--data.sources", str(file), "--data.seq_len", "64", "--plan", "false"]
    if template is not None:
        (tmp_path / "t.jinja").write_text(template)
        given += ["--data.chat_template", str(tmp_path / "t.jinja")]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    cache = tmp_path / "cache"
    run = ["fit", "--config", "finetune/quickstart", "--model.init_from", str(base), *given]
    assert main([*run, "--data.cache_dir", str(cache)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit_llm ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"lit_llm fit: {file}:10: {said}")
    assert not [path for path in here.rglob("*") if path.is_file()]
    assert not list(cache.rglob("datacard.json")) and not list(cache.rglob("*.npy"))


@pytest.mark.parametrize(
    ("row", "said", "template"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_skip_counts_and_goes_on(
    row: Any, said: str, template: str | None, tmp_path: Path, tokenizer_folder: Path
) -> None:
    file = written(tmp_path, row)
    if template is not None:
        (tmp_path / "t.jinja").write_text(template)
    given = {} if template is None else {"chat_template": str(tmp_path / "t.jinja")}
    data = module(tmp_path, tokenizer_folder, str(file), bad_rows="skip", **given)
    card = json.loads(data.datacard_file.read_text())
    ((reason, count),) = card["dropped"].items()
    assert reason.startswith(said) and count == 1
    assert sum(split["examples"] for split in card["splits"].values()) == 10


def test_no_example_is_left(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"messages": [USER]}] * 3 + [{"prompt": "x " * 400, "completion": "a"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    run = ["fit", "--config", "finetune/quickstart", "--model.init_from", str(base),
           "--data.sources", "a.jsonl", "--data.bad_rows", "skip", "--data.rehearsal", "0",
           "--plan", "false", "--data.cache_dir", "cache"]  # fmt: skip
    assert main(run) == 2
    told = capsys.readouterr().err
    assert "data.sources: no example for train in 'a.jsonl'; 0 rows can be used; 3 are bad" in told
    assert "1 are longer than data.seq_len=256 allows" in told
    assert not list(tmp_path.rglob("datacard.json"))
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
