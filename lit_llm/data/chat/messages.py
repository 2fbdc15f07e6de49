"""Checks messages from users and converts them to the form that chat templates expect.

The keys are those of transformers and of OpenAI's chat API: role, content, name, tool_calls,
tool_call_id, reasoning_content. Null fields are removed, as in transformers: a template that tests
``'tool_calls' in message`` would otherwise find them. Anything that cannot be used is refused with
the number of the message and the key.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any, NamedTuple

from lit_llm.data.chat.template import BEGIN, CUT, END, Message
from lit_llm.errors import UserError

ROLES = ("system", "user", "assistant", "developer", "tool")
# Names of the tool role in OpenAI's older API, Llama 3.1 and ShareGPT.
_OTHER_NAMES = {
    "function": "tool", "ipython": "tool", "observation": "tool",
    "human": "user", "ai": "assistant", "gpt": "assistant", "model": "assistant",
}  # fmt: skip
# Three names of the same field. transformers gives templates the first two.
REASONING = ("reasoning_content", "thinking", "reasoning")
# Members of `CONTENT_KEYS` that a template may also contain with a different meaning.
COMMON_WORDS = ("thought", "thoughts", "tool_call", "parts", "refusal", "text")
# Keys of other programs' messages that hold a part of the conversation. A template that does not
# contain such a key would silently drop that part.
CONTENT_KEYS = ("images", "image", "audio", "audios", "video", "videos", "documents", "citations",
                "tool_plan", "tool_responses", "reasoning_details", "thinking_blocks",
                *COMMON_WORDS)  # fmt: skip
# Keys with which other programs say which parts of a message are learnt. `_weight` reads "train",
# "training" and "weight". The meaning of the keys below differs between programs ("mask" true hides
# a text in one and shows it in another), so messages with these keys are refused.
OTHER_LEARN_KEYS = ("train_detail", "train_details", "loss", "mask", "masked", "loss_mask",
                    "loss_weight", "learn", "trainable", "do_train")  # fmt: skip
# A call that a model writes as text, as the models of Hermes, Llama 3.1 and ReAct do: a tag, a name
# in JSON, or a line "Action: ...". A tool's message may follow such a text.
_CALL_IN_TEXT = re.compile(
    r"<\W*\w*(tool|function|python|invoke|code)\w*|\[TOOL_CALLS\]|\"name\"\s*:|Action:|```", re.I
)
# Weights of row, answer and part are multiplied; the product must not leave float32.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-6, 1e6
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MARK = re.compile(f"[{CUT}{BEGIN}{END}]")


class PartWeights(NamedTuple):
    """Parts of an answer that weigh other than the whole.

    Attributes:
        parts: spans (first, end, weight) of characters of the message's text, one for each text
            part; none if all parts weigh 1. The weight is 0 with ``train`` false.
        reasoning: whether the thoughts are learnt (``train_reasoning``).
    """

    parts: list[tuple[int, int, float]]
    reasoning: bool


class Turns(NamedTuple):
    """Messages for the template, and what of each may be learnt.

    Attributes:
        messages: in the template's form.
        weights: for each message, its weight in the loss; 0 is not learnt (``train``, ``weight``).
        parts: for each message, the weights of its parts beside its own.
    """

    messages: list[Message]
    weights: list[float]
    parts: list[PartWeights]


def read_turns(messages: Any, as_written: bool = False) -> Turns:
    """Check and convert a conversation.

    System and developer messages come first. Tool messages follow an assistant's message that calls
    a tool. Anything else is the template's affair: consecutive turns of one role, an assistant's
    turn first (it is context and not learnt), the user's last.

    Args:
        messages: the conversation.
        as_written: the arguments of a tool call may be any text. A model may write a text that is
            not JSON, and the client of a server sends it back with the conversation.

    Raises:
        UserError: ``messages`` is not such a conversation; names the message and the key.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError("'messages' must be a list of {role, content} and not empty")
    read = [_read(number, message, as_written) for number, message in enumerate(messages, 1)]
    _check_order([message for message, _, _ in read])
    messages, weights, parts = zip(*read, strict=True)
    return Turns(list(messages), list(weights), list(parts))


def without_nulls(message: Message) -> Message:
    """The message without its null fields."""
    return {key: value for key, value in message.items() if value is not None}


def with_reasoning(message: Message) -> Message:
    """The message with its thoughts under both names that templates read, as in transformers."""
    found = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def text_of(message: Message) -> str:
    """The text of a message, or its text parts joined."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def thoughts_of(message: Message) -> str:
    """The reasoning of a message, from its own field or from a leading <think> block, or ""."""
    return next((message[key] for key in REASONING if message.get(key)), split_thoughts(message)[0])


def split_thoughts(message: Message) -> tuple[str, str]:
    """(thoughts, words) of a text with a leading <think> block; ("", the text) for other texts."""
    text = text_of(message)
    thoughts, closed, words = text.lstrip().removeprefix("<think>").partition("</think>")
    if not closed or not text.lstrip().startswith("<think>"):
        return "", text
    return thoughts.strip(), words.strip()


def called(message: Message) -> list[dict[str, Any]]:
    """{"name", "arguments"} of each tool call of a message."""
    return [call.get("function", call) for call in message.get("tool_calls", [])]


def with_name(call: dict[str, Any], name: str) -> dict[str, Any]:
    """A tool call with another function's name."""
    changed = {**call.get("function", call), "name": name}
    return {**call, "function": changed} if "function" in call else changed


def check_characters(value: Any, where: str) -> None:
    """Raise UserError that names the place if a text in ``value`` holds an invalid character.

    Invalid are lone surrogates, and the noncharacters that mark rendered text (U+FDD0 to U+FDD2).
    """
    if isinstance(value, str):
        if found := _SURROGATE.search(value):
            raise UserError(
                f"{where} holds the lone surrogate \\u{ord(found[0]):04x}, half of a character; "
                "correct the text"
            )
        if found := _MARK.search(value):
            raise UserError(
                f"{where} holds U+{ord(found[0]):04X}, which Unicode reserves and no text may "
                "hold; correct the text"
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            check_characters(key, f"a key of {where}")
            check_characters(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value, 1):
            check_characters(item, f"{where}[{number}]")


def _read(number: int, message: Any, as_written: bool) -> tuple[Message, float, PartWeights]:
    """Convert a message; returns (message for the template, its weight, the weights in it)."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"message {number} must be an object with 'role' and 'content'")
    role = _OTHER_NAMES.get(message["role"], message["role"])
    if role not in ROLES:
        raise UserError(
            f"message {number} has role {message['role']!r}; roles are {', '.join(ROLES)}"
        )
    clean = without_nulls(message) | {"role": role}
    if not clean.get("tool_calls", True):
        del clean["tool_calls"]  # an empty list means no call
    weight = _weight(number, clean)
    shown = _flag(number, clean, "train_reasoning")
    check_characters(clean, f"message {number}")
    if "function_call" in clean:  # OpenAI's older API
        if "tool_calls" in clean:
            raise UserError(f"message {number} has both 'function_call' and 'tool_calls'")
        clean["tool_calls"] = [{"type": "function", "function": clean.pop("function_call")}]
    if "tool_calls" in clean:
        clean["tool_calls"] = _tool_calls(number, clean, as_written)
    parts: list[tuple[int, int, float]] = []
    if "content" in clean:
        clean["content"], parts = _content(number, role, clean["content"])
    elif "tool_calls" not in clean:
        missing = "neither content nor tool_calls" if role == "assistant" else "no 'content'"
        raise UserError(f"message {number} has {missing}")
    for key in REASONING:
        if role != "assistant" and clean.get(key) == "":
            del clean[key]  # a dataset column that is empty for other roles
        if key in clean and (role != "assistant" or not isinstance(clean[key], str)):
            raise UserError(f"message {number}: {key!r} must be a text of the assistant's")
    return with_reasoning(clean), weight, PartWeights(parts, reasoning=shown)


def _flag(number: int, message: Message, key: str) -> bool:
    """Remove ``key``, which is true or false, from a message or a part; True without it."""
    value = message.pop(key, True)
    if value not in (0, 1):
        raise UserError(f"message {number} has {key!r} {value!r}; it is true or false")
    return bool(value)


def read_weight(given: Any, where: str, hint: str = "") -> float:
    """A ``weight`` as a number.

    Raises:
        UserError: it is neither 0 nor a number from `SMALLEST_WEIGHT` to `LARGEST_WEIGHT`.
    """
    known = isinstance(given, int | float | Decimal)  # DuckDB writes parquet's decimals
    if not known or not (given == 0 or SMALLEST_WEIGHT <= given <= LARGEST_WEIGHT):
        raise UserError(
            f"{where} has 'weight' {str(given)[:40]!r}; it is 0 (not learnt) or a number from "
            f"{SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:,.0f}{hint}"
        )
    return float(given)


def _weight(number: int, message: Message) -> float:
    """Remove ``train``, ``training`` and ``weight`` from the message; 0 if it is not learnt."""
    for key in OTHER_LEARN_KEYS:
        if key in message:
            raise UserError(
                f"message {number} has {key!r}, which is not used; 'train' or 'training' (true or "
                "false) and 'weight' (0 or more) say whether an answer is learnt"
            )
    given = {key: message.pop(key) for key in ("train", "training") if key in message}
    for key, value in given.items():
        if value not in (0, 1):
            raise UserError(f"message {number} has {key!r} {value!r}; it is true or false")
        if value and message["role"] != "assistant":
            raise UserError(
                f"message {number} of the {message['role']} has {key!r} true; only answers are "
                "learnt"
            )
    if len(set(given.values())) > 1:
        raise UserError(f"message {number} has 'train' and 'training' that differ")
    weight = read_weight(message.pop("weight", 1), f"message {number}")
    if weight not in (0, 1) and message["role"] != "assistant":
        raise UserError(
            f"message {number} of the {message['role']} has 'weight' {weight:g}; only answers are "
            "learnt"
        )
    return weight if all(given.values()) else 0.0


def _content(
    number: int, role: str, content: Any
) -> tuple[str | list[dict[str, Any]], list[tuple[int, int, float]]]:
    """Check the content; returns (text or text parts, the `PartWeights.parts`)."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise UserError(
            f"message {number} has content of type {type(content).__name__}, not text; write it as "
            "a text, in quotes"
        )
    parts: list[dict[str, Any]] = []
    weights: list[tuple[int, int, float]] = []
    at = 0
    for place, given in enumerate(content, 1):
        part = dict(given) if isinstance(given, dict) else given
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise UserError(
                f"message {number}: part {place} of its content has the type {part['type']!r}; "
                "only text can be used"
            )
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise UserError(
                f"message {number} has content of type list, and its part {place} is not "
                '{"type": "text", "text": ...}'
            )
        weight = _weight(number, part := without_nulls(part) | {"role": role})
        other = [
            key for key, value in part.items() if key not in ("type", "text", "role") and value
        ]
        if other:
            raise UserError(
                f"message {number}: part {place} of its content has the key {other[0]!r}, which "
                f"is not used"
            )
        end = at + len(part["text"])
        weights.append((at, end, weight))
        at = end
        parts.append({"type": "text", "text": part["text"]})
    return parts, weights if any(weight != 1 for _, _, weight in weights) else []


def _tool_calls(number: int, message: Message, as_written: bool) -> list[dict[str, Any]]:
    """The calls without null fields; missing arguments become {}, null arguments inside stay."""
    calls = message["tool_calls"]
    if message["role"] != "assistant":
        raise UserError(f"message {number}: 'tool_calls' in a message of the {message['role']}")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise UserError(f"message {number}: 'tool_calls' must be a list of objects")
    found = []
    for place, call in enumerate(calls, 1):
        clean = {key: value for key, value in call.items() if value is not None}
        function = clean.get("function", clean)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UserError(
                f'message {number}: tool call {place} must be {{"function": {{"name": text, '
                f'"arguments": object}}}}'
            )
        function = {"arguments": {}, **without_nulls(function)}
        if not (as_written and isinstance(function["arguments"], str)):
            read_arguments(
                function["arguments"], f"message {number}: the arguments of tool call {place}"
            )
        found.append({**clean, "function": function} if "function" in clean else function)
    return found


def read_arguments(arguments: Any, where: str) -> dict[str, Any]:
    """The arguments of a tool call, an object or JSON text of one.

    An empty text is an object without fields: so some servers write a call without arguments.

    Raises:
        UserError: they are something else, or a text in them holds an invalid character; begins
            with ``where``.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise UserError(f"{where} are a text that is not JSON") from None
        check_characters(arguments, where)  # the text may spell them with a backslash
    if not isinstance(arguments, dict):
        raise UserError(f"{where} must be an object or JSON text of one")
    return arguments


def _check_order(messages: list[Message]) -> None:
    """Raise UserError for the first message whose role is not allowed at its place."""
    speaker = 0  # number of the last message that is not a tool's
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role in ("system", "developer"):
            before = [earlier["role"] for earlier in messages[: number - 1]]
            if role in before or not set(before) <= {"system", "developer"}:
                raise UserError(f"message {number} is a {role} message: it can only come first")
        elif role == "tool":
            _check_called(number, speaker, messages)
            continue
        elif number > 1 and messages[number - 2].get("tool_calls"):
            raise UserError(
                f"message {number} is the {role}'s where the tool's answer to message "
                f"{number - 1} is expected"
            )
        speaker = number


def _check_called(number: int, speaker: int, messages: list[Message]) -> None:
    """Raise UserError unless the last message before the tool's is an assistant's tool call."""
    before = messages[speaker - 1] if speaker else {}
    if before.get("role") != "assistant":
        raise UserError(f"message {number} is a tool's: it can only follow the assistant's")
    if "tool_calls" not in before and not _CALL_IN_TEXT.search(text_of(before)):
        raise UserError(
            f"message {number} is a tool's answer, but message {speaker} calls no tool; give its "
            "'tool_calls', or take the tool's message out"
        )
    known = [call["id"] for call in before.get("tool_calls", []) if call.get("id")]
    answered = messages[number - 1].get("tool_call_id")
    if known and answered and answered not in known:
        raise UserError(
            f"message {number} answers the tool call {answered!r}, which message {speaker} does "
            "not make"
        )
