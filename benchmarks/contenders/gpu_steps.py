"""A training step as transformers, litgpt and nanochat make it, for gpu.py: the same shape, plain loops, bf16.

Each function returns ``step(ids)`` with ids int64 (batch, seq_len + 1) on the device.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_llm.models.config import TransformerConfig

Step = Callable[[Tensor], Any]


def transformers(config: TransformerConfig, device: torch.device, compiled: bool) -> Step:
    """LlamaForCausalLM with its own loss, and AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with device:
        model: Any = LlamaForCausalLM(LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
            intermediate_size=config.intermediate_size, max_position_embeddings=config.max_seq_len, use_cache=False,
        ))  # fmt: skip
    run = torch.compile(model) if compiled else model
    # Labels are already those of the next position: shift_labels says so.
    return _adamw(model, device, lambda x, y: run(input_ids=x, labels=y, shift_labels=y).loss)


def litgpt(config: TransformerConfig, device: torch.device, compiled: bool) -> Step:
    """litgpt's GPT with its loss as in litgpt/pretrain.py, and AdamW."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    with device:
        model = GPT(Config(
            name="llama", block_size=config.max_seq_len, vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size, n_layer=config.num_layers, n_embd=config.hidden_size,
            n_head=config.num_heads, n_query_groups=config.num_kv_heads, rotary_percentage=1.0,
            parallel_residual=False, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            intermediate_size=config.intermediate_size,
        ))  # fmt: skip
    run = torch.compile(model) if compiled else model
    return _adamw(model, device, lambda x, y: chunked_cross_entropy(run(x), y))


def nanochat(config: TransformerConfig, device: torch.device, compiled: bool) -> Step:
    """nanochat's GPT, loss and MuonAdamW as in its scripts/base_train.py, with full attention in all layers as ours.

    Its checkout is found through ``NANOCHAT``.
    """
    os.environ.setdefault("NANOCHAT_DTYPE", "bfloat16")
    sys.path.insert(0, os.environ["NANOCHAT"])
    from nanochat.gpt import GPT, GPTConfig

    with torch.device("meta"):
        model = GPT(GPTConfig(config.max_seq_len, config.vocab_size, config.num_layers, config.num_heads,
                              config.num_kv_heads, config.hidden_size, window_pattern="L"))  # fmt: skip
    model.to_empty(device=device)
    model.init_weights()
    run = torch.compile(model, dynamic=False) if compiled else model
    optimizer = model.setup_optimizer()

    def step(ids: Tensor) -> None:
        run(ids[:, :-1], ids[:, 1:].contiguous()).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def _adamw(model: torch.nn.Module, device: torch.device, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """The loop around a float32 model under autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(ids: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(ids[:, :-1], ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
