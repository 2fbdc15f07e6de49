"""MendedStream: another server's stream of a chat, by the rules of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lit_llm.serve.api.answers.answer_parser import new_call_id
from lit_llm.serve.api.errors import broken

_TEXTS = ("content", "reasoning_content", "refusal")


@dataclass
class _Choice:
    """What was delivered of one choice.

    Attributes:
        calls: our number of each call, by its number or place in the other server's chunks.
        finish: its end, once it is known.
    """

    calls: dict[Any, int] = field(default_factory=dict)
    finish: str | None = None


class MendedStream:
    """Takes chunks and returns chunks.

    The first delta of a choice has its role. Every piece of a call has its index, and the first one
    an id, a type and a name. Each choice ends once, with "tool_calls" if and only if a call was
    delivered. The usage is taken out of the chunks and kept.

    Args:
        head: the fields of every chunk: id, object, created, model.
        n: number of choices.

    Attributes:
        usage: of the other server, or None.
    """

    def __init__(self, head: dict[str, Any], n: int):
        self._head, self._n = head, n
        self._choices: dict[int, _Choice] = {}
        self.usage: dict[str, Any] | None = None

    def push(self, chunk: Any) -> Iterator[dict[str, Any]]:
        """The mended chunks of one chunk.

        Raises:
            ApiError: the chunk is an error, or no chunk at all.
        """
        if not isinstance(chunk, dict) or chunk.get("error"):
            raise broken()
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        for given in chunk.get("choices") or []:
            index = given.get("index") or 0
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice()
                yield self._chunk(index, {"role": "assistant", "content": ""})
            if choice.finish is not None:
                continue
            delta = given.get("delta") or {}
            for name in _TEXTS:
                if delta.get(name):
                    yield self._chunk(index, {name: delta[name]}, given.get("logprobs"))
            for place, call in enumerate(delta.get("tool_calls") or []):
                yield self._chunk(index, {"tool_calls": [self._call(choice, place, call)]})
            if given.get("finish_reason"):
                choice.finish = given["finish_reason"]

    def finish(self) -> Iterator[dict[str, Any]]:
        """The last chunk of each choice.

        Raises:
            ApiError: the other server's stream has ended before its answers.
        """
        if len(self._choices) < self._n or any(
            choice.finish is None for choice in self._choices.values()
        ):
            raise broken()
        for index, choice in sorted(self._choices.items()):
            yield self._chunk(index, {}, finish=self._reason(choice))

    def reason(self) -> str:
        """The end of the first choice, for the record."""
        return self._reason(self._choices[0]) if 0 in self._choices else "error"

    @staticmethod
    def _reason(choice: _Choice) -> str:
        if choice.calls and choice.finish != "length":
            return "tool_calls"
        return "stop" if choice.finish in (None, "tool_calls") else choice.finish

    @staticmethod
    def _call(choice: _Choice, place: int, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function") or {}
        number = call.get("index")
        known = number if number is not None else call.get("id") or place
        arguments = function.get("arguments") or ""
        if known in choice.calls:
            return {"index": choice.calls[known], "function": {"arguments": arguments}}
        index = choice.calls[known] = len(choice.calls)
        named = {"name": function.get("name") or "", "arguments": arguments}
        return {
            "index": index,
            "id": call.get("id") or new_call_id(),
            "type": "function",
            "function": named,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**self._head, "choices": [choice]}
