"""The engine's steps, without a thread: the same requests give the same steps.

A step computes chunks of prompts, then one token of every running answer in batches of at most
`ROWS` rows, then the logits and the next tokens of both.

Shapes: R rows, C hidden width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.engine.adapters import MixedAdapters
from lit_llm.models.engine.answer_view import AnswerView, Row
from lit_llm.models.engine.experts import pack_experts
from lit_llm.models.engine.grammar import Grammars
from lit_llm.models.engine.memory import SlotMemory
from lit_llm.models.engine.prefix import PrefixCache
from lit_llm.models.engine.prompts import Chunk, PromptChunks, even_position
from lit_llm.models.engine.random_numbers import uniform
from lit_llm.models.engine.requests import (
    Finished,
    FinishReason,
    GeneratedToken,
    GenerationRequest,
    OnEvent,
)
from lit_llm.models.engine.rows import ROWS, row_step
from lit_llm.models.engine.sampling import MOST_LOGPROBS, SamplingRow, choose
from lit_llm.models.engine.scheduler import Scheduler
from lit_llm.models.engine.sequence import Sequence as Running
from lit_llm.models.engine.slots import Move, SlotTable, capacities
from lit_llm.models.kernels.packed import pack_linears
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Block, Transformer

log = logging.getLogger(__name__)
Item = TypeVar("Item")


class Engine:
    """Many requests on one model. `step` computes; `lit_llm.models.engine.loop` calls it.

    Args:
        model: in evaluation mode.
        kv_tokens: budget of positions in slots.
        prefix_tokens: budget of positions in the prefix cache.
        step_tokens: prompt tokens in a step. None: 256 on a CPU, else 2,048.
        max_running: requests that are computed at the same time.
        adapters: name -> PEFT directory of a LoRA adapter of the model, see `MixedAdapters`.
        tokenizer: the model's, for requests with a grammar. None: they are refused.
        pack: whether the model's weights are packed on a CPU, in place, see `pack_linears` and
            `pack_experts`. Without, the model can be trained on, and the bits of an answer may
            depend on the other answers.
    """

    def __init__(
        self,
        model: Transformer,
        kv_tokens: int,
        prefix_tokens: int = 0,
        step_tokens: int | None = None,
        max_running: int = 256,
        adapters: Mapping[str, str | Path] | None = None,
        tokenizer: Tokenizer | None = None,
        pack: bool = True,
    ):
        self.model, self.max_seq_len = model.eval(), model.config.max_seq_len
        self.row_step = row_step(model.config, bool(adapters))
        self.adapters = MixedAdapters(model, adapters or {}, self.row_step)
        self.grammars = None
        if tokenizer is not None:
            self.grammars = Grammars(tokenizer, model.config.vocab_size)
        if pack:
            pack_linears(model)
            pack_experts(model, self.row_step)
        weight, block = model.embed.weight, model.layers[0]
        assert isinstance(block, Block) and model.config.head_dim is not None
        self.device, self.dtype = weight.device, weight.dtype
        if step_tokens is None:
            step_tokens = 256 if self.device.type == "cpu" else 2048
        self.table: SlotTable[Running] = SlotTable(capacities(self.max_seq_len), kv_tokens)
        self.memory = SlotMemory(
            model.config.num_layers, block.attention.num_kv_heads, model.config.head_dim,
            kv_tokens, self.device, self.dtype,
        )  # fmt: skip
        self.scheduler = Scheduler(
            self.table,
            step_tokens,
            even_position(model),
            max_running,
            self._moved,
            self._grown,
            self._taken,
        )
        self.prefixes = PrefixCache(prefix_tokens)
        self.prompts = PromptChunks(model, self.table, self.memory, self.prefixes, self.adapters)
        self._arrived = 0

    # Requests

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that can never run.

        Raises:
            UserError: for an empty prompt, ids outside the vocabulary, more tokens than the context
                or the whole budget have, more log-probabilities than `MOST_LOGPROBS`, an unknown
                adapter, or a grammar that cannot be enforced.
        """
        V, prompt = self.model.config.vocab_size, request.prompt
        if not prompt:
            raise UserError("a prompt needs at least one token")
        if request.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={request.max_new_tokens}: must be >= 1")
        if len(prompt) + request.max_new_tokens > self.max_seq_len:
            raise UserError(
                f"prompt of {len(prompt)} tokens + {request.max_new_tokens} new ones exceed "
                f"max_seq_len={self.max_seq_len}"
            )
        for name, ids in (("prompt", prompt), ("logit_bias", request.sampling.logit_bias)):
            if ids and not (min(ids) >= 0 and max(ids) < V):
                raise UserError(f"{name}: token ids must be from 0 to {V - 1}")
        if (request.top_logprobs or 0) not in range(MOST_LOGPROBS + 1):
            raise UserError(
                f"top_logprobs={request.top_logprobs}: must be from 0 to {MOST_LOGPROBS}"
            )
        if request.adapter is not None and request.adapter not in self.adapters.names:
            known = ", ".join(self.adapters.names) or "none"
            raise UserError(f"no adapter named {request.adapter!r}; known are {known}")
        if request.grammar is not None:
            if self.grammars is None:
                raise UserError("grammar: this engine has no tokenizer to follow a grammar with")
            self.grammars.check(request.grammar, request.stop_ids)
        if not self.scheduler.can_ever_run(Running(0, request, lambda event: None)):
            raise UserError(
                f"prompt of {len(prompt)} tokens + {request.max_new_tokens} new ones exceed the "
                f"memory for {self.table.budget:,} tokens"
            )

    def add(self, request: GenerationRequest, on_event: OnEvent) -> Running:
        """Take a request that `check` accepts. Its events come in later steps."""
        sequence = Running(self._arrived, request, on_event)
        self._arrived += 1
        self.scheduler.add(sequence)
        return sequence

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def end_all(self, reason: FinishReason, error: str | None = None) -> None:
        """End every request, whatever state a failed step has left them in."""
        for sequence in self.scheduler.clear():
            self._tell_end(sequence, reason, error=error)

    # One step

    @torch.inference_mode()
    def step(self) -> None:
        """Compute some tokens of some requests, and call their ``on_event``."""
        self._drop_cancelled()
        plan = self.scheduler.plan()
        ready: list[tuple[Running, Tensor]] = []  # with the input of the head, (C,)
        for chunks in self.prompts.passes(plan.chunks):
            ready += self._chunks(chunks)
        for some in _blocks(sorted(plan.answers, key=self._place)):
            with self._ends_on_error(some):
                ready += self._answers(some)
        rows = []
        for sequence, x_C in ready:
            with self._ends_on_error([sequence]):
                rows.append((sequence, x_C, self._sampling(sequence)))
        for block in _blocks(rows):
            with self._ends_on_error([sequence for sequence, _, _ in block]):
                self._choose(block)

    def _drop_cancelled(self) -> None:
        for sequence in [*self.scheduler.waiting, *self.scheduler.running]:
            if sequence.cancelled:
                self._finish(sequence, "cancelled")

    @contextmanager
    def _ends_on_error(self, sequences: list[Running]) -> Iterator[None]:
        """An error ends the requests that it happened to; all others go on."""
        try:
            yield
        except Exception as error:
            log.error("a step of the engine failed", exc_info=error)
            for sequence in sequences:
                if sequence.finished is None:
                    self._finish(sequence, "error", error=f"{type(error).__name__} in the engine")

    def _chunks(self, chunks: list[Chunk]) -> list[tuple[Running, Tensor]]:
        """Compute chunks of prompts in one pass, or one by one if that fails."""
        if len(chunks) > 1:
            try:
                return self.prompts.compute(chunks)
            except Exception as error:
                log.warning("a pass of the engine failed", exc_info=error)
        ready = []
        for chunk in chunks:
            if chunk.sequence.finished is None:
                with self._ends_on_error([chunk.sequence]):
                    ready += self.prompts.compute([chunk])
        return ready

    def _answers(self, sequences: list[Running]) -> list[tuple[Running, Tensor]]:
        """Compute one token of each answer; return those whose next token is not known yet."""
        # Slots may have moved since the blocks were made: a request that failed has freed one.
        sequences.sort(key=self._place)
        rows = [Row(*self._place(s), s.computed) for s in sequences]
        ids = [[s.tokens[s.computed]] for s in sequences]
        ids += [[0]] * (-len(ids) % self.row_step)
        before = [s.tokens[s.computed - 1] for s in sequences]
        view = AnswerView(self.memory, rows, before, len(ids))
        names = [s.request.adapter for s in sequences]
        self.adapters.route([*names, *[None] * (len(ids) - len(names))], self.device)
        x_R1C = self.model.hidden_states(torch.tensor(ids, device=self.device), cache=view)
        ready = []
        for sequence, x_1C in zip(sequences, x_R1C, strict=False):
            sequence.computed += 1
            if not sequence.remaining:  # else it was preempted, and repeats what it has answered
                ready.append((sequence, x_1C[0]))
        return ready

    def _choose(self, block: list[tuple[Running, Tensor, SamplingRow]]) -> None:
        """Choose the next token of each sequence and tell it."""
        x_RC = torch.stack([x_C for _, x_C, _ in block])
        padding = x_RC.new_zeros(-len(x_RC) % self.row_step, x_RC.shape[1])
        logits_RV = self.model.logits(torch.cat((x_RC, padding)))[: len(block)].float()
        tokens = choose(logits_RV, [row for _, _, row in block])
        for (sequence, _, _), token in zip(block, tokens, strict=True):
            with self._ends_on_error([sequence]):
                if token is None:
                    raise RuntimeError("no token can be chosen")
                self._append(sequence, token)

    def _sampling(self, sequence: Running) -> SamplingRow:
        request = sequence.request
        settings = request.sampling
        if request.grammar is not None and sequence.grammar is None:
            assert self.grammars is not None
            sequence.grammar = self.grammars.match(request.grammar, request.stop_ids)
        counted = settings.repetition_penalty != 1
        answered = counted or settings.presence_penalty or settings.frequency_penalty
        return SamplingRow(
            settings,
            uniform(request.seed, request.choice, sequence.new_tokens),
            frozenset(request.prompt if counted else ()),
            Counter(sequence.tokens[sequence.prompt_length :] if answered else ()),
            request.top_logprobs,
            None if sequence.grammar is None else sequence.grammar.mask(),
        )

    def _append(self, sequence: Running, token: GeneratedToken) -> None:
        if token.id in sequence.request.stop_ids:
            self._finish(sequence, "stop", stop_id=token.id)
            return
        sequence.tokens.append(token.id)
        self._tell(sequence, token)
        if sequence.grammar is not None:
            sequence.grammar.accept(token.id)
            if sequence.grammar.complete:
                self._finish(sequence, "stop")
                return
        if sequence.new_tokens == sequence.request.max_new_tokens:
            self._finish(sequence, "length")

    # Ends

    def _finish(
        self,
        sequence: Running,
        reason: FinishReason,
        stop_id: int | None = None,
        error: str | None = None,
    ) -> None:
        self.scheduler.drop(sequence)
        self._tell_end(sequence, reason, stop_id, error)

    def _tell_end(
        self,
        sequence: Running,
        reason: FinishReason,
        stop_id: int | None = None,
        error: str | None = None,
    ) -> None:
        sequence.finished = reason
        self._tell(
            sequence,
            Finished(
                reason, sequence.prompt_length, sequence.cached_tokens, sequence.new_tokens,
                stop_id, error,
            ),
        )  # fmt: skip

    def _tell(self, sequence: Running, event: GeneratedToken | Finished) -> None:
        try:
            sequence.on_event(event)
        except Exception as error:
            log.error("a caller's on_event raised", exc_info=error)
            sequence.cancelled = True

    # Slots

    def _place(self, sequence: Running) -> tuple[int, int]:
        return sequence.capacity, self.table.index(sequence, sequence.capacity)

    def _taken(self, capacity: int) -> None:
        used = {each: self.table.count(each) for each in self.table.capacities}
        self.memory.ensure(capacity, used)

    def _moved(self, move: Move) -> None:
        self.memory.close_gap(move)

    def _grown(self, sequence: Running, old: int) -> None:
        new = sequence.capacity
        source, target = self.table.index(sequence, old), self.table.index(sequence, new)
        self.memory.grow(old, source, new, target, sequence.computed)


def _blocks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Cut into blocks of at most `ROWS`, of about the same size."""
    count = -(-len(items) // ROWS)
    for i in range(count):
        yield list(items[i * len(items) // count : (i + 1) * len(items) // count])
