"""The input of the Responses API as messages of the chat API."""

from __future__ import annotations

from typing import Any

from lit_llm.serve.api.errors import refused

_TEXT_PARTS = ("input_text", "output_text", "text")
ITEM_KEYS = ("type", "role", "content", "id", "status", "phase")
"""Keys of a message in the field ``input``."""


def messages_of(given: Any, instructions: str | None) -> list[dict[str, Any]]:
    """Messages for the template.

    Args:
        given: the field ``input``: a text, or a list of items.
        instructions: become the first system message.

    Raises:
        ApiError: 400, names the item that cannot be used.
    """
    found: list[dict[str, Any]] = []
    if instructions is not None:
        found.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise refused("input must be a text or a list of items and not empty", param="input")
    thoughts = ""
    for number, item in enumerate(given):
        where = f"input[{number}]"
        if not isinstance(item, dict):
            raise refused(f"{where} must be an object", param=where)
        kind = item.get("type", "message")
        if kind == "message":
            found.append(_message(item, where))
        elif kind == "function_call":
            _add_call(found, item, where)
        elif kind == "function_call_output":
            content = _text(item.get("output"), f"{where}.output")
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind == "reasoning":
            thoughts = _text(item.get("content") or [], f"{where}.content")
            continue
        else:
            raise refused(
                f"{where} has the type {kind!r}, which is not supported",
                param=f"{where}.type",
                code="unsupported_parameter",
            )
        if thoughts and found[-1]["role"] == "assistant":
            found[-1].setdefault("reasoning_content", thoughts)
        thoughts = ""
    return found


def thoughts_without_effect(given: Any) -> list[str]:
    """The name for `x-ignored` if the input has thoughts that reach no message.

    Thoughts belong to the answer or call after them; encrypted ones and summaries are not used.
    """
    items = given if isinstance(given, list) else []
    for item, following in zip(items, [*items[1:], {}], strict=False):
        if not isinstance(item, dict) or item.get("type") != "reasoning":
            continue
        answered = isinstance(following, dict) and (
            following.get("type") == "function_call" or following.get("role") == "assistant"
        )
        if not answered or not item.get("content"):
            return ["input.reasoning"]
    return []


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = item.keys() - set(ITEM_KEYS)
    if unknown:
        name = sorted(unknown)[0]
        raise refused(f"{where} has the unknown key {name!r}", param=f"{where}.{name}")
    return {"role": item.get("role"), "content": _text(item.get("content"), f"{where}.content")}


def _add_call(found: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Add a call to the assistant's message before it, or to one of its own."""
    if not isinstance(item.get("name"), str) or not isinstance(item.get("arguments"), str):
        raise refused(f"{where} needs the texts name and arguments", param=where)
    call = {
        "id": item.get("call_id"),
        "type": "function",
        "function": {"name": item["name"], "arguments": item["arguments"]},
    }
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": None})
    found[-1].setdefault("tool_calls", []).append(call)


def _text(content: Any, where: str) -> str:
    """The text of a text or of a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(f"{where} must be a text or a list of parts", param=where)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in (*_TEXT_PARTS, "reasoning_text") or not isinstance(part.get("text"), str):
            raise refused(
                f"{where}[{number}] has the type {kind!r}; only text can be used",
                param=f"{where}[{number}]",
            )
        texts.append(part["text"])
    return "".join(texts)
