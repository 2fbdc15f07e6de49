"""ResponseItems: the output of the Responses API, as items and as the events that build them."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from lit_llm.serve.api.answers.deltas import CallArguments, CallBegin, Content, Delta, Reasoning

Event = dict[str, Any]
Status = Literal["completed", "incomplete"]


class ResponseItems:
    """Builds the output of one answer.

    Every item is opened and closed by events: a message with its part of text, thoughts, or a
    function call. One item is open at a time.

    Attributes:
        output: the items that are closed.
    """

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None

    def add(self, delta: Delta) -> list[Event]:
        """The events of a delta."""
        match delta:
            case CallBegin(_, call_id, name):
                return [*self.close("completed"), *self._open_call(call_id, name)]
            case CallArguments(_, text):
                item = self._opened
                item["arguments"] += text
                return [self._event("response.function_call_arguments.delta", delta=text)]
            case Content(text):
                opening = self._switch("message")
                self._opened["content"][0]["text"] += text
                data = {"content_index": 0, "delta": text, "logprobs": []}
                return [*opening, self._event("response.output_text.delta", **data)]
            case Reasoning(text):
                opening = self._switch("reasoning")
                self._opened["content"][0]["text"] += text
                data = {"content_index": 0, "delta": text}
                return [*opening, self._event("response.reasoning_text.delta", **data)]

    def close(self, status: Status) -> list[Event]:
        """The events that close the open item, if there is one."""
        if self._item is None:
            return []
        item = self._item
        item["status"] = status
        if item["type"] == "function_call":
            arguments = item["arguments"]
            found = [self._event("response.function_call_arguments.done", arguments=arguments)]
        else:
            part = item["content"][0]
            kind = part["type"]
            extra: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            found = [
                self._event(f"response.{kind}.done", content_index=0, text=part["text"], **extra),
                self._event("response.content_part.done", content_index=0, part=dict(part)),
            ]
        found.append(self._item_event("response.output_item.done"))
        self.output.append(item)
        self._item = None
        return found

    @property
    def _opened(self) -> dict[str, Any]:
        assert self._item is not None
        return self._item

    def _switch(self, kind: Literal["message", "reasoning"]) -> list[Event]:
        """Close an item of another kind and open one of this kind."""
        if self._item is not None and self._item["type"] == kind:
            return []
        found = self.close("completed")
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            fields: dict[str, Any] = {"id": f"msg_{secrets.token_hex(12)}", "role": "assistant"}
        else:
            part = {"type": "reasoning_text", "text": ""}
            fields = {"id": f"rs_{secrets.token_hex(12)}", "summary": []}
        self._item = {"type": kind, "status": "in_progress", **fields, "content": []}
        found.append(self._item_event("response.output_item.added"))
        self._item["content"].append(part)
        found.append(self._event("response.content_part.added", content_index=0, part=dict(part)))
        return found

    def _open_call(self, call_id: str, name: str) -> list[Event]:
        self._item = {
            "type": "function_call",
            "status": "in_progress",
            "id": f"fc_{secrets.token_hex(12)}",
            "call_id": call_id,
            "name": name,
            "arguments": "",
        }
        return [self._item_event("response.output_item.added")]

    def _event(self, kind: str, **data: Any) -> Event:
        item_id = self._opened["id"]
        return {"type": kind, "item_id": item_id, "output_index": len(self.output), **data}

    def _item_event(self, kind: str) -> Event:
        item = self._opened
        copied = dict(item)
        if "content" in item:
            copied["content"] = [dict(part) for part in item["content"]]
        return {"type": kind, "output_index": len(self.output), "item": copied}
