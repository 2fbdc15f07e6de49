"""How many rows a decoding step has, so that a row's bits do not depend on the others."""

from __future__ import annotations

from lit_llm.models.config import TransformerConfig

ROWS = 32
"""Most rows in one product of a decoding step.

oneDNN has another kernel for more rows, whose sums have other bits
(docs/decisions.md, "The same bits in any company").
"""
VECTORS = 64
"""Elements that PyTorch's elementwise kernels compute at once, with the widest registers and the
narrowest dtype. They compute the last elements of a tensor one by one, with other functions."""
FEWEST = 2
"""A single row has a kernel of its own, with other bits."""
GATED = 32
"""Rows of models with gates, which have one number a row: two vectors of float32 with AVX-512."""


def row_step(config: TransformerConfig, adapters: bool) -> int:
    """Rows are padded to a multiple of this number: then no tensor has elements of two kinds.

    Two rows are enough if the width of every tensor is a multiple of `VECTORS`. Models with parts
    that have other widths, and adapters, get eight. Gates have one number a row or a head, so
    their models get `GATED`.
    """
    if config.smear_channels is not None or config.value_gate_channels is not None:
        return GATED
    assert config.num_kv_heads is not None and config.head_dim is not None
    assert config.intermediate_size is not None
    widths = [
        config.hidden_size,
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
        config.intermediate_size,
        config.vocab_size if config.logit_softcap is not None else 0,
    ]
    other_parts = (config.mixing_parts, config.num_experts)
    even = not any(width % VECTORS for width in widths)
    return FEWEST if even and not adapters and not any(other_parts) else 8
