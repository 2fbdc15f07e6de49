"""Keys and values of a prefix, and the trees of a row that continue it.

Shapes: T positions of a row, P of the prefix, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_llm.models.attention import Attention, KVCache
from lit_llm.models.config import TransformerConfig
from lit_llm.models.forest import Forest
from lit_llm.models.kernels.backends import Backends
from lit_llm.models.kernels.blocked_attention import computable
from lit_llm.models.kernels.forest_attention import forest_attention
from lit_llm.models.masks import Mask


class PrefixView(KVCache):
    """A filled cache of one row that is read, and a row of trees whose keys are not kept.

    It plays the part of `KVCache` in one forward pass of T tokens.

    Args:
        prefix: the cache, with P positions filled.
        until: where the subtree of each of the T tokens ends in their row, int64 (T,).
        position: distance of each token from the root, at least P, int64 (T,).
    """

    def __init__(self, prefix: KVCache, until: Tensor, position: Tensor):
        self._prefix, self.length = prefix, prefix.length
        P, T = prefix.length, len(until)
        self._position_BT = position[None]
        before = torch.arange(P, device=until.device)
        self._whole = Forest(
            torch.cat((torch.full_like(before, P + T), until + P))[None],
            torch.cat((before, position))[None],
        )

    def positions(self, T: int) -> Tensor:
        """Positions (1, 1, T)."""
        return self._position_BT[:, None]

    def masks(
        self,
        config: TransformerConfig,
        backends: Backends,
        input_ids: Tensor,
        padding_mask: Tensor | None,
    ) -> dict[int | None, Mask]:
        """Bool masks (1, 1, T, P + T) by window; None where `attend` needs no mask."""
        windows = {config.window(layer) for layer in range(config.num_layers)}
        if input_ids.device.type == "cpu" and config.attention_softcap is None:
            return dict.fromkeys(windows)
        return {window: self._whole.visible(window)[:, :, self.length :] for window in windows}

    def attend(
        self, attention: Attention, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask
    ) -> Tensor:
        """Return the weighted values (1, H, T, D)."""
        layer, P = attention.layer, self.length
        k_BKSD = torch.cat((self._prefix.keys[layer][:, :, :P].to(k_BKTD.dtype), k_BKTD), 2)
        v_BKSD = torch.cat((self._prefix.values[layer][:, :, :P].to(v_BKTD.dtype), v_BKTD), 2)
        if mask is None and computable(q_BHTD, k_BKTD, v_BKTD):
            scale = attention.scale or attention.head_dim**-0.5
            return forest_attention(
                q_BHTD, k_BKSD, v_BKSD, *self._whole, attention.window or 0, scale
            )
        if mask is None:
            mask = self._whole.visible(attention.window)[:, :, P:]
        return attention.attend(q_BHTD, k_BKSD, v_BKSD, mask)

    def advance(self, T: int) -> None:
        """Nothing: the keys of the row are not kept."""
