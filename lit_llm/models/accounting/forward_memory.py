"""Memory of a forward pass without gradients, and how many tokens fit into it.

The counterpart for training is `lit_llm.plan.memory`. Without gradients a block's tensors are freed
when the next block begins, so the peak is one block's, whatever the number of layers.
"""

from __future__ import annotations

import torch

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.limits import chunk_bytes

_BLOCK = 128
"""Queries that attention on a CPU computes at once (`lit_llm.models.kernels`)."""


def forward_bytes_per_token(config: TransformerConfig, itemsize: int) -> int:
    """Largest number of bytes that one position of a row holds at a time, in the blocks.

    Args:
        config: the model's.
        itemsize: bytes of a number in the compute dtype.
    """
    assert config.num_kv_heads is not None and config.head_dim is not None
    assert config.intermediate_size is not None
    hidden, q_width = config.hidden_size, config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    # Kept beside a block: its input, and what `EmbeddingMix` and `Backout` keep.
    streams = 1 + config.embedding_mix + (config.backout_layer is not None)
    # Queries, keys and values, queries and keys again while they are rotated, the output and its
    # copy with the heads inside.
    attention = 4 * q_width + 4 * kv_width
    width = config.intermediate_size
    if config.num_experts:
        assert config.expert_size is not None
        visited = config.experts_per_token * (config.expert_size + hidden)
        width = max(width, visited)
    # Gate, up and their product.
    mlp = (3 if config.gated_mlp else 2) * width
    # A norm's output before, and the sum after it.
    return itemsize * (streams * hidden + 2 * hidden + max(attention, mlp))


def forward_tokens(
    config: TransformerConfig, device: torch.device, itemsize: int, free: int
) -> int:
    """Most tokens in one row whose forward pass, attention and scores fit into memory.

    Args:
        config: the model's.
        device: of the model.
        itemsize: bytes of a number in the compute dtype.
        free: bytes that may be used.

    Returns:
        At least 1, even if there is no memory for that.
    """
    each = forward_bytes_per_token(config, itemsize)
    # A chunk of logits in float32, its softmax, and in half precision the logits themselves.
    rest = free - 3 * chunk_bytes(device.type)
    if device.type == "cpu":
        # The weights of a block of queries, and the mask that is added to them.
        return max(1, rest // (each + 2 * _BLOCK * config.num_heads * itemsize))
    # A mask of T x T: bool, and in the compute dtype for the kernel. Solves
    # (1 + itemsize) T^2 + each T = rest.
    square = 1 + itemsize
    root = (each**2 + 4 * square * max(rest, 0)) ** 0.5
    return max(1, int((root - each) / (2 * square)))
