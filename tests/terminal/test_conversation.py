"""Conversation: answers equal plain generation, history is kept, trimmed and cut as promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_llm.errors import UserError
from lit_llm.models.generation import generate as generation
from lit_llm.models.generation.generate import generate
from lit_llm.models.generation.sampling import GREEDY, Sampling
from lit_llm.models.hub.checkpoint import load_model
from lit_llm.terminal.conversation import Conversation


def start(chat_model: Path, **settings: Any) -> Conversation:
    return Conversation(
        *load_model(chat_model), **{"max_new_tokens": 12, "sampling": GREEDY, **settings}
    )


def test_turns_equal_plain_generation_of_the_whole_history(chat_model: Path) -> None:
    for system in (None, "be brief"):
        talk = start(
            chat_model, system=system, sampling=Sampling(temperature=0.9, top_p=0.95), seed=4
        )
        opening = [] if system is None else [{"role": "system", "content": system}]
        for turn, text in enumerate(["hello", "what is a café?", "北京 🙂"]):
            prompt = talk.format.prompt_ids(
                [*opening, *talk.history, {"role": "user", "content": text}]
            )
            answer = "".join(talk.ask(text))
            ids = generate(
                talk.model,
                [prompt],
                12,
                talk.sampling,
                seed=4 + turn,
                stop_ids=talk.format.stop_ids,
            )[0]
            assert answer == talk.tokenizer.decode(ids)
            assert talk.history[-2:] == [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer},
            ]
        assert len(talk.history) == 6 and talk.dropped == 0
        talk.reset()
        assert talk.history == []


def test_a_later_turn_does_not_feed_the_earlier_prompt_again(chat_model: Path) -> None:
    talk = start(chat_model)
    fed: list[int] = []
    talk.model.embed.register_forward_pre_hook(lambda module, args: fed.append(args[0].shape[1]))
    "".join(talk.ask("hello what is the system? hello what is the system?"))
    first = fed[0]
    fed.clear()
    whole = talk.format.prompt_ids([*talk.history, {"role": "user", "content": "hi"}])
    "".join(talk.ask("hi"))
    # The answer's bytes may be spelled with other tokens than they were sampled
    assert fed[0] <= len(whole) - first


def test_stop_string(chat_model: Path) -> None:
    whole = "".join(start(chat_model).ask("hello"))
    stop = whole[4:7]
    talk = start(chat_model, stop=[stop])
    assert "".join(talk.ask("hello")) == whole[: whole.index(stop)] == talk.history[-1]["content"]


def test_leaving_an_answer_keeps_its_part(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "".join(start(chat_model).ask("hello"))
    talk = start(chat_model)
    answer = talk.ask("hello")
    part = next(answer)
    answer.close()
    assert whole.startswith(part) and part != whole
    assert talk.history == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": part},
    ]

    step, calls = generation._step, []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(*args)

    talk, part = start(chat_model), ""
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for piece in talk.ask("hello"):
                part += piece
    assert part and whole.startswith(part) and talk.history[-1]["content"] == part
    # The conversation goes on as if that had been the answer.
    fresh = start(chat_model)
    fresh.history = list(talk.history)
    assert "".join(talk.ask("and now?")) == "".join(fresh.ask("and now?"))


def test_oldest_turns_go_first_and_the_system_message_stays(chat_model: Path) -> None:
    talk = start(chat_model, system="be brief", max_new_tokens=20)
    for turn in range(12):
        "".join(talk.ask(f"question {turn}: what is a café in 北京?"))
        prompt = [{"role": "system", "content": "be brief"}, *talk.history]
        assert talk.history[0]["role"] == "user" and len(talk.history) % 2 == 0
        assert len(talk.history) // 2 + talk.dropped == turn + 1
        assert talk.history[-2]["content"].startswith(f"question {turn}:")
        assert talk.history[0]["content"].startswith(f"question {talk.dropped}:")
        rendered = talk.format.prompt_ids(prompt[:-1])
        assert len(rendered) + 20 <= talk.model.config.max_seq_len
    assert talk.dropped > 0 and len(talk.history) >= 4


def test_a_message_beyond_the_context(chat_model: Path) -> None:
    # Longer than the context: the context ends the answer
    talk = start(chat_model, max_new_tokens=10_000)
    "".join(talk.ask("hello"))
    history = list(talk.history)
    with pytest.raises(UserError, match=r"takes \d+ tokens; the model's context has 192"):
        talk.ask("zz" * 400)
    assert talk.history == history and talk.dropped == 0
    long = "zz" * 60  # over half of the context, so less than the reserve is left for its answer
    assert 0 < len(talk.tokenizer.encode("".join(talk.ask(long)))) < 100


def test_settings_are_checked_at_once(chat_model: Path, tmp_path: Path) -> None:
    for bad in ({"max_new_tokens": 0}, {"stop": [""]}):
        with pytest.raises(UserError):
            start(chat_model, **bad)
    model, tokenizer = load_model(chat_model)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        Conversation(model, tokenizer)
