"""lit_llm chat: pipes, a terminal, its commands, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.models.generation import generate as generation
from lit_llm.models.generation.sampling import GREEDY, Sampling
from lit_llm.models.generation.text_stream import TextStream
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.terminal.chat import chat_main
from lit_llm.terminal.conversation import Conversation

SHORT = ["--max_new_tokens", "10", "--temperature", "0"]


def answers(chat_model: Path, *lines: str, **settings: Any) -> list[str]:
    talk = Conversation(
        *load_model(chat_model), **{"max_new_tokens": 10, "sampling": GREEDY, **settings}
    )
    return ["".join(talk.ask(line)) for line in lines]


def chat(monkeypatch: pytest.MonkeyPatch, text: str, *args: object) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    chat_main([str(arg) for arg in args])


def test_a_pipe_gets_answers_and_nothing_else(chat_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lit_llm", "chat", str(chat_model), "--max_new_tokens", "10",
         "--seed", "7"],
        input="hello\n\nwhat is 北京? \ud83d\n/exit\nnever asked\n".encode(
            "utf-8", "surrogatepass"
        ),
        capture_output=True, timeout=120, check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    # A lone surrogate is no UTF-8: three bytes, three marks.
    expected = answers(
        chat_model,
        "hello",
        "what is 北京? \ufffd\ufffd\ufffd",
        sampling=Sampling(temperature=0.7, top_p=0.95),
        seed=7,
    )
    assert done.stdout.decode() == "".join(answer + "\n" for answer in expected)
    assert done.stderr == b""


def test_commands(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat(monkeypatch, "/help\nhello\n/reset\nhello\n/resets\n", chat_model, *SHORT)
    shown = capsys.readouterr()
    first = answers(chat_model, "hello")[0]
    second = answers(chat_model, "hello", "/resets")[1]  # not a command: sent
    assert shown.out == f"{first}\n{first}\n{second}\n"
    assert "/exit" in shown.err and "forgotten" in shown.err and "\033" not in shown.err


def test_options_reach_the_model(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = answers(chat_model, "hello", system="be brief")[0]
    chat(
        monkeypatch,
        "hello\n",
        chat_model,
        *SHORT,
        "--system",
        "be brief",
        "--stop",
        "absent",
        whole[3:5],
    )
    assert capsys.readouterr().out == whole[: whole.index(whole[3:5])] + "\n"


def test_ctrl_c_stops_the_answer_alone(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, calls = generation._step, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(generation, "_step", interrupted)
    chat(monkeypatch, "hello\nhello again\n", chat_model, *SHORT)
    out = capsys.readouterr().out
    monkeypatch.undo()
    talk = Conversation(*load_model(chat_model), max_new_tokens=5, sampling=GREEDY)
    tokens = generation.stream(
        talk.model, talk.format.prompt_ids([{"role": "user", "content": "hello"}]), 5, GREEDY
    )
    text = TextStream(talk.tokenizer)
    part = "".join(text.push(token) for token in tokens)
    talk.history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": part}]
    talk.max_new_tokens = 10
    assert out == f"{part} ...\n" + "".join(talk.ask("hello again")) + "\n"


def test_a_full_context_is_told_once(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "what is a café in 北京?\n" * 12 + "zz" * 400 + "\nhello\n"
    with pytest.raises(UserError, match="1 of the messages got no answer"):  # exit status 2
        chat(monkeypatch, lines, chat_model, *SHORT)
    shown = capsys.readouterr()
    assert shown.err.count("the context is full") == 1
    assert shown.err.count("the model's context has 192") == 1  # and the talk went on
    assert len(shown.out) > 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_prompted(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["hello", KeyboardInterrupt, "hello", EOFError])
    prompts = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", Terminal())
    chat_main([str(chat_model), *SHORT])
    shown = capsys.readouterr()
    first, second = answers(chat_model, "hello", "hello")
    assert prompts == ["> "] * 4 and shown.out == f"{first}\n\n{second}\n\n"
    assert "0.0M parameters on cpu; /help" in shown.err


def test_a_template_that_rewrites_earlier_turns(
    chat_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thoughts of earlier answers are left out, as in Qwen3: every turn is asked as a server would
    ask it."""
    folder = tmp_path / "thinks"
    shutil.copytree(chat_model, folder)
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}<think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
        "%}<|im_start|>assistant\n{% endif %}"
    )
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nhello again\n"))
    assert main(["chat", str(folder), *SHORT]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2
    refuses = "{% if messages | length > 1 %}{{ raise_exception('no more') }}{% endif %}" + template
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": refuses}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nhello again\n"))
    assert main(["chat", str(folder), *SHORT]) == 2
    assert (
        "refuses the messages: no more\nlit_llm chat: 1 of the messages" in capsys.readouterr().err
    )


def test_mistakes(chat_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such file"):
        chat_main([str(tmp_path / "absent")])
    with pytest.raises(UserError, match="top_p"):
        chat_main([str(chat_model), "--top_p", "2"])
    with pytest.raises(UserError, match="unknown option --sytem: did you mean --system"):
        chat_main([str(chat_model), "--sytem", "x"])
