"""FLOPs per token and the peak rate: the two sides of the project's only MFU formula."""

from __future__ import annotations

import functools
import time

import torch

from lit_llm.models.accounting.hardware import accelerator_of
from lit_llm.models.config import TransformerConfig
from lit_llm.models.meta import meta_transformer
from lit_llm.models.mlp import Experts


def matrix_parameters(config: TransformerConfig) -> int:
    """Number of weights that multiply a token.

    These are the weights of all blocks and the head, without the input embedding. Of the experts,
    only those that a token visits count.
    """
    model = meta_transformer(config)
    blocks = sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, torch.nn.Linear))
    experts = sum(
        p.numel() for m in model.layers.modules() if isinstance(m, Experts) for p in m.parameters()
    )
    visited = experts * config.experts_per_token // config.num_experts if config.num_experts else 0
    return blocks + visited + config.vocab_size * config.hidden_size


def num_parameters(config: TransformerConfig) -> int:
    """Number of all parameters; a tied head counts once."""
    return sum(p.numel() for p in meta_transformer(config).parameters())


def idle_parameters(config: TransformerConfig) -> int:
    """Number of weights in the experts that a token is not sent to."""
    if not config.num_experts:
        return 0
    assert config.expert_size is not None
    layers = sum(config.has_experts(layer) for layer in range(config.num_layers))
    return (
        layers
        * (config.num_experts - config.experts_per_token)
        * 3
        * config.hidden_size
        * config.expert_size
    )


def lookup_parameters(config: TransformerConfig) -> int:
    """Number of weights in the tables of `lookups`, of which a token reads one row per table."""
    model = meta_transformer(config)
    tables = [*model.value_embeds.values(), *([model.bigram.table] if model.bigram else [])]
    return sum(p.numel() for table in tables for p in table.parameters())


def attention_flops_per_token(config: TransformerConfig, seq_len: int) -> float:
    """Forward FLOPs of q.k and weights.v per token, averaged over a causal sequence of ``seq_len``.

    A query at position t sees min(t + 1, window) keys; each key costs 2 products of 2 * heads *
    head_dim FLOPs.
    """
    assert config.head_dim is not None
    total = 0.0
    for layer in range(config.num_layers):
        window = min(config.window(layer) or seq_len, seq_len)
        visible = (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
        total += 4 * config.num_heads * config.head_dim * visible
    return total


def flops_per_token(config: TransformerConfig, seq_len: int) -> float:
    """Forward and backward FLOPs per trained token.

    6 x matrix parameters + 3 x causal attention (PaLM, App. B).
    """
    return 6 * matrix_parameters(config) + 3 * attention_flops_per_token(config, seq_len)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> tuple[float, str]:
    """Return the dense peak FLOP/s of ``device`` in ``dtype`` and the source of the number.

    A GPU in the table has its data-sheet peak. Any other device is measured: the best rate of a
    square matrix product over a few tries, so that MFU still means "share of what this machine can
    do".
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        chip = accelerator_of(torch.cuda.get_device_name(device))
        if chip is not None:
            return (
                chip.peak_flops,
                f"{chip.name} data sheet, dense {str(dtype).removeprefix('torch.')}",
            )
    n = 4096 if device.type == "cuda" else 1024
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best, f"measured {n}x{n} {str(dtype).removeprefix('torch.')} product"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
