"""What of a conversation is learnt: which answers, and what happens to their thoughts."""

from __future__ import annotations

from typing import Any

from lit_llm.data.chat.messages import REASONING, split_thoughts, text_of, thoughts_of
from lit_llm.data.chat.template import Message
from lit_llm.data.rows.policy import RowPolicy
from lit_llm.errors import UserError

_MARKS = ("train", "training", "weight")


def prepare(messages: Any, policy: RowPolicy, knows_reasoning: bool) -> Any:
    """The messages with the marks and thoughts that the policy asks for.

    - ``split_reasoning`` "auto": a ``<think>`` block at the head of an answer becomes
      ``reasoning_content`` if the template knows that field.
    - ``reasoning`` "drop" takes thoughts out, and "mask" marks them with ``train_reasoning`` false.
    - ``train_on`` marks the answers that are not learnt with ``train`` false.

    What is not a conversation is returned as it is: `read_turns` says what is wrong with it.
    """
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        return messages
    messages = [_with_thoughts(message, policy, knows_reasoning) for message in messages]
    answers = [n for n, message in enumerate(messages) if message.get("role") == "assistant"]
    if policy.train_on == "last":
        for n in answers[:-1]:
            messages[n] = not_learnt(messages[n])
    elif policy.train_on == "none-but-marked":
        for n in answers:
            messages[n] = _only_marked(messages[n])
    return messages


def check_answers(messages: list[Message]) -> None:
    """Raise UserError for an answer that is learnt and says nothing.

    It has no text, no thoughts and no tool call, so a model would learn to be silent.
    """
    for number, message in enumerate(messages, 1):
        learnt = all(message.get(key) not in (0, False) for key in _MARKS)
        if message.get("role") != "assistant" or not learnt:
            continue
        calls = message.get("tool_calls") or message.get("function_call")
        if not calls and not text_of(message).strip() and not thoughts_of(message).strip():
            raise UserError(
                f"message {number}: the answer is empty; take it out, or mark it with "
                "'train': false"
            )


def why_nothing(messages: list[Message] | None) -> str:
    """Why no token of these messages is learnt; None: of a text without turns."""
    answers = [m for m in messages or () if m.get("role") not in ("system", "developer", "user")]
    if messages is None or any(m.get(key) in (0, False) for m in answers for key in _MARKS):
        return "all of it is marked as not learnt (train, weight, data.train_on); take the row out"
    return "the assistant says nothing"


def _with_thoughts(message: Message, policy: RowPolicy, knows_reasoning: bool) -> Message:
    if message.get("role") != "assistant":
        return message
    content = message.get("content")
    own = any(message.get(key) is not None for key in REASONING)
    if isinstance(content, str) and content.lstrip().startswith("<think>"):
        thoughts, words = split_thoughts(message)
        closed = words != content
        if policy.reasoning == "drop" and closed:
            message = {**message, "content": words}
        elif policy.split_reasoning == "auto" and knows_reasoning and closed and not own:
            message = {**message, "content": words, "reasoning_content": thoughts}
    if policy.reasoning == "drop":
        return {key: value for key, value in message.items() if key not in REASONING}
    if policy.reasoning == "mask":
        return {**message, "train_reasoning": False}
    return message


def not_learnt(message: Message) -> Message:
    """The message, marked as context."""
    return {key: value for key, value in message.items() if key not in _MARKS} | {"train": False}


def _only_marked(message: Message) -> Message:
    """The message as it is if it is marked to be learnt, else not learnt.

    If text parts are marked, only those of the message are learnt.
    """
    if any(message.get(key) for key in _MARKS):
        return message
    content = message.get("content")
    if any(message.get(key) is not None for key in _MARKS) or not isinstance(content, list):
        return not_learnt(message)
    parts = [part for part in content if isinstance(part, dict)]
    marked = [any(part.get(key) for key in _MARKS) for part in parts]
    if not any(marked) or len(parts) < len(content):
        return not_learnt(message)
    chosen = [p if on else not_learnt(p) for p, on in zip(parts, marked, strict=True)]
    # Words of the marked parts are learnt; thoughts and the turn's end belong to no part.
    return {**message, "content": chosen}
