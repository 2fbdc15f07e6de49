"""Answers of lm-eval's generation tasks by the engine that serves (`lit_llm.models.engine`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TextIO

from lit_llm.evaluate.decode import Decoding, cut_text, stop_tokens
from lit_llm.evaluate.measuring import measuring
from lit_llm.evaluate.reasoning import Answered, AnswerStart, Reasoning
from lit_llm.evaluate.scoring.budget import free_share
from lit_llm.evaluate.scoring.kept import KeptParts, digest
from lit_llm.evaluate.scoring.sharing import gather, progress, ranks
from lit_llm.models.engine.budget import token_budgets
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.requests import (
    Event,
    Finished,
    GenerationRequest,
    OnEvent,
    SamplingSettings,
)
from lit_llm.models.engine.sequence import Sequence as Running
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer

_RUNNING = 64
"""Answers that are computed at the same time, unless the caller says another number."""
_MARGIN = 8
"""Tokens that a stop string is looked for in beyond its own bytes."""


class Prompt(NamedTuple):
    """One answer to write: token ids, settings, and what its random numbers depend on."""

    ids: list[int]
    how: Decoding
    seed: int
    choice: int


def engine_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    stop_ids: set[int],
    *,
    pack: bool,
    max_running: int | None = None,
    bar_stream: TextIO | None = None,
    kept: KeptParts | None = None,
    reasoning: Reasoning | None = None,
) -> list[Answered]:
    """Answer each prompt, up to its first stop string or stop token.

    Ranks share the prompts, each gets all answers, and all must call it together. Prompts with a
    common beginning compute it once; so do several samples of one prompt, which go to one rank.

    Args:
        model: with whole weights on every rank.
        tokenizer: its tokenizer.
        prompts: what to answer, the same on every rank.
        stop_ids: tokens that end an answer.
        pack: whether the model may be changed for speed, see `Engine`.
        max_running: most answers at the same time. None: 64.
        bar_stream: where the first rank shows a progress bar. None: nowhere.
        kept: takes finished answers, and has those of an earlier run.
        reasoning: how the model marks reasoning, which is no part of the answer. None: it has none.

    Raises:
        UserError: a prompt does not fit into memory.
        RuntimeError: the engine failed.
    """
    rank, count = ranks()
    # Neighbours in this order share most, and equal prompts are neighbours.
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].ids)
    distinct, mine, before = -1, [], None
    for number in order:
        distinct += prompts[number].ids != before
        before = prompts[number].ids
        if distinct % count == rank:
            mine.append(number)
    found: dict[int, Answered] = {}
    if kept is not None:
        keys = {number: digest(*prompts[number], sorted(stop_ids), reasoning) for number in mine}
        there = {number: kept.get(key) for number, key in keys.items()}
        found = {number: Answered(*one) for number, one in there.items() if one is not None}
        mine = [number for number in mine if number not in found]
    if mine:
        with measuring(model), progress(bar_stream, len(mine), "generating", "answer") as bar:
            free = free_share(model)
            budgets = token_budgets(model, None if free is None else free / 1e9)
            engine = Engine(
                model, *budgets, max_running=max_running or _RUNNING, tokenizer=tokenizer, pack=pack
            )
            going = {
                number: _Answer(tokenizer, prompts[number], stop_ids, reasoning) for number in mine
            }
            for answer in going.values():
                answer.begin(engine)
            while going:
                engine.step()
                for number in [number for number, answer in going.items() if answer.finished]:
                    found[number] = going.pop(number).answered()
                    bar.update(1)
                    if kept is not None:
                        kept.put(keys[number], found[number])
    whole = gather(found)
    return [whole[number] for number in range(len(prompts))]


class _Answer:
    """An answer while it is written; it ends itself at a stop string or at one of its limits."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Prompt, stop_ids: set[int], reasoning: Reasoning | None
    ):
        self._tokenizer, self._prompt = tokenizer, prompt
        how = prompt.how
        self._stop_ids = stop_tokens(tokenizer, how, stop_ids)
        # A token has a byte or more, so a stop string lies within these last tokens.
        longest = max((len(stop.encode()) for stop in how.until), default=0)
        self._seen = longest + _MARGIN
        self._ids: list[int] = []
        self._running: Running | None = None
        self._error: str | None = None
        self._cut = self.finished = False
        end_of_prompt = tokenizer.decode(prompt.ids[-_MARGIN:], skip_special_tokens=False)
        self._start = AnswerStart(tokenizer, reasoning, end_of_prompt)
        self._limits = (0, how.max_new_tokens)
        if reasoning is not None:
            self._limits = reasoning.limits(how.max_new_tokens)

    def begin(self, engine: Engine) -> None:
        """Give the request to the engine."""
        ids, how, seed, choice = self._prompt
        request = GenerationRequest(
            ids, how.max_new_tokens, SamplingSettings(**vars(how.sampling)), seed, choice,
            sorted(self._stop_ids),
        )  # fmt: skip
        engine.check(request)
        on_event: OnEvent = self._take
        self._running = engine.add(request, on_event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._error, self.finished = event.error, True
            self._cut |= event.reason == "length"
            return
        self._ids.append(event.id)
        self._start.look(self._ids)
        most_before, most = self._limits
        begin = self._start.begin
        if begin is None:
            over = self._cut = len(self._ids) >= most_before
        else:
            self._cut = len(self._ids) - begin >= most
            over = self._cut or self._stops(self._ids[begin:])
        if over and self._running is not None:
            self._running.cancelled = True

    def _stops(self, ids: list[int]) -> bool:
        end = self._tokenizer.decode(ids[-self._seen :], skip_special_tokens=True)
        if len(ids) <= self._seen:
            end = self._start.rest + end
        return any(stop in end for stop in self._prompt.how.until)

    def answered(self) -> Answered:
        """The answer before its first stop string, and how it ended."""
        if self._error is not None:
            raise RuntimeError(self._error)
        begin = self._start.begin
        if begin is None and (self._start.inside or self._cut):
            return Answered("", "unanswered")
        text = self._tokenizer.decode(self._ids[begin or 0 :], skip_special_tokens=True)
        if begin:  # white space after the reasoning belongs to neither
            text = (self._start.rest + text).lstrip()
        stopped = cut_text(text, self._prompt.how)
        if self._cut and stopped == text:
            return Answered(text, "cut")
        return Answered(stopped, None if stopped.strip() else "empty")
