"""lit_llm generate: one prompt streamed, several in batches, JSON, chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_llm.errors import UserError
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.models.tokenizer import IM_END, IM_START
from lit_llm.terminal import completion
from lit_llm.terminal.completion import generate_main

PROMPTS = ["the café", "what is 北京", "hello"]


def expected(chat_model: Path, prompts: list[str], length: int = 8) -> list[str]:
    model, tokenizer = load_model(chat_model)
    encoded = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    ids = generate(model, encoded, length, GREEDY, stop_ids=[tokenizer.eos_id])
    return [tokenizer.decode(row) for row in ids]


def run(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    generate_main(["--max_new_tokens", "8", *map(str, args)])
    return capsys.readouterr().out


def test_one_prompt_and_several(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = expected(chat_model, PROMPTS)
    assert run(capsys, chat_model, "--prompt", PROMPTS[0]) == PROMPTS[0] + texts[0] + "\n"
    together = "".join(f"{prompt}{text}\n\n" for prompt, text in zip(PROMPTS, texts, strict=True))
    assert run(capsys, chat_model, *(f"--prompt={prompt}" for prompt in PROMPTS)) == together
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS[1:]))
    assert run(capsys, chat_model, "--prompt", PROMPTS[0], "--file", tmp_path / "p.txt") == together
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    assert run(capsys, chat_model, "--file", tmp_path / "p.jsonl") == together


def test_json_rows_whatever_the_batches(
    chat_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [chat_model, "--json", *(f"--prompt={prompt}" for prompt in PROMPTS)]
    rows = [json.loads(line) for line in run(capsys, *args).splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["text"] for row in rows] == expected(chat_model, PROMPTS)
    assert all(
        row["tokens"] <= 8 and (row["tokens"] == 8) == (row["finish"] == "length") for row in rows
    )
    monkeypatch.setattr(completion, "BATCH", 2)
    assert [json.loads(line) for line in run(capsys, *args).splitlines()] == rows


def test_stop_string_streamed_and_batched(
    chat_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = expected(chat_model, PROMPTS[:1])[0]
    stop = text[3:6]
    cut = text[: text.index(stop)]
    assert (
        run(capsys, chat_model, "--prompt", PROMPTS[0], "--stop", stop) == PROMPTS[0] + cut + "\n"
    )
    row = json.loads(run(capsys, chat_model, "--prompt", PROMPTS[0], "--json", "--stop", stop))
    assert row["text"] == cut and row["finish"] == "stop" and row["tokens"] < 8


def test_chat_wraps_the_prompt(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(chat_model)
    wrapped = f"{IM_START}user\nhello{IM_END}\n{IM_START}assistant\n"
    stops = [tokenizer.eos_id, tokenizer.encode(IM_END, allow_special=True)[0]]
    ids = generate(
        model, [tokenizer.encode(wrapped, allow_special=True)], 8, GREEDY, stop_ids=stops
    )[0]
    answer = tokenizer.decode(ids)
    assert run(capsys, chat_model, "--prompt", "hello", "--chat") == answer + "\n"
    both = run(capsys, chat_model, "--prompt", "hello", "--prompt", "hello", "--chat")
    assert both == f"> hello\n{answer}\n\n" * 2


def test_the_context_ends_an_answer(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    generate_main([str(chat_model), "--prompt", "zz" * 60, "--max_new_tokens", "5000", "--json"])
    row = json.loads(capsys.readouterr().out)
    prompt = len(load_model(chat_model)[1].encode("zz" * 60)) + 1
    assert row["tokens"] == 192 - prompt or row["finish"] == "stop"
    with pytest.raises(
        UserError, match=r"the prompt 'zzzz.*' takes \d+ tokens; the model's context has 192"
    ):
        generate_main([str(chat_model), "--prompt", "zz" * 200])


def test_mistakes(chat_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to continue"):
        generate_main([str(chat_model)])
    with pytest.raises(UserError, match=r"absent\.txt"):
        generate_main([str(chat_model), "--file", str(tmp_path / "absent.txt")])


def test_prompts_that_would_be_sent_in_part_or_not_at_all(chat_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    for row, said in (
        ({"prompt": "hello", "system": "be brief"}, "line 1: 'system' is not sent"),
        ({"prompt": "hello", "history": [["a", "b"]]}, "line 1: 'history' is not sent"),
        ({"prompt": "Hi \ud83d"}, r"line 1: 'prompt' holds the lone surrogate \\ud83d"),
    ):
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=said):
            generate_main([str(chat_model), "--file", str(file)])
    with pytest.raises(UserError, match=r"--prompt: not UTF-8: '.udcff'"):
        generate_main([str(chat_model), "--prompt", "\udcff"])
