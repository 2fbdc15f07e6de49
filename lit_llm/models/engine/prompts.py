"""Chunks of prompts: which ones are computed in one pass, and the pass.

Shapes: B chunks, T positions of a chunk, C hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_llm.models.engine.adapters import MixedAdapters
from lit_llm.models.engine.memory import SlotMemory
from lit_llm.models.engine.prefix import PrefixCache, digests, root
from lit_llm.models.engine.prompt_view import Place, PromptView
from lit_llm.models.engine.sequence import Sequence as Running
from lit_llm.models.engine.slots import CHUNK, SlotTable
from lit_llm.models.mlp import Experts
from lit_llm.models.transformer import Transformer

MOST_TOGETHER = 4
"""Most chunks in one pass. More rows make the products no faster."""


@dataclass(frozen=True)
class Chunk:
    """The positions begin .. end - 1 of a prompt.

    Attributes:
        digest: for the prefix cache, if the cache should keep the chunk.
    """

    sequence: Running
    begin: int
    end: int
    digest: bytes | None


class PromptChunks:
    """Computes chunks of prompts, several in one pass where that changes no bits.

    Args:
        model: with its weights as the passes use them.
        table, memory: slots that hold the prompts' keys and values.
        prefixes: chunks that need not be computed again.
        adapters: of the model.
    """

    def __init__(
        self,
        model: Transformer,
        table: SlotTable[Running],
        memory: SlotMemory,
        prefixes: PrefixCache,
        adapters: MixedAdapters,
    ):
        self._model, self._table, self._memory = model, table, memory
        self._prefixes, self._adapters = prefixes, adapters
        self.together = chunks_together(model)

    def passes(self, planned: Sequence[Running]) -> Iterator[list[Chunk]]:
        """Yield the chunks of each pass; the caller gives them to `compute` before it goes on.

        Chunks that the prefix cache has are copied instead. A chunk that the pass before it puts
        into the cache is copied too.

        Args:
            planned: a sequence is in it once for each of its chunks.
        """
        some: list[Chunk] = []
        for sequence in planned:
            chunk = self._next(sequence, some)
            if chunk is not None and some and not self._joins(chunk, some):
                yield some
                some = []
                chunk = self._next(sequence, some)
            if chunk is not None:
                some.append(chunk)
        if some:
            yield some

    def _next(self, sequence: Running, before: list[Chunk]) -> Chunk | None:
        """The next chunk of a prompt after those ``before``; None: it has no more, or has ended."""
        if sequence.finished:
            return None
        begin = next((c.end for c in reversed(before) if c.sequence is sequence), None)
        if begin is None:
            begin = self._copy_known(sequence)
        if begin >= sequence.prompt_length:
            return None
        chain, place = self._digests(sequence), begin // CHUNK
        kept = place < len(chain) and self._prefixes.keeps(chain[place], place)
        end = min(begin + CHUNK, sequence.prompt_length)
        return Chunk(sequence, begin, end, chain[place] if kept else None)

    def _joins(self, chunk: Chunk, some: list[Chunk]) -> bool:
        """Whether a chunk can be computed in one pass with others."""
        adapters = {c.sequence.request.adapter for c in (*some, chunk)}
        known_soon = chunk.digest is not None and chunk.digest in {c.digest for c in some}
        return len(some) < self.together and adapters == {None} and not known_soon

    def _copy_known(self, sequence: Running) -> int:
        """Copy chunks from the prefix cache; return the number of positions that are computed."""
        prompt, chain = sequence.request.prompt, self._digests(sequence)
        index = self._table.index(sequence, sequence.capacity)
        while (begin := sequence.computed) // CHUNK < len(chain):
            entry = self._prefixes.get(chain[begin // CHUNK], prompt[begin : begin + CHUNK])
            if entry is None:
                break
            self._memory.write(sequence.capacity, index, begin, entry.keys, entry.values)
            sequence.computed += CHUNK
            if not sequence.new_tokens:  # else it was preempted, and this is its own work
                sequence.cached_tokens += CHUNK
        return sequence.computed

    def _digests(self, sequence: Running) -> list[bytes]:
        if sequence.digests is None:
            request = sequence.request
            begin = root(request.adapter, str(self._memory.dtype), request.scope)
            sequence.digests = list(digests(begin, request.prompt))
        return sequence.digests

    def compute(self, chunks: list[Chunk]) -> list[tuple[Running, Tensor]]:
        """Run the chunks of one pass.

        Returns the sequences whose answers begin now, with the hidden state (C,) of their prompts'
        last tokens.
        """
        device, ids, places = self._memory.device, [], []
        for chunk in chunks:
            prompt, capacity = chunk.sequence.request.prompt, chunk.sequence.capacity
            missing = CHUNK - (chunk.end - chunk.begin)
            ids.append([*prompt[chunk.begin : chunk.end], *[0] * missing])
            index = self._table.index(chunk.sequence, capacity)
            before = prompt[chunk.begin - 1] if chunk.begin else None
            places.append(Place(capacity, index, chunk.begin, before))
        view = PromptView(self._memory, places, self._model.config.max_seq_len - 1)
        self._adapters.route([chunks[0].sequence.request.adapter], device)
        x_BTC = self._model.hidden_states(torch.tensor(ids, device=device), cache=view)
        ready = []
        for chunk, place, x_TC in zip(chunks, places, x_BTC, strict=True):
            sequence = chunk.sequence
            sequence.computed = chunk.end
            if chunk.digest is not None:
                kept = self._memory.read(place.capacity, place.index, chunk.begin, chunk.end)
                prompt = sequence.request.prompt
                self._prefixes.put(chunk.digest, prompt[chunk.begin : chunk.end], *kept)
            if not sequence.waits_for_prompt:
                self._prefixes.touch(self._digests(sequence))
                if not sequence.new_tokens:
                    ready.append((sequence, x_TC[chunk.end - chunk.begin - 1]))
        return ready


def even_position(model: Transformer) -> float:
    """Position from which a chunk's attention takes longer than its products with the weights.

    Both have the same number of operations at twice this position. But attention's take twice as
    long: they write and read the weights of all keys (docs/labbook/engine.md). Experts are not
    counted, so that a step of their models rather has too few chunks than too many.
    """
    config = model.config
    assert config.head_dim is not None
    weights = sum(
        module.in_features * module.out_features
        for module in model.layers.modules()
        if isinstance(module, nn.Linear)
    )
    return weights / (config.num_layers * 4 * config.num_heads * config.head_dim)


@torch.inference_mode()
def chunks_together(model: Transformer) -> int:
    """Number of chunks in one pass, at most `MOST_TOGETHER`, that gives each of them the same bits.

    The libraries have several kernels for a product, and which one is used depends on the number of
    rows. So the products of the model are compared here, one of each shape. A model whose experts
    or `Smear` see the rows of all chunks computes each chunk by itself.
    """
    if model.config.reads_token_before or any(
        isinstance(module, Experts) for module in model.modules()
    ):
        return 1
    weight = model.embed.weight
    together = MOST_TOGETHER
    for layer in _one_of_each_shape(model):
        rows = torch.randn(
            MOST_TOGETHER * CHUNK, layer.in_features, dtype=torch.float32,
            generator=torch.Generator().manual_seed(0),
        ).to(weight.device, weight.dtype)  # fmt: skip
        alone = torch.cat([layer.forward(chunk) for chunk in rows.split(CHUNK)])
        while together > 1 and not all(
            torch.equal(layer.forward(rows[: count * CHUNK]), alone[: count * CHUNK])
            for count in range(2, together + 1)
        ):
            together -= 1
    return together


def _one_of_each_shape(model: Transformer) -> list[nn.Linear]:
    """The linear layers of the blocks, one of each shape. The head has other rows."""
    found = {
        (module.in_features, module.out_features, module.bias is not None): module
        for module in model.layers.modules()
        if isinstance(module, nn.Linear)
    }
    return list(found.values())
