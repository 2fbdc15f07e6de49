"""What the model sees of the slots while it computes chunks of prompts.

Shapes: B chunks, H query heads, K key/value heads, G = H / K query heads of one key head, T
positions of a chunk, S keys that a chunk sees, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.models.attention import Attention, KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.engine.memory import SlotMemory
from lit_llm.models.kernels.backends import Backends
from lit_llm.models.kernels.blocked_attention import heads_inside
from lit_llm.models.masks import Mask

_WEIGHTS_BYTES = 2**20
"""Most bytes of attention weights in one product. Larger ones take several times as long: the
allocator returns their memory to the system after each product."""
_BORDER = 64
"""Keys before a window are left out in multiples of this number."""


@dataclass(frozen=True)
class Place:
    """Where the keys and values of one chunk go.

    Attributes:
        capacity, index: of the slot. Earlier chunks of the prompt are in it.
        begin: position of the chunk's first token.
        before: id of the token before it; None: the chunk is the prompt's first.
    """

    capacity: int
    index: int
    begin: int
    before: int | None


class PromptView(KVCache):
    """The slots of B chunks of T tokens each.

    Attention is computed for each chunk by itself, so its products have shapes that depend on the
    chunk's place in its own prompt only. A chunk may follow another one of the same prompt.

    Args:
        memory: the slots.
        places: of the chunks. Either all or none of them are the first of their prompts in a model
            with `Smear`.
        last: the context's last position.
    """

    length = 0  # the chunks have places of their own, see `positions`

    def __init__(self, memory: SlotMemory, places: Sequence[Place], last: int):
        self._memory, self._places, self._last = memory, places, last
        self._device = memory.layer(places[0].capacity, 0)[0].device
        self._biases: dict[int | None, list[Tensor]] = {}

    def remember(self, ids_BT: Tensor) -> Tensor:
        """Return the ids of the chunks after the ids before them, if any."""
        before = [place.before for place in self._places]
        if None in before:
            return ids_BT
        return torch.cat((ids_BT.new_tensor(before)[:, None], ids_BT), 1)

    def positions(self, T: int) -> Tensor:
        """Positions (B, 1, T). Those of the padding stay within the context."""
        begins_B = torch.tensor([place.begin for place in self._places], device=self._device)
        positions_BT = begins_B[:, None] + torch.arange(T, device=self._device)
        return positions_BT.clamp(max=self._last)[:, None]

    def masks(
        self,
        config: TransformerConfig,
        backends: Backends,
        input_ids: Tensor,
        padding_mask: Tensor | None,
    ) -> dict[int | None, Mask]:
        """No masks: `attend` knows the places. They are prepared for each kind of layer here."""
        assert config.num_kv_heads is not None
        groups, T = config.num_heads // config.num_kv_heads, input_ids.shape[1]
        windows = {config.window(layer) for layer in range(config.num_layers)}
        self._biases = {
            window: [self._bias(place.begin, T, window).repeat(groups, 1) for place in self._places]
            for window in windows
        }
        return dict.fromkeys(windows)

    def _bias(self, begin: int, T: int, window: int | None) -> Tensor:
        """(T, S) in the cache's dtype: 0 where a query sees a key, else -inf."""
        queries = torch.arange(begin, begin + T, device=self._device)[:, None]
        keys = torch.arange(_first_key(begin, window), begin + T, device=self._device)
        seen = keys <= queries
        if window is not None:
            seen &= keys > queries - window
        bias = torch.zeros(seen.shape, device=self._device, dtype=self._memory.dtype)
        return bias.masked_fill_(~seen, -torch.inf)

    def attend(
        self, attention: Attention, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask
    ) -> Tensor:
        """Write the new keys and values, and return the weighted values (B, H, T, D)."""
        y_BHTD, T = heads_inside(q_BHTD), q_BHTD.shape[2]
        for i, (place, bias) in enumerate(
            zip(self._places, self._biases[attention.window], strict=True)
        ):
            keys_KSD, values_KSD = (
                t[place.index] for t in self._memory.layer(place.capacity, attention.layer)
            )
            new = slice(place.begin, place.begin + T)
            keys_KSD[:, new], values_KSD[:, new] = k_BKTD[i], v_BKTD[i]
            seen = slice(_first_key(place.begin, attention.window), new.stop)
            y_BHTD[i] = _weighted(
                attention, q_BHTD[i], keys_KSD[:, seen], values_KSD[:, seen], bias
            )
        return y_BHTD

    def advance(self, T: int) -> None:
        """Nothing: the sequences know their lengths."""


def _first_key(begin: int, window: int | None) -> int:
    """Position of the first key that is read for a chunk that begins at ``begin``."""
    return 0 if window is None else max(begin - window + 1, 0) // _BORDER * _BORDER


def _weighted(
    attention: Attention, q_HTD: Tensor, keys_KSD: Tensor, values_KSD: Tensor, bias: Tensor
) -> Tensor:
    """Return the weighted values (H, T, D); ``bias`` is (G * T, S).

    The query heads of a key head are rows of one product. On a CPU this takes a fifth of the time
    of ``scaled_dot_product_attention`` with a mask.
    """
    scale, cap = attention.scale or attention.head_dim**-0.5, attention.softcap
    q = q_HTD.reshape(len(keys_KSD), -1, q_HTD.shape[2])
    y = torch.empty_like(q)
    together = max(1, _WEIGHTS_BYTES // (bias.numel() * bias.itemsize))
    for first in range(0, len(q), together):
        heads = slice(first, first + together)
        keys = keys_KSD[heads].transpose(1, 2)
        if cap is None:
            scores = torch.baddbmm(bias, q[heads], keys, alpha=scale)
        else:
            scores = bias + cap * torch.tanh(torch.bmm(q[heads], keys).float() * (scale / cap))
        torch.bmm(scores.softmax(-1).to(q.dtype), values_KSD[heads], out=y[heads])
    return y.view_as(q_HTD)
