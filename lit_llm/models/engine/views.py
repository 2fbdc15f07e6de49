"""What the model sees of the slots in one forward pass: a chunk of a prompt, or a row an answer.

Both play the part of `KVCache`.

Shapes: B rows, N slots, H query heads, K key/value heads, G = H / K query heads of one key head,
T new positions, S positions of a slot, D head width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.models.attention import Attention, KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.engine.memory import SlotMemory
from lit_llm.models.kernels.backends import Backends
from lit_llm.models.masks import Mask


class PromptView(KVCache):
    """One slot, for a chunk of T tokens of a prompt; earlier chunks are in the slot."""

    def __init__(self, memory: SlotMemory, capacity: int, index: int, length: int, last: int):
        self._memory, self._place = memory, (capacity, index)
        self.capacity, self.length, self._last = capacity, length, last

    def positions(self, T: int) -> Tensor:
        """Positions (T,). Those of the padding stay within the context."""
        device = self._memory.layer(self.capacity, 0)[0].device
        return torch.arange(self.length, self.length + T, device=device).clamp(max=self._last)

    def update(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions and return all keys and values so far: (1, K, length + T, D)."""
        capacity, index = self._place
        begin, end = self.length, self.length + k_BKTD.shape[2]
        keys_KSD, values_KSD = (t[index] for t in self._memory.layer(capacity, layer))
        keys_KSD[:, begin:end], values_KSD[:, begin:end] = k_BKTD[0], v_BKTD[0]
        return keys_KSD[None, :, :end], values_KSD[None, :, :end]


@dataclass(frozen=True, order=True)
class Row:
    """Where one answer's next token goes."""

    capacity: int
    index: int
    position: int


class _Batch:
    """The rows first .. first + len(rows) - 1 of a step, all of one class of slots.

    They use the slots begin .. end - 1. A slot between them may have no row: its prompt is not
    complete yet.
    """

    def __init__(self, first: int, rows: list[Row], num_kv_heads: int, device: torch.device):
        self.capacity, self.begin, self.end = rows[0].capacity, rows[0].index, rows[-1].index + 1
        self.rows = slice(first, first + len(rows))
        local = [row.index - self.begin for row in rows]
        last = [0] * (self.end - self.begin)
        for place, row in zip(local, rows, strict=True):
            last[place] = row.position
        self.last_N = torch.tensor(last, device=device)
        # Slots of the rows; None if every slot has one.
        self.local = torch.tensor(local, device=device) if len(last) > len(rows) else None
        heads = torch.arange(num_kv_heads, device=device)
        slots, positions = (
            torch.tensor([[value] for value in values], device=device)
            for values in ([r.index for r in rows], [r.position for r in rows])
        )
        # Places of the new keys among all positions of all heads of all slots.
        self.places = ((slots * num_kv_heads + heads) * self.capacity + positions).flatten()

    def spread(self, q_RKGD: Tensor) -> Tensor:
        """Give each slot its row's query: (R, ...) -> (N, ...). Slots without a row get zeros."""
        if self.local is None:
            return q_RKGD
        q_NKGD = q_RKGD.new_zeros(len(self.last_N), *q_RKGD.shape[1:])
        q_NKGD[self.local] = q_RKGD
        return q_NKGD

    def bias(self, window: int | None) -> Tensor:
        """float32 (N, 1, 1, S): 0 where a slot's query sees a key, else -inf."""
        keys = torch.arange(self.capacity, device=self.last_N.device)
        last_N1 = self.last_N[:, None]
        seen_NS = keys <= last_N1
        if window is not None:
            seen_NS &= keys > last_N1 - window
        bias_NS = torch.zeros(seen_NS.shape, device=keys.device).masked_fill_(~seen_NS, -torch.inf)
        return bias_NS[:, None, None]


class AnswerView(KVCache):
    """One new token for each of several answers, whose slots and lengths differ.

    Attention is two batched products over each class of slots, with the query heads of a key head
    as rows and a softmax in float32 between them. All positions of a slot are multiplied, also
    those that are empty: the shape then depends on the sequence's own length only.

    Args:
        memory: the slots.
        rows: of the answers, ascending.
        padded: B, at least the number of rows. What the model computes for the rows beyond is not
            kept.
    """

    def __init__(self, memory: SlotMemory, rows: list[Row], padded: int):
        self._memory = memory
        device = memory.layer(rows[0].capacity, 0)[0].device
        positions = [row.position for row in rows] + [0] * (padded - len(rows))
        self._positions = torch.tensor(positions, device=device)[:, None, None]
        assert rows == sorted(rows)
        self._batches, first = [], 0
        for _, group in itertools.groupby(rows, lambda row: row.capacity):
            some = list(group)
            self._batches.append(_Batch(first, some, memory.num_kv_heads, device))
            first += len(some)
        self._biases: dict[int | None, list[Tensor]] = {}

    def positions(self, T: int) -> Tensor:
        """Positions (B, 1, 1)."""
        assert T == 1
        return self._positions

    def masks(
        self,
        config: TransformerConfig,
        backends: Backends,
        input_ids: Tensor,
        padding_mask: Tensor | None,
    ) -> dict[int | None, Mask]:
        """No masks: `attend` knows the lengths. They are prepared for each kind of layer here."""
        windows = {config.window(layer) for layer in range(config.num_layers)}
        self._biases = {w: [batch.bias(w) for batch in self._batches] for w in windows}
        return dict.fromkeys(windows)

    def attend(
        self, attention: Attention, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask
    ) -> Tensor:
        """Write the new keys and values, and return the weighted values (B, H, 1, D)."""
        B, H, _, D = q_BHTD.shape
        K = k_BKTD.shape[1]
        q_BKGD = q_BHTD.reshape(B, K, H // K, D)
        scale = attention.scale or D**-0.5
        y_BKGD = torch.zeros_like(q_BKGD)
        for batch, bias in zip(self._batches, self._biases[attention.window], strict=True):
            keys_NKSD, values_NKSD = self._memory.layer(batch.capacity, attention.layer)
            for all_NKSD, new_BKTD in ((keys_NKSD, k_BKTD), (values_NKSD, v_BKTD)):
                all_NKSD.view(-1, D).index_copy_(
                    0, batch.places, new_BKTD[batch.rows].reshape(-1, D)
                )
            used = slice(batch.begin, batch.end)
            keys, values = keys_NKSD[used].flatten(0, 1), values_NKSD[used].flatten(0, 1)
            q_NKGD = batch.spread(q_BKGD[batch.rows])
            # Keys times queries is up to twice as fast as queries times keys.
            scores = torch.bmm(keys, q_NKGD.flatten(0, 1).transpose(1, 2))
            scores_NKGS = scores.transpose(1, 2).contiguous().unflatten(0, (-1, K))
            if attention.softcap is None:
                scores_NKGS = torch.add(bias, scores_NKGS, alpha=scale)
            else:
                cap = attention.softcap
                scores_NKGS = bias + cap * torch.tanh(scores_NKGS.float() * (scale / cap))
            weights = scores_NKGS.softmax(-1).to(values.dtype).flatten(0, 1)
            y_NKGD = torch.bmm(weights, values).unflatten(0, (-1, K))
            y_BKGD[batch.rows] = y_NKGD if batch.local is None else y_NKGD[batch.local]
        return y_BKGD.reshape(B, H, 1, D)

    def advance(self, T: int) -> None:
        """Nothing: the sequences know their lengths."""
