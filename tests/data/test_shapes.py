"""Rows of public datasets: every key that means conversation is used or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lit_llm.data.instructions import to_messages
from lit_llm.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = [USER, ASSISTANT]
SYSTEM = {"role": "system", "content": "s"}
BEFORE = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": PAIR, "system": "s"}, [SYSTEM, *PAIR]),
        ({"messages": [SYSTEM, *PAIR], "system": "s"}, [SYSTEM, *PAIR]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
          "system": "s"},
         [SYSTEM, *PAIR]),
        ({"instruction": "q", "output": "a", "system_prompt": "s"}, [SYSTEM, *PAIR]),
        ({"instruction": "q", "output": "a", "history": [["q0", "a0"]]}, [*BEFORE, *PAIR]),
        ({"prompt": "q", "completion": "a", "history": BEFORE}, [*BEFORE, *PAIR]),
        ({"instruction": "q", "response": "a", "context": "c", "category": "closed_qa"},
         [{"role": "user", "content": "q\n\nc"}, ASSISTANT]),
        ({"messages": None, "prompt": "q", "completion": "a"}, PAIR),
        ({"messages": [], "conversations": None, "question": "q", "answer": "a"}, PAIR),
        ({"prompt": "q", "completion": None, "response": "a"}, PAIR),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, *PAIR]),
        ({"prompt": [*BEFORE, USER], "completion": "a"},
         [BEFORE[0], {**BEFORE[1], "train": False}, *PAIR]),
        ({"question": "q", "answer": "a", "reasoning": "r"},
         [USER, {**ASSISTANT, "reasoning": "r"}]),
        ({"conversations": PAIR}, PAIR),
        ({"conversations": [{"from": "human", "value": "q"},
                            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": '
                                                               '1}}'},
                            {"from": "observation", "value": "o"},
                            {"from": "gpt", "value": "a", "weight": 0}]},
         [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
          {"role": "tool", "content": "o"}, {**ASSISTANT, "weight": 0}]),
        # Further columns, and columns that repeat the conversation.
        ({"messages": PAIR, "prompt": "q", "id": 7, "source": "x", "score": 0.5, "text": "q a"},
         PAIR),
        ({"messages": PAIR, "answer": "42", "history": [], "input": "", "images": None}, PAIR),
        ({"question": "q", "answer": "a", "weight": 1.0, "label": True}, PAIR),
        ({"question": "q", "answer": "a", "train": 1, "training": True, "mask": [], "loss": 0.7},
         PAIR),
        ({"prompt": [*BEFORE[:1], {**BEFORE[1], "training": True}, USER], "completion": "a"},
         [BEFORE[0], {**BEFORE[1], "train": False}, *PAIR]),
        ({"instruction": "q", "output": "a", "system_message": "s"}, [SYSTEM, *PAIR]),
        ({"messages": [SYSTEM, *PAIR], "system_message": "", "system": "s"}, [SYSTEM, *PAIR]),
        ({"instruction": "q", "inputs": "c", "output": "a"},
         [{"role": "user", "content": "q\n\nc"}, ASSISTANT]),
        ({"instruction": "", "input": "q", "output": "a"}, PAIR),
        ({"question": "q", "answer": "a", "choices": ["q", ""]}, PAIR),
        ({"messages": json.dumps(PAIR)}, PAIR),
        ({"conversations": '[{"from": "human", "value": "q"}, {"from": "gpt", "value": '
                           '"a"}]'}, PAIR),
        *(({asked: "q", answered: "a"}, PAIR) for asked, answered in (
            ("prompt", "answer"), ("question", "response"), ("query", "response"),
            ("query", "answer"), ("input", "output"))),
        *(({"conversations": [{"from": user, "value": "q"}, {"from": name, "value": "a"}]}, PAIR)
          for user in ("human", "user")
          for name in ("gpt", "assistant", "bot", "chatgpt", "model", "bing")),
    ],
)  # fmt: skip
def test_what_a_row_says(row: dict[str, Any], messages: list) -> None:
    assert to_messages(row) == messages


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [SYSTEM, *PAIR], "system": "another"}, "'system' and another system message"),
        ({"messages": PAIR, "system": {"a": 1}}, "'system' must be a text"),
        ({"messages": PAIR, "history": [["q0", "a0"]]}, "'history'"),
        ({"messages": PAIR, "instruction": "You are a pirate."}, "'instruction'"),
        ({"messages": [USER], "response": "a"}, "'response'"),
        ({"messages": PAIR, "images": ["a.png"]}, "'images'"),
        ({"messages": PAIR, "documents": [{"text": "x"}]}, "'documents'"),
        ({"messages": PAIR, "conversations": PAIR}, "both 'messages' and 'conversations'"),
        ({"prompt": "q", "completion": "a", "response": "b"}, "'response'"),
        ({"question": "q", "answer": "a", "context": "c"}, "'context'"),
        ({"instruction": ["q"], "input": "i", "output": "a"}, "'instruction' and 'input' must be "
                                                              "texts"),
        ({"prompt": "q", "completion": "a", "label": False}, "not to learn it"),
        *(({"prompt": "q", "completion": "a", key: value}, f"{key!r} .* not to learn "
                                                           f"it") for key, value in (
            ("train", 0), ("train", "no"), ("training", False), ("learn", 0), ("trainable", False),
            ("do_train", 0), ("loss_weight", 0.0), ("loss", False), ("loss", 0), ("mask", True),
            ("masked", 1), ("train_detail", [{"begin_offset": 0}]))),
        ({"question": "q", "answer": "a", "choices": ["x", "y"]}, "'choices'"),
        ({"question": "q", "answer": "a", "choices": {"text": ["x"]}}, "'choices'"),
        ({"question": "q", "answer": "a", "inputs": "c"}, "'inputs'"),
        ({"prompt": "q", "answer": "a", "query": "other"}, "'query'"),
        ({"prompt": "q", "response": "a", "answer": "b"}, "'answer'"),
        ({"question": "q", "answer": "a", "thought": "thinks"}, "'thought'"),
        ({"messages": PAIR, "system_message": "s", "system": "t"}, "both 'system' and "
                                                                   "'system_message'"),
        ({"messages": "hello"}, "'messages' is a text that is not JSON"),
        ({"instruction": "q", "output": "a", "history": "q0"}, "'history' must be a list"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "its keys are prompt, chosen, rejected"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "a text that is not JSON"),
    ],
)  # fmt: skip
def test_what_a_row_must_not_say(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        to_messages(row)


def test_splits_by_their_usual_names() -> None:
    from lit_llm.data.rows.shapes import split_of

    named = {
        name: split_of({"split": name}) for name in ("train", "TRAIN", "training", "train_sft")
    }
    assert set(named.values()) == {"train"}
    held = ("dev", "val", "valid", "validation", "eval", "test", "Test", "test_sft")
    assert {split_of({"split": name}) for name in held} == {"validation"}
    assert {split_of(row) for row in ({}, {"split": None}, {"split": ""})} == {None}
    for wrong in (["train"], 3, "trian", {"a": 1}):
        with pytest.raises(UserError, match="the row has the split"):
            split_of({"split": wrong})


def test_tools_as_list_text_and_in_the_older_form() -> None:
    from lit_llm.data.rows.shapes import template_arguments

    schema = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": schema}
    text = (
        '[{"type": "function", "function": {"name": "f", "parameters": '
        '{"type": "object", "properties": {}}}}]'
    )
    for row in (
        {"tools": [tool]},
        {"tools": text},
        {"tools": [text[1:-1]]},
        {"functions": [schema]},
    ):
        assert template_arguments(row) == {"tools": [tool]}
    for row in ({}, {"tools": None}, {"tools": []}, {"tools": ""}, {"tools": "[]"}):
        assert template_arguments(row) == {}
    given = {"tools": [tool], "chat_template_kwargs": {"enable_thinking": False, "effort": None}}
    assert template_arguments(given) == {"tools": [tool], "enable_thinking": False}
    for row, said in (
        ({"tools": "hammer"}, "'tools' is a text that is not JSON"),
        ({"tools": {"a": 1}}, "'tools' must be a list"),
        ({"tools": [{"type": "function"}]}, "tool 1 must be a JSON schema"),
        ({"tools": [tool], "functions": [schema]}, "both 'tools' and 'functions'"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' must be an object"),
    ):
        with pytest.raises(UserError, match=said):
            template_arguments(row)
