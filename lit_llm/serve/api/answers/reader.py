"""AnswerReader: the engine's tokens of one answer as deltas of its message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_llm.models.engine.requests import GeneratedToken
from lit_llm.models.generation.text_stream import TextStream
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.serve.api.answers.answer_parser import AnswerParser
from lit_llm.serve.api.answers.deltas import Delta


@dataclass
class Update:
    """What is new of one answer.

    Attributes:
        choice: its number.
        deltas: parts of the message, possibly none.
        tokens: the tokens since the last update, with what was asked of their probabilities.
        finish: "stop", "length" or "tool_calls" in the last update, else None.
    """

    choice: int
    deltas: list[Delta] = field(default_factory=list)
    tokens: list[GeneratedToken] = field(default_factory=list)
    finish: str | None = None


class AnswerReader:
    """Reads one answer.

    Args:
        tokenizer: decodes the tokens.
        stop: texts that end the answer; they are no part of it.
        parser: splits the text.

    Attributes:
        tokens: number of tokens read.
        reasoning_tokens: those inside the thoughts.
        stopped: a stop text is complete; the answer ends here.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], parser: AnswerParser):
        self.tokens = self.reasoning_tokens = 0
        self._text, self._parser = TextStream(tokenizer, stop), parser

    @property
    def stopped(self) -> bool:
        """See the class."""
        return self._text.stopped

    def read(self, token: GeneratedToken) -> list[Delta]:
        """Take a token; returns what it completes."""
        self.tokens += 1
        found = self._parser.push(self._text.push(token.id))
        self.reasoning_tokens += self._parser.in_reasoning
        return found

    def finish(self, reason: str) -> tuple[list[Delta], str]:
        """The answer is over; returns the text held back, and why it ended in OpenAI's words.

        "tool_calls" if a call was delivered. A call that the limit cuts off is not.
        """
        found = self._parser.push(self._text.flush()) + self._parser.finish()
        cut = reason == "length" and not self._parser.calls
        return found, "tool_calls" if self._parser.begun and not cut else reason


class Alternatives:
    """Log-probabilities in the form of OpenAI's chat API.

    Args:
        tokenizer: whose tokens they are.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._bytes = tokenizer, tokenizer.vocabulary()

    def text(self, token_id: int) -> str:
        """The text of a token; U+FFFD for parts of characters."""
        return self.bytes(token_id).decode("utf-8", "replace")

    def bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, of a control token those of its name."""
        known = self._bytes[token_id] if token_id < len(self._bytes) else b""
        return known or self._tokenizer.decode([token_id]).encode()

    def content(self, tokens: Sequence[GeneratedToken]) -> list[dict[str, Any]]:
        """One entry a token: its own log-probability, and those of the most likely tokens."""
        return [
            {
                **self._entry(token.id, token.logprob),
                "top_logprobs": [self._entry(*other) for other in token.top_logprobs],
            }
            for token in tokens
        ]

    def _entry(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self.text(token_id),
            "logprob": max(-9999.0, logprob if logprob is not None else -9999.0),
            "bytes": list(self.bytes(token_id)),
        }
