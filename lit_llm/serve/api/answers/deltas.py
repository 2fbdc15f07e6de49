"""Parts of an answer, as a stream delivers them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Content:
    """Text that the user reads."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """Text of the thoughts before the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A tool call begins; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of a call, as JSON text."""

    index: int
    text: str


Delta = Content | Reasoning | CallBegin | CallArguments


@dataclass
class Message:
    """The whole answer that a list of deltas adds up to.

    Attributes:
        content: the text.
        reasoning: the thoughts.
        calls: of each tool call its id, name and arguments (JSON text).
    """

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        match delta:
            case Content(text):
                self.content += text
            case Reasoning(text):
                self.reasoning += text
            case CallBegin(_, call_id, name):
                self.calls.append({"id": call_id, "name": name, "arguments": ""})
            case CallArguments(index, text):
                self.calls[index]["arguments"] += text
