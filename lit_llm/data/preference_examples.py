"""PreferenceEncoder: rows of preferences as token trees, the prompt of a pair stored once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.learnt import check_answers, not_learnt, prepare
from lit_llm.data.chat.messages import text_of
from lit_llm.data.chat.template import Message
from lit_llm.data.examples import (
    Example,
    RowFormat,
    common_key,
    manifest_line,
    position_of,
    prompt_of,
)
from lit_llm.data.rows.policy import RowPolicy
from lit_llm.data.rows.preferences import Judged, Preference, undecided
from lit_llm.data.rows.shapes import group_of, weight_of
from lit_llm.data.trees import TokenPath, answers_tree
from lit_llm.errors import UserError


class PreferenceEncoder:
    """Encodes pairs, or judged answers, each as an `answers_tree`.

    The tree of a pair has two answers: the chosen one, then the rejected one. Examples have the
    fact "margin" (NaN if the row names none), those of judged answers "good" (1 or 0).

    Args:
        row_format: conversion of rows to lists of `Preference` or `Judged`.
        chat: encodes the conversations.
        seq_len: tokens per row, which hold a prompt with all its answers.
        policy: what becomes of thoughts and of examples that are too long.
        unpaired: whether examples are judged answers. A pair then makes two of them.
    """

    def __init__(
        self,
        row_format: RowFormat,
        chat: ChatFormat,
        seq_len: int,
        policy: RowPolicy,
        unpaired: bool,
    ):
        self._format, self.chat, self.seq_len = row_format, chat, seq_len
        self._policy, self._unpaired = policy, unpaired
        self.kind = "judged" if unpaired else "preferences"
        self.weightless = 0
        self.too_long: Counter[str] = Counter()
        self._undecided: Counter[str] = Counter()

    def key(self) -> dict[str, Any]:
        """All settings that decide what is made of a row."""
        own = {"unpaired": self._unpaired, "preferences": 1}
        return common_key(self._format, self.chat, self.seq_len, self._policy) | own

    def encode(
        self, row: dict[str, Any], place: str, split: str | None, source: str
    ) -> list[Example]:
        """The examples of a row, without those that are longer than a row."""
        weight = weight_of(row)
        if weight == 0:
            self.weightless += 1
            return []
        if weight != 1:
            raise UserError(
                f"the row has the weight {weight:g}; preferences all count once, or not at all (0)"
            )
        arguments = self._format.template_arguments(row)
        found: list[Example] = []
        compared = self._unpack(self._format.format_example(row))
        for prompt, answers, facts in compared:
            paths, begin = self._answers(prompt, answers, arguments)
            tree = answers_tree(
                paths[0].ids[:begin],
                [TokenPath(path.ids[begin:], path.learnt[begin:]) for path in paths],
            )
            if len(tree) > self.seq_len:
                if self._policy.too_long == "raise":
                    raise UserError(
                        f"the prompt and its answers have {len(tree)} tokens, data.seq_len="
                        f"{self.seq_len}; raise it, or set data.too_long=drop"
                    )
                self.too_long["dropped"] += 1
                continue
            question = next((text_of(m) for m in prompt if m["role"] == "user"), "")
            found.append(
                Example(
                    paths=paths,
                    trees=[tree],
                    split=split,
                    position=position_of(question),
                    truncated=False,
                    answers=len(answers),
                    left_out=0,
                    line=manifest_line(row, place, [prompt, answers], question, arguments),
                    source=source,
                    group=group_of(row),
                    prompt=prompt_of([*prompt, answers[0][0]]),
                    facts=facts,
                )
            )
        ties, equal = undecided(row)
        self._undecided.update(ties=ties, equal_texts=equal)
        return found

    def _unpack(
        self, compared: list[Preference] | list[Judged]
    ) -> list[tuple[list[Message], list[list[Message]], dict[str, float]]]:
        """(prompt, answers, facts) of each example."""
        made: list[tuple[list[Message], list[list[Message]], dict[str, float]]] = []
        for one in compared:
            if isinstance(one, Judged) and not self._unpaired:
                raise UserError(
                    "the row is one judged answer, not a pair: model.loss=kto learns from those, "
                    "or data.unpaired=true with a module of your own"
                )
            if isinstance(one, Judged):
                made.append((one.prompt, [one.completion], {"good": float(one.label)}))
            elif self._unpaired:
                made.append((one.prompt, [one.chosen], {"good": 1.0}))
                made.append((one.prompt, [one.rejected], {"good": 0.0}))
            else:
                margin = math.nan if one.margin is None else one.margin
                made.append((one.prompt, [one.chosen, one.rejected], {"margin": margin}))
        return made

    def _answers(
        self, prompt: list[Message], answers: list[list[Message]], arguments: dict[str, Any]
    ) -> tuple[list[TokenPath], int]:
        """Each answer behind the prompt, and the number of tokens of the prompt."""
        paths = [self._path(prompt, answer, arguments) for answer in answers]
        begins = [int(np.argmax(path.learnt)) for path in paths]
        begin = min(begins)
        if len(paths) == 2:
            if np.array_equal(paths[0].ids, paths[1].ids):
                raise UserError(
                    "'chosen' and 'rejected' are equal: the chat template renders the same text"
                )
            if not np.array_equal(paths[0].ids[:begin], paths[1].ids[:begin]):
                raise UserError(
                    "the chat template renders the prompt of 'chosen' otherwise than that of "
                    "'rejected', so they are no answers to the same text"
                )
        return paths, begin

    def _path(
        self, prompt: list[Message], answer: list[Message], arguments: dict[str, Any]
    ) -> TokenPath:
        """Prompt and answer up to the token that ends the answer."""
        context = [not_learnt(m) if m["role"] == "assistant" else m for m in prompt]
        knows_reasoning = self.chat.knows_reasoning(arguments)
        messages = prepare([*context, *answer], self._policy, knows_reasoning)
        coded = self.chat.encode_conversation(messages, arguments)
        check_answers(messages)
        if len(coded.paths) > 1 or coded.left_out:
            raise UserError(
                "an answer of several turns, of which the chat template renders the earlier ones "
                "differently later on; give each turn as a row of its own"
            )
        path = coded.paths[0]
        if path.weights is not None:
            raise UserError("parts of an answer with weights are not for preferences")
        return path.cut(int(np.flatnonzero(path.learnt).max()) + 1)

    def facts(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Comparisons that make no pair, and what the training examples say of lengths."""
        facts: dict[str, Any] = {"undecided": dict(self._undecided)}
        if self._unpaired:
            good = np.array([example.facts["good"] for example in examples])
            lengths = np.array([learnt_tokens(example)[0] for example in examples])
            if len(good) and len(set(good)) < 2:
                what = "good" if good[0] else "bad"
                raise UserError(
                    f"data.sources: all {len(good)} training answers are {what}; a loss of judged "
                    "answers needs both labels"
                )
            facts["good"] = int(good.sum())
        else:
            pairs = np.array([learnt_tokens(example) for example in examples]).reshape(-1, 2)
            lengths, good = pairs.T.flatten(), np.repeat([1.0, 0.0], len(pairs))
            longer = np.sign(pairs[:, 0] - pairs[:, 1])
            facts["chosen_longer"] = float((longer + 1).mean() / 2) if len(pairs) else None
        facts["length_bias"] = correlation(good, lengths)
        return facts


def learnt_tokens(example: Example) -> list[int]:
    """Number of learnt tokens of each answer."""
    return [int(path.learnt.sum()) for path in example.paths]


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's correlation; None if one of the two does not vary."""
    if len(one) < 2 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])
