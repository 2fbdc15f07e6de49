"""Answers with reasoning before them: where the answer begins, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_llm.models.tokenizer import Tokenizer

Ending = Literal["unanswered", "cut", "empty"]
ENDINGS: tuple[Ending, ...] = ("unanswered", "cut", "empty")
"""Of answers that did not end well; see `Answered`."""
_OPEN, _CLOSE, _SWITCH = "<think>", "</think>", "enable_thinking"
_MARGIN = 8
"""Tokens that a text is looked for in beyond its own bytes."""


class Answered(NamedTuple):
    """A text to score, without reasoning.

    ``ending`` is None for an answer that ended by itself. "unanswered": it was cut inside its
    reasoning, so the text is empty. "cut": it reached its largest length. "empty": it ended by
    itself and has no text.
    """

    text: str
    ending: Ending | None


@dataclass(frozen=True)
class Reasoning:
    """How a model marks its reasoning, and how long reasoning and answer may be."""

    open: str = _OPEN
    close: str = _CLOSE
    reasoning_tokens: int | None = None
    """Most tokens up to the end of the reasoning. None: as many as the task allows in all."""
    answer_tokens: int | None = None
    """Most tokens after it. None: as many as the task allows in all."""

    @classmethod
    def of_template(cls, template: str, prompt: str) -> Reasoning | None:
        """The markers <think> and </think>, if a chat template makes the model use them.

        It does if its prompts end inside the reasoning, or if it has the switch
        ``enable_thinking``.

        Args:
            template: Jinja source.
            prompt: a rendered conversation with the beginning of the answer.
        """
        marked = _OPEN in template and _CLOSE in template
        found = cls()
        return found if marked and (found.opened(prompt) or _SWITCH in template) else None

    def opened(self, prompt: str) -> bool:
        """Whether a prompt ends where the reasoning has begun."""
        return prompt.rstrip().endswith(self.open)

    def is_off(self, prompt: str) -> bool:
        """Whether a prompt ends with reasoning that is over, as templates write to turn it off."""
        return prompt.rstrip().endswith(self.close)

    def limits(self, allowed: int) -> tuple[int, int]:
        """Most tokens of reasoning and of the answer, for a task that allows ``allowed``."""
        return self.reasoning_tokens or allowed, self.answer_tokens or allowed


class AnswerStart:
    """Finds where the answer begins, token by token.

    Attributes:
        begin: number of tokens before the answer's first; None while it is not known.
        inside: whether the reasoning has begun.
        rest: text of the token that ends the reasoning, beyond the marker.
    """

    def __init__(self, tokenizer: Tokenizer, reasoning: Reasoning | None, prompt: str):
        self._tokenizer, self._reasoning = tokenizer, reasoning
        self.begin: int | None = 0
        self.rest = ""
        self.inside = False
        if reasoning is not None and not reasoning.is_off(prompt):
            self.begin, self.inside = None, reasoning.opened(prompt)

    def look(self, ids: Sequence[int]) -> None:
        """Take the answer's tokens so far; called for each new token."""
        if self.begin is not None or self._reasoning is None:
            return
        reasoning = self._reasoning
        if not self.inside:
            begun = self._text(ids).lstrip()
            if not begun.startswith(reasoning.open):
                if not reasoning.open.startswith(begun):
                    self.begin = 0  # it answers at once
                return  # else it may still begin with the marker
            self.inside = True
        end = self._text(ids[-(len(reasoning.close.encode()) + _MARGIN) :])
        if reasoning.close in end:
            self.begin, self.rest = len(ids), end.partition(reasoning.close)[2]

    def _text(self, ids: Sequence[int]) -> str:
        # The markers may be control tokens.
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)
