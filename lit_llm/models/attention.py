"""Causal self-attention: grouped queries, sliding windows, padding and a key/value cache over SDPA.

Shapes: B batch, T query positions, S key positions, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.config import TransformerConfig
from lit_llm.models.fused import project
from lit_llm.models.norm import HeadNorm, build_norm
from lit_llm.models.rope import apply_rope


class KVCache:
    """Keys and values of one generation, allocated once: per layer two tensors (B, K, capacity, D).

    ``num_kv_heads``: K, where the process has a part of the heads. None: all of the config's.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch_size: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
        num_kv_heads: int | None = None,
    ):
        assert config.num_kv_heads is not None and config.head_dim is not None
        shape = (config.num_layers, batch_size, num_kv_heads or config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # zeros: a masked NaN would still poison SDPA
        self.values = torch.zeros_like(self.keys)
        self.capacity = capacity
        self.length = 0  # positions filled; advanced by the model after its last layer

    def update(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions and return all keys and values so far (B, K, length + T, D)."""
        end = self.length + k_BKTD.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BKTD
        self.values[layer, :, :, self.length : end] = v_BKTD
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def build_mask(
    query_len: int,
    key_len: int,
    window: int | None,
    padding_mask: Tensor | None,
    device: torch.device,
    document_ids: Tensor | None = None,
) -> Tensor | None:
    """Which keys each query may see: bool (T, S), or (B, 1, T, S) with padding or documents; True is visible.

    ``padding_mask`` is bool (B, S), True for real tokens; ``document_ids`` int64 (B, T), with T = S, keeps documents
    apart. None means that SDPA's own causal mask says the same.
    """
    if padding_mask is None and document_ids is None and query_len == key_len and (window is None or window >= key_len):
        return None
    queries = torch.arange(key_len - query_len, key_len, device=device)[:, None]
    keys = torch.arange(key_len, device=device)[None]
    mask = keys <= queries
    if window is not None:
        mask = mask & (keys > queries - window)
    if document_ids is not None:
        return mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if padding_mask is None:
        return mask
    # A padded query sees itself, so that its softmax has a term: a row of -inf would be NaN and spread to the batch.
    return (mask & padding_mask[:, None, None, :]) | (keys == queries)


class Attention(nn.Module):
    """q, k, v and output projections around scaled dot-product attention."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        assert config.num_kv_heads is not None and config.head_dim is not None
        self.layer, self.head_dim, self.num_heads, self.num_kv_heads = (
            layer, config.head_dim, config.num_heads, config.num_kv_heads,
        )  # fmt: skip
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, self.num_kv_heads * self.head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=config.attention_output_bias)
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        self.qk_norm = config.qk_norm
        if self.qk_norm == "projection":
            self.q_norm = build_norm(config, self.num_heads * self.head_dim)
            self.k_norm = build_norm(config, self.num_kv_heads * self.head_dim)
        elif self.qk_norm == "per_head":
            self.q_norm = HeadNorm(self.num_heads, self.head_dim, config.norm_eps)
            self.k_norm = HeadNorm(self.num_kv_heads, self.head_dim, config.norm_eps)
        elif self.qk_norm != "none":
            self.q_norm = build_norm(config, self.head_dim)
            self.k_norm = build_norm(config, self.head_dim)

    def forward(
        self,
        x_BTC: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden)."""
        B, T, _ = x_BTC.shape
        q_BTC, k_BTC, v_BTC = project(x_BTC, self.q_proj, self.k_proj, self.v_proj)
        if self.qk_norm == "projection":
            q_BTC, k_BTC = self.q_norm(q_BTC), self.k_norm(k_BTC)
        q_BHTD = q_BTC.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k_BKTD = k_BTC.view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v_BKTD = v_BTC.view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if self.qk_norm in ("before_rope", "per_head"):
            q_BHTD, k_BKTD = self.q_norm(q_BHTD), self.k_norm(k_BKTD)
        if rope is not None:
            q_BHTD, k_BKTD = apply_rope(q_BHTD, *rope), apply_rope(k_BKTD, *rope)
        if self.qk_norm == "after_rope":
            q_BHTD, k_BKTD = self.q_norm(q_BHTD), self.k_norm(k_BKTD)
        k_BKSD, v_BKSD = (k_BKTD, v_BKTD) if cache is None else cache.update(self.layer, k_BKTD, v_BKTD)
        y_BHTD = self.attend(q_BHTD, k_BKSD, v_BKSD, mask)
        return self.o_proj(y_BHTD.transpose(1, 2).reshape(B, T, -1))

    def attend(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None) -> Tensor:
        """Weighted values (B, H, T, D); ``mask`` as `build_mask` makes it, None for causal."""
        grouped = self.num_heads != self.num_kv_heads
        if self.softcap is None:
            return F.scaled_dot_product_attention(
                q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
            )
        # No fused kernel squashes scores: the sum is written out.
        if grouped:
            k_BKSD, v_BKSD = (t.repeat_interleave(self.num_heads // self.num_kv_heads, 1) for t in (k_BKSD, v_BKSD))
        if mask is None:
            T = q_BHTD.shape[2]
            mask = torch.ones(T, T, dtype=torch.bool, device=q_BHTD.device).tril()
        scale = self.scale or self.head_dim**-0.5
        scores_BHTS = self.softcap * torch.tanh(q_BHTD @ k_BKSD.transpose(2, 3) * scale / self.softcap)
        weights_BHTS = scores_BHTS.float().masked_fill(~mask, -torch.inf).softmax(-1)
        return weights_BHTS.to(v_BKSD.dtype) @ v_BKSD
