"""The state machine that splits answers into thoughts, content and calls."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.serve.api.answers.answer_parser import (
    HERMES,
    LLAMA3,
    MISTRAL,
    PLAIN,
    AnswerParser,
    syntax_of,
)
from lit_llm.serve.api.answers.deltas import Message

TOOLS = ("weather", "now")


def parsed(pieces: list[str], **how: Any) -> tuple[Message, AnswerParser]:
    """The message that the deltas of these pieces add up to."""
    numbers = itertools.count()
    parser = AnswerParser(tools=TOOLS, new_id=lambda: f"id{next(numbers)}", **how)
    message = Message()
    for piece in pieces:
        for delta in parser.push(piece):
            message.add(delta)
    for delta in parser.finish():
        message.add(delta)
    return message, parser


def call(name: str, arguments: str, number: int = 0) -> dict[str, str]:
    return {"id": f"id{number}", "name": name, "arguments": arguments}


@pytest.mark.parametrize(
    ("text", "how", "content", "reasoning", "calls"),
    [
        ("hello \n", {}, "hello \n", "", []),
        ("<think>\n a b </think>\n\nhi ", {"reasoning": True}, "hi ", "a b", []),
        ("a b\n</think>x", {"thinking": True}, "x", "a b", []),
        ("never ended", {"thinking": True}, "", "never ended", []),
        ("a <think> b", {"reasoning": True}, "a <think> b", "", []),
        ("<thin", {"reasoning": True}, "<thin", "", []),
        (
            'sure\n<tool_call>\n{"name": "weather", "arguments": {"a": "}\\"{", "b": [{}]}}\n'
            '</tool_call>\n<tool_call>{"arguments": {"b": 1}, "name": "now"}</tool_call>\n',
            {"syntax": HERMES},
            "sure",
            "",
            [call("weather", '{"a": "}\\"{", "b": [{}]}'), call("now", '{"b": 1}', 1)],
        ),
        (
            'x <tool_call>{"name": "unknown", "arguments": {}}</tool_call> y',
            {"syntax": HERMES},
            'x <tool_call>{"name": "unknown", "arguments": {}}</tool_call> y',
            "",
            [],
        ),
        ("x <tool_call> no", {"syntax": HERMES}, "x <tool_call> no", "", []),
        (
            '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "weather", "arguments": '
            '{"a": 1}}]',
            {"syntax": MISTRAL},
            "",
            "",
            [call("now", "{}"), call("weather", '{"a": 1}', 1)],
        ),
        (
            '{"name": "now", "parameters": {"x": "1"}}; {"name": "weather", "parameters": {}}',
            {"syntax": LLAMA3},
            "",
            "",
            [call("now", '{"x": "1"}'), call("weather", "{}", 1)],
        ),
        (
            '<|python_tag|>{"type": "function", "name": "now", "parameters": {"x": 1}}',
            {"syntax": LLAMA3},
            "",
            "",
            [call("now", '{"x": 1}')],
        ),
        ('{"name": "now"}', {"syntax": PLAIN}, "", "", [call("now", "{}")]),
        (
            '{"function": {"name": "now", "arguments": "{\\"a\\": 1}"}}',
            {"syntax": PLAIN},
            "",
            "",
            [call("now", '{"a": 1}')],
        ),
        ('{"answer": {"name": 1}} ok', {"syntax": PLAIN}, '{"answer": {"name": 1}} ok', "", []),
        ('see {"name": "now"}', {"syntax": PLAIN}, 'see {"name": "now"}', "", []),
        ('{"name": "now"', {"syntax": PLAIN}, '{"name": "now"', "", []),
        ('{"name": "now", "arguments": {}}', {"forced": True}, "", "", [call("now", "{}")]),
        ('{"name": "now", "arguments": {}}', {}, '{"name": "now", "arguments": {}}', "", []),
    ],
)
def test_texts(
    text: str, how: dict[str, Any], content: str, reasoning: str, calls: list[dict[str, str]]
) -> None:
    for pieces in ([text], list(text)):
        message, parser = parsed(pieces, **how)
        assert (message.content, message.reasoning, message.calls) == (content, reasoning, calls)
        assert parser.calls == parser.begun == len(calls)


def test_a_call_that_is_cut_off_has_begun_and_is_not_complete() -> None:
    message, parser = parsed(['{"name": "now", "arguments": {"a": 1'], syntax=PLAIN)
    assert message.calls == [call("now", '{"a": 1')]
    assert (parser.begun, parser.calls) == (1, 0)


def test_arguments_are_delivered_while_they_are_written() -> None:
    parser = AnswerParser(tools=TOOLS, syntax=HERMES)
    parser.push('<tool_call>{"name": "now", "arguments": {"text": "a long')
    assert parser.begun == 1
    assert [delta.text for delta in parser.push(" story")] == [" story"]  # type: ignore[union-attr]


PIECES = st.sampled_from(
    [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>",
        '{"name": "now", "arguments": {"a": "\\"}"}}', '{"name": "weather", "parameters": {}}',
        '{"arguments": {}, "name": "now"}', '{"name": "other", "arguments": {}}', "{", "}", "[",
        "]", ",", ";", '"', "\\", "\n", " ", "words", "<", "<tool", "é", "🙂", '{"a": 1}',
    ]
)  # fmt: skip


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([None, HERMES, LLAMA3, MISTRAL, PLAIN]),
    st.sampled_from([{}, {"reasoning": True}, {"thinking": True}]),
)
def test_any_cut_gives_the_same_answer(
    text: str, cuts: list[int], syntax: Any, how: dict[str, Any]
) -> None:
    """And no word that is neither marker nor call gets lost."""
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    whole, _ = parsed([text], syntax=syntax, **how)
    assert parsed(pieces, syntax=syntax, **how)[0] == whole
    assert parsed(list(text), syntax=syntax, **how)[0] == whole
    everything = whole.content + whole.reasoning + json.dumps(whole.calls, ensure_ascii=False)
    assert everything.count("words") >= text.count("words")
    if syntax is None and not how:
        assert whole.content == text


@pytest.mark.parametrize(
    ("template", "syntax"),
    [
        ("... <tool_call>\n{{ call }}", HERMES),
        ("... [TOOL_CALLS]", MISTRAL),
        ('{{ \'{"name": "\' + name + \'", "parameters": \' }}', LLAMA3),
        ("{{ message.content }}", PLAIN),
    ],
)
def test_the_templates_own_syntax(template: str, syntax: Any) -> None:
    assert syntax_of(template) is syntax
