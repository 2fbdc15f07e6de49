"""Causal self-attention with grouped queries, windows, documents, padding and a cache.

The scores are computed by SDPA, FlexAttention or `BlockedAttention`.

Shapes: B batch, T query positions, S key positions, H query heads, K key/value heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.backends import Backends, flex, without_cudnn
from lit_llm.models.kernels.blocked_attention import BlockedAttention, computable, suits
from lit_llm.models.kernels.forest_attention import forest_attention
from lit_llm.models.kernels.fused import project
from lit_llm.models.masks import ForestMask, Mask, build_masks
from lit_llm.models.mixing import HeadGate
from lit_llm.models.norm import HeadNorm, build_norm
from lit_llm.models.rope import apply_rope


class KVCache:
    """Keys and values of one generation: two tensors (layers, B, K, capacity, D), allocated once.

    A model with `Smear` also keeps the token ids, int64 (B, capacity).

    ``num_kv_heads``: K, if the process has only a part of the heads. None: all heads of the config.
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
        shape = (
            config.num_layers,
            batch_size,
            num_kv_heads or config.num_kv_heads,
            capacity,
            config.head_dim,
        )
        # Zeros instead of uninitialised memory: SDPA's output is NaN even if a NaN is masked.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        # Token ids of the filled positions: some models read the token before a new one.
        ids = (batch_size, capacity) if config.reads_token_before else (0, 0)
        self.ids_BS = torch.zeros(ids, device=device, dtype=torch.long)
        self.capacity = capacity
        self.length = 0  # filled positions; the model advances it after its last layer

    def positions(self, T: int) -> Tensor:
        """Positions of the T new tokens: integers (T,), or (B, 1, T) if the rows differ."""
        return torch.arange(self.length, self.length + T, device=self.keys[0].device)

    def masks(
        self,
        config: TransformerConfig,
        backends: Backends,
        input_ids: Tensor,
        padding_mask: Tensor | None,
    ) -> dict[int | None, Mask]:
        """Masks of the new tokens (B, T), keyed by the layer's window; `attend` gets them back."""
        return build_masks(config, backends, input_ids, self.length, padding_mask, None)

    def attend(
        self, attention: Attention, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, mask: Mask
    ) -> Tensor:
        """Write T new keys and values, and return the weighted values of the queries."""
        k_BKSD, v_BKSD = self.update(attention.layer, k_BKTD, v_BKTD)
        window = attention.window
        if q_BHTD.shape[2] == 1 and window is not None:
            # Keys outside the window are dropped, so that a single query needs no mask.
            k_BKSD, v_BKSD = k_BKSD[:, :, -window:], v_BKSD[:, :, -window:]
            mask = mask[..., -window:] if isinstance(mask, Tensor) else mask
        return attention.attend(q_BHTD, k_BKSD, v_BKSD, mask)

    def advance(self, T: int) -> None:
        """Count T new positions, after the model's last layer."""
        self.length += T

    def take(self, other: KVCache, length: int) -> None:
        """Copy the first ``length`` positions of a cache of the same model and batch."""
        self.keys[:, :, :, :length] = other.keys[:, :, :, :length]
        self.values[:, :, :, :length] = other.values[:, :, :, :length]
        self.ids_BS[:, :length] = other.ids_BS[:, :length]
        self.length = length

    def remember(self, ids_BT: Tensor) -> Tensor:
        """Write the ids of T new positions; return them after the id before them, if any."""
        end = self.length + ids_BT.shape[1]
        self.ids_BS[:, self.length : end] = ids_BT
        return self.ids_BS[:, max(self.length - 1, 0) : end]

    def update(self, layer: int, k_BKTD: Tensor, v_BKTD: Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions and return all keys and values so far: (B, K, length + T, D)."""
        end = self.length + k_BKTD.shape[2]
        keys_BKSD, values_BKSD = self.keys[layer], self.values[layer]
        keys_BKSD[:, :, self.length : end] = k_BKTD
        values_BKSD[:, :, self.length : end] = v_BKTD
        return keys_BKSD[:, :, :end], values_BKSD[:, :, :end]


class Attention(nn.Module):
    """Query, key, value and output projections around scaled dot-product attention."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        assert config.num_kv_heads is not None and config.head_dim is not None
        self.layer, self.head_dim = layer, config.head_dim
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.window, self.exclusive = config.window(layer), config.exclusive_attention
        self.q_proj = nn.Linear(
            config.hidden_size, self.num_heads * self.head_dim, bias=config.attention_bias
        )
        self.k_proj = nn.Linear(
            config.hidden_size, self.num_kv_heads * self.head_dim, bias=config.attention_bias
        )
        self.v_proj = nn.Linear(
            config.hidden_size, self.num_kv_heads * self.head_dim, bias=config.attention_bias
        )
        self.o_proj = nn.Linear(
            self.num_heads * self.head_dim, config.hidden_size, bias=config.attention_output_bias
        )
        channels = config.value_gate_channels
        if layer not in (config.value_embeddings or []):
            channels = None
        self.value_gate = None if channels is None else HeadGate(channels, self.num_kv_heads)
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        # See `Backends`. `parallelize` sets both; by_blocks has an effect on a CPU only.
        self.kernel_order: list[SDPBackend] | None = None
        self.by_blocks = True
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
        mask: Mask,
        cache: KVCache | None = None,
        value_BTE: Tensor | None = None,
    ) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden).

        ``value_BTE`` (B, T, K * D) is added to the values, times the layer's gate if it has one.
        """
        B, T, _ = x_BTC.shape
        q_BTC, k_BTC, v_BTC = project(x_BTC, self.q_proj, self.k_proj, self.v_proj)
        if self.qk_norm == "projection":
            q_BTC, k_BTC = self.q_norm(q_BTC), self.k_norm(k_BTC)
        q_BHTD = q_BTC.view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k_BKTD = k_BTC.view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v_BTKD = v_BTC.view(B, T, self.num_kv_heads, self.head_dim)
        if value_BTE is not None:
            rows_BTKD = value_BTE.view_as(v_BTKD)
            if self.value_gate is not None:
                rows_BTKD = rows_BTKD * self.value_gate(x_BTC)[..., None]
            v_BTKD = v_BTKD + rows_BTKD
        v_BKTD = v_BTKD.transpose(1, 2)
        if self.qk_norm in ("before_rope", "per_head"):
            q_BHTD, k_BKTD = self.q_norm(q_BHTD), self.k_norm(k_BKTD)
        if rope is not None:
            q_BHTD, k_BKTD = apply_rope(q_BHTD, *rope), apply_rope(k_BKTD, *rope)
        if self.qk_norm == "after_rope":
            q_BHTD, k_BKTD = self.q_norm(q_BHTD), self.k_norm(k_BKTD)
        if cache is None:
            y_BHTD = self.attend(q_BHTD, k_BKTD, v_BKTD, mask)
        else:
            y_BHTD = cache.attend(self, q_BHTD, k_BKTD, v_BKTD, mask)
        if self.exclusive:
            y_BHTD = without_own_value(y_BHTD, v_BKTD)
        return self.o_proj(y_BHTD.transpose(1, 2).reshape(B, T, -1))

    def attend(self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Mask) -> Tensor:
        """Return the weighted values (B, H, T, D); `Mask` says which keys each query sees."""
        if isinstance(mask, BlockMask):
            return flex(q_BHTD, k_BKSD, v_BKSD, mask, self.scale, self.softcap)
        if isinstance(mask, ForestMask):
            if self.softcap is None and computable(q_BHTD, k_BKSD, v_BKSD):
                scale = self.scale or self.head_dim**-0.5
                return forest_attention(
                    q_BHTD, k_BKSD, v_BKSD, mask.until, mask.position, mask.window or 0, scale
                )
            mask = mask.dense()
        if self.softcap is not None:
            return self._attend_softcapped(q_BHTD, k_BKSD, v_BKSD, mask)
        if self.by_blocks and mask is None and suits(q_BHTD, k_BKSD, v_BKSD):
            return BlockedAttention.apply(q_BHTD, k_BKSD, v_BKSD, self.scale or self.head_dim**-0.5)
        order = self.kernel_order
        # At lengths that are not a multiple of 128, cuDNN before 9.15.1 reads past the end
        # (https://github.com/pytorch/pytorch/pull/171627).
        if self.training and mask is None and q_BHTD.shape[2] % 128 == 0:
            if order is None:
                return self._attend_sdpa(q_BHTD, k_BKSD, v_BKSD, mask)
            with sdpa_kernel(order, set_priority=True):
                return self._attend_sdpa(q_BHTD, k_BKSD, v_BKSD, mask)
        with without_cudnn():
            return self._attend_sdpa(q_BHTD, k_BKSD, v_BKSD, mask)

    def _attend_sdpa(
        self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None
    ) -> Tensor:
        B, H, T, D = q_BHTD.shape
        K, grouped = k_BKSD.shape[1], k_BKSD.shape[1] != H
        if T == 1:
            # The single query sees every key, but SDPA's causal mask would show it the first key
            # only. The query heads of a key head become rows of one product.
            q_BKGD = q_BHTD.reshape(B, K, H // K, D)
            y_BKGD = F.scaled_dot_product_attention(
                q_BKGD, k_BKSD, v_BKSD, attn_mask=mask, scale=self.scale
            )
            return y_BKGD.reshape(B, H, T, D)
        if grouped and mask is not None and q_BHTD.is_cuda:
            # On CUDA the only kernel that takes a mask takes no groups. transformers repeats the
            # heads too, in sdpa_attention_forward.
            k_BKSD, v_BKSD, grouped = *self._repeated(k_BKSD, v_BKSD), False
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, attn_mask=mask, is_causal=mask is None, scale=self.scale,
            enable_gqa=grouped,
        )  # fmt: skip

    def _repeated(self, *tensors_BKSD: Tensor) -> tuple[Tensor, ...]:
        """Repeat each (B, K, S, D) to (B, H, S, D): one key/value head per query head."""
        if self.num_heads == self.num_kv_heads:
            return tensors_BKSD
        times = self.num_heads // self.num_kv_heads
        return tuple(t.repeat_interleave(times, 1) for t in tensors_BKSD)

    def _attend_softcapped(
        self, q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Write attention out in plain operations, because SDPA has no soft cap."""
        assert self.softcap is not None
        k_BKSD, v_BKSD = self._repeated(k_BKSD, v_BKSD)
        if mask is None:
            T = q_BHTD.shape[2]
            mask = torch.ones(T, T, dtype=torch.bool, device=q_BHTD.device).tril()
        scale = self.scale or self.head_dim**-0.5
        scores_BHTS = self.softcap * torch.tanh(
            q_BHTD @ k_BKSD.transpose(2, 3) * scale / self.softcap
        )
        weights_BHTS = scores_BHTS.float().masked_fill(~mask, -torch.inf).softmax(-1)
        return weights_BHTS.to(v_BKSD.dtype) @ v_BKSD


def without_own_value(y_BHTD: Tensor, v_BKTD: Tensor) -> Tensor:
    """Remove from each head's output its component along the token's own value: (B, H, T, D).

    ``v_BKTD`` are the values of the same tokens. This is exclusive self attention,
    arXiv:2603.09078.
    """
    y_BKGTD = y_BHTD.unflatten(1, (v_BKTD.shape[1], -1)).float()
    v_BKGTD = v_BKTD[:, :, None].float()
    # A value of zeros has no direction, and nothing is removed.
    square = v_BKGTD.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    share = (y_BKGTD * v_BKGTD).sum(-1, keepdim=True) / square
    return (y_BKGTD - share * v_BKGTD).flatten(1, 2).to(y_BHTD.dtype)
