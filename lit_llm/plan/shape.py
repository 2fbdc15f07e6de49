"""Sizes of a model that cost and memory depend on.

They come from a config, or are typical of a number of parameters.
"""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lit_llm.errors import UserError

if TYPE_CHECKING:
    from lit_llm.models.config import TransformerConfig


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer; widths are in channels."""

    params: float
    """All weights; a tied head counts once."""
    matrices: float
    """Weights in matrix products: blocks with all experts, and the head."""
    active_matrices: float
    """The part of ``matrices`` that one token uses."""
    active_params: float
    """``params`` without the experts that a token does not use and without value embeddings.

    Laws of scaling were fitted to models without such tables, whose rows cost no products.
    """
    layers: int
    width: int
    query_width: float
    """Number of heads times head width."""
    kv_width: float
    mlp_width: float
    """Sum over all experts that a token uses."""
    gated: bool
    vocab_size: int
    norm: Literal["rms", "rms_float32", "layer"] = "rms"
    """Kind of norm. "rms_float32" is Gemma's, which applies the gain in float32."""
    norms: int = 2
    """Norms per block."""
    qk_norm: Literal["none", "with_gain", "without_gain"] = "none"
    mixing_width: float = 0.0
    """Channels that value embeddings and mixed embeddings keep per token for the backward pass.

    These are gated rows of the tables, each block's input before `EmbeddingMix`, the first
    embedding, what `Smear` reads, rows of bigrams, and what exclusive attention reads.
    """
    most_cuts: int = 8
    """Largest tensor-parallel size with which `lit_llm fit` can train the model.

    1 for mixtures of experts; a divisor of the heads if these are known.
    """
    attention_flops: float | None = None
    """Forward FLOPs per token at a given sequence length.

    None: causal attention over the whole sequence in every layer.
    """

    def training_flops(self, tokens: float, seq_len: int, lora: bool = False) -> float:
        """FLOPs of training on ``tokens`` tokens.

        6 per matrix weight and token (with the head, without the input embedding), plus three times
        the attention of the forward pass. All of lit_llm uses this formula
        (`lit_llm.models.accounting.flops`). With ``lora`` it is 4 per weight, because a frozen
        matrix needs no weight gradient.
        """
        attention = self.attention_flops
        if attention is None:
            # Causal: half of 4 * width * seq_len
            attention = 2 * self.layers * self.query_width * seq_len
        return ((4 if lora else 6) * self.active_matrices + 3 * attention) * tokens


@functools.cache
def typical_shape(params: float, total_params: float | None = None) -> ModelShape:
    """A shape whose width is about 100 times its layers, as in Llama and GPT-3, untied embeddings.

    The vocabulary is 4k below 30M parameters, then 32k, 64k from 300M and 128k from 10B on. With
    ``total_params`` it is a mixture of experts with ``params`` active parameters. The other
    parameters are experts of the same layers.
    """
    vocab = (
        4096 if params < 3e7 else 32_768 if params < 3e8 else 65_536 if params < 1e10 else 131_072
    )
    layers, width, nearest = 1, 64, float("inf")
    for candidate in range(64, 65_536, 64):
        depth = round((params - 2 * vocab * candidate) / (12 * candidate**2))
        if depth < 1:
            break
        distance = max(candidate / depth / 100, 100 * depth / candidate)
        if distance < nearest:
            layers, width, nearest = depth, candidate, distance
    total = params if total_params is None else total_params
    active = max(params - vocab * width, params / 2)
    return ModelShape(
        params=total, matrices=total - params + active, active_matrices=active,
        active_params=params, layers=layers, width=width, query_width=width, kv_width=width / 4,
        mlp_width=8 / 3 * width, gated=True, vocab_size=vocab,
        most_cuts=ModelShape.most_cuts if total == params else 1,
    )  # fmt: skip


def shape_of(config: TransformerConfig, seq_len: int) -> ModelShape:
    """Exact shape of a known config; its attention FLOPs are those at ``seq_len``."""
    from lit_llm.models.accounting.flops import (
        attention_flops_per_token,
        idle_parameters,
        lookup_parameters,
        matrix_parameters,
        num_parameters,
    )

    assert (
        config.num_kv_heads is not None
        and config.head_dim is not None
        and config.intermediate_size is not None
    )
    total, active, idle = num_parameters(config), matrix_parameters(config), idle_parameters(config)
    mlp_width: float = config.intermediate_size
    if config.num_experts:
        assert config.expert_size is not None
        with_experts = sum(config.has_experts(layer) for layer in range(config.num_layers))
        dense = config.num_layers - with_experts
        visited = config.experts_per_token * config.expert_size
        mlp_width = (dense * config.intermediate_size + with_experts * visited) / config.num_layers
    return ModelShape(
        params=total, matrices=active + idle, active_matrices=active,
        active_params=total - idle - lookup_parameters(config),
        layers=config.num_layers, width=config.hidden_size,
        query_width=config.num_heads * config.head_dim,
        kv_width=config.num_kv_heads * config.head_dim, mlp_width=mlp_width, gated=config.gated_mlp,
        vocab_size=config.vocab_size,
        norm="layer" if config.norm == "layernorm"
        else "rms_float32" if config.norm_offset else "rms",
        norms=2 * config.pre_norm + 2 * config.post_norm,
        qk_norm="none" if config.qk_norm == "none"
        else "with_gain" if config.norm_weight else "without_gain",
        mixing_width=_mixing_width(config),
        most_cuts=_most_cuts(config),
        attention_flops=attention_flops_per_token(config, seq_len),
    )  # fmt: skip


def _most_cuts(config: TransformerConfig) -> int:
    from lit_llm.models.parallel.cuts import refuse_cut

    size = ModelShape.most_cuts
    while size > 1:
        with suppress(UserError):
            refuse_cut(config, size)
            break
        size //= 2
    return size


def _mixing_width(config: TransformerConfig) -> float:
    assert config.num_kv_heads is not None and config.head_dim is not None
    gated = len(config.value_embeddings or []) if config.value_gate_channels is not None else 0
    streams = config.num_layers + 1 if config.embedding_mix else 0
    streams += 2 if config.smear_channels is not None else 0
    # In float32, which takes two channels of a half type: the rows, and the rows times the scale.
    streams += 4 if config.bigram_rows is not None else 0
    queries = config.num_heads * config.head_dim
    values = config.num_kv_heads * config.head_dim
    # The heads' outputs and values in float32, and the outputs that `o_proj` reads.
    exclusive = config.num_layers * (3 * queries + 2 * values) if config.exclusive_attention else 0
    return gated * values + exclusive + streams * config.hidden_size
