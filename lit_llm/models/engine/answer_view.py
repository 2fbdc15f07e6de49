"""What the model sees of the slots while it computes one token of each of several answers.

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

KEYS_FIRST = torch.cpu._is_amx_tile_supported()
"""Whether keys times queries is faster than queries times keys: up to twice with AMX's products,
15% slower without (docs/labbook/engine.md)."""


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

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """(N, 1, S): 0 where a slot's query sees a key, else -inf."""
        keys = torch.arange(self.capacity, device=self.last_N.device)
        last_N1 = self.last_N[:, None]
        seen_NS = keys <= last_N1
        if window is not None:
            seen_NS &= keys > last_N1 - window
        bias_NS = torch.zeros(seen_NS.shape, device=keys.device, dtype=dtype)
        return bias_NS.masked_fill_(~seen_NS, -torch.inf)[:, None]


class AnswerView(KVCache):
    """One new token for each of several answers, whose slots and lengths differ.

    Attention is two batched products over each class of slots, with the query heads of a key head
    as rows and a softmax between them, which adds up in float32. All positions of a slot are
    multiplied, also those that are empty: the shape then depends on the sequence's own length only.

    Args:
        memory: the slots.
        rows: of the answers, ascending.
        before: id of the token before each row's new one.
        padded: B, at least the number of rows. What the model computes for the rows beyond is not
            kept.
    """

    length = 0  # the rows have lengths of their own, see `positions`

    def __init__(self, memory: SlotMemory, rows: list[Row], before: list[int], padded: int):
        self._memory = memory
        device = memory.layer(rows[0].capacity, 0)[0].device
        self._before_B1 = torch.tensor(before + [0] * (padded - len(rows)), device=device)[:, None]
        positions = [row.position for row in rows] + [0] * (padded - len(rows))
        self._positions = torch.tensor(positions, device=device)[:, None, None]
        assert rows == sorted(rows)
        self._count = len(rows)
        self._batches, first = [], 0
        for _, group in itertools.groupby(rows, lambda row: row.capacity):
            some = list(group)
            self._batches.append(_Batch(first, some, memory.num_kv_heads, device))
            first += len(some)
        self._biases: dict[int | None, list[Tensor]] = {}

    def remember(self, ids_BT: Tensor) -> Tensor:
        """Return the ids (B, 2) of the tokens before the new ones, and of these."""
        return torch.cat((self._before_B1, ids_BT), 1)

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
        self._biases = {
            window: [
                batch.bias(window, self._memory.dtype).repeat_interleave(
                    self._memory.num_kv_heads, 0
                )
                for batch in self._batches
            ]
            for window in windows
        }
        return dict.fromkeys(windows)

    def attend(
        self, attention: Attention, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask
    ) -> Tensor:
        """Write the new keys and values, and return the weighted values (B, H, 1, D)."""
        B, H, _, D = q_BHTD.shape
        K = k_BKTD.shape[1]
        q_BKGD = q_BHTD.reshape(B, K, H // K, D)
        scale = attention.scale or D**-0.5
        y_BKGD = torch.empty_like(q_BKGD)
        y_BKGD[self._count :] = 0
        for batch, bias in zip(self._batches, self._biases[attention.window], strict=True):
            keys_NKSD, values_NKSD = self._memory.layer(batch.capacity, attention.layer)
            for all_NKSD, new_BKTD in ((keys_NKSD, k_BKTD), (values_NKSD, v_BKTD)):
                all_NKSD.view(-1, D).index_copy_(
                    0, batch.places, new_BKTD[batch.rows].reshape(-1, D)
                )
            used = slice(batch.begin, batch.end)
            keys, values = keys_NKSD[used].flatten(0, 1), values_NKSD[used].flatten(0, 1)
            queries = batch.spread(q_BKGD[batch.rows]).flatten(0, 1)
            if attention.softcap is None:
                scores = _scores(bias, queries, keys, scale)
            else:
                cap = attention.softcap
                products = _scores(torch.zeros_like(bias), queries, keys, 1.0)
                scores = bias + cap * torch.tanh(products.float() * (scale / cap))
            weights = scores.softmax(-1).to(values.dtype)
            y_NKGD = torch.bmm(weights, values).unflatten(0, (-1, K))
            y_BKGD[batch.rows] = y_NKGD if batch.local is None else y_NKGD[batch.local]
        return y_BKGD.reshape(B, H, 1, D)

    def advance(self, T: int) -> None:
        """Nothing: the sequences know their lengths."""


def _scores(bias: Tensor, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``bias`` (M, 1, S) + scale * queries (M, G, D) times keys (M, S, D): (M, G, S)."""
    if KEYS_FIRST:
        scores = torch.baddbmm(bias.mT, keys, queries.mT, alpha=scale)
        return scores.mT.contiguous()
    return torch.baddbmm(bias, queries, keys.mT, alpha=scale)
