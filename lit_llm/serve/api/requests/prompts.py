"""Messages of a request as the ids of a prompt, with every text of theirs in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.messages import split_thoughts, text_of
from lit_llm.data.chat.template import Message
from lit_llm.data.chat.template_probe import PROBE
from lit_llm.errors import UserError
from lit_llm.serve.api.answers.answer_parser import END_THINK, THINK
from lit_llm.serve.api.errors import refused

MESSAGE_KEYS = {
    "system": {"content", "name"},
    "developer": {"content", "name"},
    "user": {"content", "name"},
    "tool": {"content", "tool_call_id", "name"},
    "assistant": {
        "content", "name", "tool_calls", "reasoning_content", "reasoning", "refusal", "annotations",
        "audio", "function_call",
    },
}  # fmt: skip
"""Keys of a message, by its role."""
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Prompt:
    """A prompt for the engine.

    Attributes:
        ids: its tokens.
        thinking: it ends inside the model's thoughts.
        ignored: names of fields that had no effect on it.
    """

    ids: list[int]
    thinking: bool
    ignored: list[str]


def chat_prompt(
    chat: ChatFormat,
    messages: list[dict[str, Any]],
    arguments: Mapping[str, Any],
    effort: str | None = None,
) -> Prompt:
    """Render messages with the model's template and encode them.

    Where the template does not take the messages as they are, they are changed without a loss:
    system and developer messages are joined at the head, a developer's becomes a system message,
    turns of one role in a row are joined, and a system message goes to the head of the first
    question. The first form that the template takes in full is used.

    Args:
        chat: the model's format.
        messages: as in the body.
        arguments: variables of the template: ``tools`` and ``chat_template_kwargs``.
        effort: OpenAI's ``reasoning_effort``.

    Raises:
        ApiError: 400: the messages are no conversation, or every form loses a part of them.
    """
    read = [_read(number, message) for number, message in enumerate(messages)]
    arguments, ignored = _with_effort(chat, arguments, effort)
    first: UserError | None = None
    for form in _forms(read):
        try:
            ids = chat.prompt_ids(form, arguments)
            _check_answers(chat, form, arguments)
        except UserError as error:
            first = first or error
            continue
        end = chat.render(form, True, arguments).rstrip()
        if any(message.get("name") for message in form) and not chat.jinja.knows("name"):
            ignored.append("messages.name")
        return Prompt(ids, end.endswith(THINK), ignored)
    raise refused(str(first), param="messages", code="invalid_messages")


def writes_thoughts(chat: ChatFormat) -> bool:
    """Whether the template has the markers of thoughts, so that the model writes them."""
    return END_THINK in chat.template


def _with_effort(
    chat: ChatFormat, arguments: Mapping[str, Any], effort: str | None
) -> tuple[dict[str, Any], list[str]]:
    given = dict(arguments)
    if effort is None:
        return given, []
    if effort == "none" and chat.jinja.knows("enable_thinking"):
        return {"enable_thinking": False, **given}, []
    if chat.jinja.knows("reasoning_effort"):
        return {"reasoning_effort": effort, **given}, []
    return given, ["reasoning_effort"]


def _read(number: int, message: dict[str, Any]) -> Message:
    """Check the keys of a message; what its values may be, `ChatFormat` says."""
    where = f"messages[{number}]"
    found = {key: value for key, value in message.items() if value is not None}
    role = found.get("role")
    if not isinstance(role, str) or role not in MESSAGE_KEYS:
        raise refused(
            f"{where}.role is {role!r}; roles are {', '.join(MESSAGE_KEYS)}", param=f"{where}.role"
        )
    for key in found.keys() - {"role"}:
        if key not in MESSAGE_KEYS[role]:
            raise refused(
                f"{where} has the unknown key {key!r}",
                param=f"{where}.{key}",
                code="unknown_parameter",
            )
    # Clients send an answer back as they got it: with an empty list of annotations.
    if not found.get("annotations", True):
        del found["annotations"]
    for key in ("annotations", "audio", "function_call", "refusal"):
        if key in found:
            raise refused(
                f"{where}.{key} is not supported; leave it out",
                param=f"{where}.{key}",
                code="unsupported_parameter",
            )
    if role == "assistant" and "content" not in found and "tool_calls" not in found:
        raise refused(f"{where} has neither content nor tool_calls", param=where)
    return found


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """The messages, then forms of them that more templates take."""
    systems = [message for message in messages if message["role"] in _SYSTEM]
    others = [message for message in messages if message["role"] not in _SYSTEM]
    if len(systems) < 2:
        yield [*systems, *others]
    head = [_joined("system", systems)] if systems else []
    for change in (lambda turns: turns, _alternating):
        turns = change(others)
        yield head + turns
        if head and turns and turns[0]["role"] == "user":
            yield [_joined("user", [*head, turns[0]]), *turns[1:]]


def _joined(role: str, messages: list[Message]) -> Message:
    """One message with the texts of all, with a blank line between two."""
    try:
        return {"role": role, "content": "\n\n".join(text_of(message) for message in messages)}
    except (KeyError, TypeError):  # a part that is no text: ChatFormat names it
        return {"role": role, "content": messages[-1].get("content")}


def _alternating(messages: list[Message]) -> list[Message]:
    """Consecutive texts of the user or the assistant as one."""
    found: list[Message] = []
    for message in messages:
        plain = message.keys() <= {"role", "content"} and message["role"] in ("user", "assistant")
        if (
            plain
            and found
            and found[-1].keys() <= {"role", "content"}
            and (found[-1]["role"] == message["role"])
        ):
            found[-1] = _joined(message["role"], [found[-1], message])
        else:
            found.append(message)
    return found


def _check_answers(chat: ChatFormat, messages: list[Message], arguments: Mapping[str, Any]) -> None:
    """Raise UserError if the template drops an answer; `ChatFormat` checks the other roles."""
    text = chat.render(messages, True, arguments)
    for place, message in enumerate(messages):
        words = split_thoughts(message)[1].strip() if message["role"] == "assistant" else ""
        if not words or words in text:
            continue
        probed = [*messages[:place], {**message, "content": PROBE}, *messages[place + 1 :]]
        if PROBE not in chat.render(probed, True, arguments):
            raise UserError(f"the chat template leaves out message {place + 1}, an answer")
