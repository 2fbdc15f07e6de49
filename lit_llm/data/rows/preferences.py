"""Rows of preferences: which of two answers is better, or whether one is good."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lit_llm.data.chat.messages import read_turns
from lit_llm.data.chat.template import Message
from lit_llm.data.rows.shapes import (
    check_unused,
    history_of,
    parsed,
    sharegpt,
    system_of,
    turns_of,
    with_system,
)
from lit_llm.errors import UserError

Pairs = Literal["all", "best-worst"]


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt.

    Attributes:
        prompt: the messages before the answers.
        chosen, rejected: the messages of the better and of the worse answer.
        margin: how much better the chosen one is, or None if the row does not say.
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float | None = None


@dataclass(frozen=True)
class Judged:
    """One answer to a prompt, and whether it is good.

    Attributes:
        prompt: the messages before the answer.
        completion: the messages of the answer.
        label: whether it is good.
    """

    prompt: list[Message]
    completion: list[Message]
    label: bool


def to_preferences(row: dict[str, Any], pairs: Pairs = "all") -> list[Preference] | list[Judged]:
    """Read the comparisons in a row of a common format.

    - {"prompt", "chosen", "rejected"}: texts or lists of messages; ``margin`` may stand beside
    - {"conversations" or "messages", "chosen", "rejected"}: the prompt's turns, also ShareGPT's
    - {"chosen", "rejected"}: two whole conversations; their common beginning is the prompt, up to
      the first message of the assistant in which they differ
    - {"prompt", "responses", "scores"}: a pair for each two responses of different scores, or with
      ``pairs`` "best-worst" one of the best and the worst; the margin is the difference
    - {"prompt", "completion", "label"}: an answer by itself; label is true or false

    ``question``, ``query`` and ``instruction`` are other names of the prompt. ``system`` and
    ``history`` are used as in `to_messages`, and `template_arguments` gives the tools.

    Raises:
        UserError: none of these formats; values of another type; answers that are equal, empty or
            not the assistant's; a part of the conversation that is not used.
    """
    row = {key: value for key, value in row.items() if value is not None}
    keys = set(row)
    if {"chosen", "rejected"} <= keys:
        return [_pair(row)]
    if {"responses", "scores"} <= keys:
        return list(_ranked(row, pairs))
    if {"completion", "label"} <= keys:
        return [_judged(row)]
    names = ", ".join(map(str, row)) or "none"
    raise UserError(
        "no preference in the row: 'chosen' and 'rejected' (or 'responses' and 'scores', "
        f"'completion' and 'label') are looked for, its keys are {names}"
    )


def _pair(row: dict[str, Any]) -> Preference:
    chosen, rejected = (_answer(key, row[key]) for key in ("chosen", "rejected"))
    asked = _prompt_key(row)
    if asked is None:
        same = sum(1 for _ in itertools.takewhile(_equal, zip(chosen, rejected, strict=False)))
        # A turn of the assistant that both have is context. What differs must be an answer.
        prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
        prompt = _with_system(row, prompt)
        used = {"chosen", "rejected"}
    else:
        prompt, used = _prompt(row, asked)
        # UltraFeedback and its like repeat the prompt in both conversations.
        bare = _messages(asked, "user", row[asked])
        for start in (prompt, bare):
            if len(start) < len(chosen) and chosen[: len(start)] == start:
                chosen = chosen[len(start) :]
            if len(start) < len(rejected) and rejected[: len(start)] == start:
                rejected = rejected[len(start) :]
        used |= {"chosen", "rejected"}
    if chosen == rejected:
        raise UserError("'chosen' and 'rejected' are equal")
    _check(prompt, {"chosen": chosen, "rejected": rejected})
    _check_rest(row, used | {"margin"}, [*prompt, *chosen, *rejected])
    margin = row.get("margin")
    return Preference(
        prompt, chosen, rejected, None if margin is None else _number("margin", margin)
    )


def _equal(two: tuple[Message, Message]) -> bool:
    return two[0] == two[1]


def _ranked(row: dict[str, Any], pairs: Pairs) -> Iterator[Preference]:
    responses, scores = parsed("responses", row["responses"]), parsed("scores", row["scores"])
    if not isinstance(responses, list) or not isinstance(scores, list):
        raise UserError("'responses' and 'scores' must be lists")
    if len(responses) != len(scores):
        raise UserError(f"the row has {len(responses)} 'responses' and {len(scores)} 'scores'")
    asked = _prompt_key(row)
    if asked is None:
        raise UserError("the row has 'responses' and no 'prompt'")
    prompt, used = _prompt(row, asked)
    answers = [_answer(f"responses[{n}]", one) for n, one in enumerate(responses, 1)]
    _check(prompt, {f"responses[{n}]": answer for n, answer in enumerate(answers, 1)})
    _check_rest(row, used | {"responses", "scores"}, [*prompt, *itertools.chain(*answers)])
    ranks = sorted(
        ((_number("scores", score), n) for n, score in enumerate(scores)),
        key=lambda one: (-one[0], one[1]),
    )
    compared = (
        [(ranks[0], ranks[-1])] if pairs == "best-worst" else itertools.combinations(ranks, 2)
    )
    found = [
        Preference(prompt, answers[better], answers[worse], high - low)
        for (high, better), (low, worse) in (compared if ranks else [])
        if high > low and answers[better] != answers[worse]
    ]
    if not found:
        raise UserError("no two 'responses' of the row differ in their 'scores'")
    yield from found


def undecided(row: dict[str, Any]) -> tuple[int, int]:
    """Comparisons of a scored row that make no pair: (of equal scores, of equal answers).

    The row is one that `to_preferences` reads.
    """
    if row.get("responses") is None or row.get("scores") is None:
        return 0, 0
    responses, scores = parsed("responses", row["responses"]), parsed("scores", row["scores"])
    compared = list(itertools.combinations(zip(responses, scores, strict=True), 2))
    ties = sum(one[1] == other[1] for one, other in compared)
    return ties, sum(a == b and x != y for (a, x), (b, y) in compared)


def _judged(row: dict[str, Any]) -> Judged:
    label = row["label"]
    if label not in (0, 1) or isinstance(label, float):
        raise UserError(f"'label' is {str(label)[:40]!r}; it is true for a good answer, or false")
    asked = _prompt_key(row)
    if asked is None:
        raise UserError("the row has 'completion' and 'label', and no 'prompt'")
    prompt, used = _prompt(row, asked)
    completion = _answer("completion", row["completion"])
    _check(prompt, {"completion": completion})
    _check_rest(row, used | {"completion", "label"}, [*prompt, *completion])
    return Judged(prompt, completion, bool(label))


def _prompt_key(row: dict[str, Any]) -> str | None:
    keys = ("prompt", "question", "query", "instruction", "messages", "conversations")
    return next((key for key in keys if row.get(key)), None)


def _prompt(row: dict[str, Any], asked: str) -> tuple[list[Message], set[str]]:
    prompt = history_of(row.get("history") or []) + _messages(asked, "user", row[asked])
    return _with_system(row, prompt), {asked, "history"}


def _with_system(row: dict[str, Any], prompt: list[Message]) -> list[Message]:
    system = system_of(row)
    return prompt if system is None else with_system(prompt, system)


def _answer(key: str, value: Any) -> list[Message]:
    return _messages(key, "assistant", value)


def _messages(key: str, role: str, value: Any) -> list[Message]:
    """A text as a message of ``role``; a message or a list of messages, also ShareGPT's."""
    value = parsed(key, value, texts=True)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, str | list) or not value:
        raise UserError(f"{key!r} must be a text or a list of messages, and not empty")
    return turns_of(role, value) if isinstance(value, str) else sharegpt(value)


def _check(prompt: list[Message], answers: dict[str, list[Message]]) -> None:
    """Raise UserError unless every answer is the assistant's and says something."""
    if not prompt:
        raise UserError(
            "'chosen' and 'rejected' have no common beginning, and there is no 'prompt'"
        )
    for key, answer in answers.items():
        if not answer or not isinstance(answer[0], dict) or answer[0].get("role") != "assistant":
            raise UserError(
                f"{key!r} must begin with a message of the assistant's after the prompt"
            )
        read_turns([*prompt, *answer])
        if not any(message.get("content") or message.get("tool_calls") for message in answer):
            raise UserError(f"{key!r} is empty")


def _check_rest(row: dict[str, Any], used: set[str], messages: list[Message]) -> None:
    unused = {key: value for key, value in row.items() if value and key not in used}
    check_unused(unused, used, messages)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key!r} must be numbers, not {str(value)[:40]!r}")
    return float(value)
