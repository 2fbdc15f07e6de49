"""A training step as we, transformers, litgpt and nanochat make it, for gpu.py: the same shape,
bf16, compiled.

All but nanochat go through one loop with fused AdamW, the optimizer of the published tables. Muon
orthogonalises matrices at every step, at 3B three quarters of a small batch's products: it is
compared with nanochat's, at its size.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from gpu import Job
from record import commit
from torch import Tensor

from lit_llm.models.config import TransformerConfig

DOCUMENT = 512
"""Tokens a document in the mean; lengths are geometric."""


class Contender(NamedTuple):
    """What is timed, and what to say of it."""

    step: Callable[[Tensor], Any]  # ids int64 (batch, seq_len + 1) on the device
    optimizer: torch.optim.Optimizer
    attention: str
    note: str = ""


def ours(job: Job, config: TransformerConfig, device: torch.device) -> Contender:
    """A loop over our parts: "ours", "ours muon", "fp8", "lora", "documents" and "documents
    sdpa"."""
    from lit_llm.models.float8 import SMALLEST, convert_to_float8
    from lit_llm.models.kernels.backends import choose_attention
    from lit_llm.models.lora import LoRAConfig, apply_lora
    from lit_llm.models.parallel.parallelize import parallelize
    from lit_llm.models.transformer import Transformer
    from lit_llm.training.optimizers import MuonAdamW, default_learning_rate, parameter_groups

    backends = choose_attention(
        device, torch.bfloat16, "sdpa" if job.contender == "documents sdpa" else "auto"
    )
    with device:
        model = Transformer(config)
        if job.contender == "lora":
            model.to(torch.bfloat16)
            apply_lora(model, LoRAConfig(rank=16))
    if job.contender == "fp8":
        convert_to_float8(model, smallest=16 if job.dry else SMALLEST)
    parallelize(model, backends=backends, compile=not job.dry)
    name: Any = "muon_adamw" if job.contender == "ours muon" else "adamw"
    groups = parameter_groups(model, name, default_learning_rate(name, config.hidden_size), 0.0)
    optimizer = (
        MuonAdamW(groups)
        if name == "muon_adamw"
        else torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    )

    def loss(x: Tensor, y: Tensor) -> Tensor:
        documents = draw_documents(x) if job.contender.startswith("documents") else None
        return model.loss(x, y, documents) / y.numel()

    return Contender(_loop(model, optimizer, loss), optimizer, str(backends), name)


def draw_documents(x_BT: Tensor) -> Tensor:
    """document_ids of rows in which a document ends after every token with one probability."""
    return (torch.rand(x_BT.shape, device=x_BT.device) < 1 / DOCUMENT).long().cumsum(1)


def transformers(job: Job, config: TransformerConfig, device: torch.device) -> Contender:
    """LlamaForCausalLM with its own loss, and AdamW."""
    import transformers as library

    with device:
        model: Any = library.LlamaForCausalLM(library.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_seq_len, use_cache=False,
            attn_implementation=register_sdpa_without_mask(),
        ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = model if job.dry else torch.compile(model)
    # Labels are already those of the next position: shift_labels says so.
    step = _loop(model, optimizer, lambda x, y: run(input_ids=x, labels=y, shift_labels=y).loss)
    return Contender(
        step, optimizer, "sdpa, causal without a mask", f"adamw, transformers {library.__version__}"
    )


def register_sdpa_without_mask() -> str:
    """The name of transformers' own SDPA attention without a mask, where it is causal by itself.

    Compiled, "sdpa" makes a mask of all pairs of tokens, since it cannot look whether positions are
    those of one document; with a mask SDPA has neither is_causal nor the flash kernel, and
    transformers would seem slower than it can be. For a name under which no maker of masks is
    registered none is made.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **rest: Any
    ) -> Any:
        if mask is not None:
            raise ValueError("transformers made a mask after all")
        return sdpa_attention_forward(module, query, key, value, None, **rest)

    AttentionInterface.register("causal_without_mask", attend)
    return "causal_without_mask"


def litgpt(job: Job, config: TransformerConfig, device: torch.device) -> Contender:
    """litgpt's GPT with its loss as in litgpt/pretrain.py, and AdamW."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    with device:
        model = GPT(Config(
            name="llama", block_size=config.max_seq_len, vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size, n_layer=config.num_layers,
            n_embd=config.hidden_size, n_head=config.num_heads, n_query_groups=config.num_kv_heads,
            rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP", intermediate_size=config.intermediate_size,
        ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = model if job.dry else torch.compile(model)
    step = _loop(model, optimizer, lambda x, y: chunked_cross_entropy(run(x), y))
    return Contender(
        step, optimizer, "sdpa, causal without a mask", f"adamw, litgpt {version('litgpt')}"
    )


def nanochat(job: Job, config: TransformerConfig, device: torch.device) -> Contender:
    """nanochat's GPT, loss and MuonAdamW as in its scripts/base_train.py, with full attention in
    all layers as ours.

    Its checkout is found through ``NANOCHAT``.
    """
    checkout = os.environ.get("NANOCHAT")
    if not checkout:
        raise ModuleNotFoundError(
            "NANOCHAT names no checkout of karpathy/nanochat", name="nanochat"
        )
    os.environ.setdefault("NANOCHAT_DTYPE", "bfloat16")
    sys.path.insert(0, checkout)
    from nanochat.flash_attention import USE_FA3
    from nanochat.gpt import GPT, GPTConfig

    with torch.device("meta"):
        model = GPT(GPTConfig(config.max_seq_len, config.vocab_size, config.num_layers,
                              config.num_heads, config.num_kv_heads, config.hidden_size,
                              window_pattern="L"))  # fmt: skip
    model.to_empty(device=device)
    model.init_weights()
    run = model if job.dry else torch.compile(model, dynamic=False)
    optimizer = model.setup_optimizer()

    def step(ids: Tensor) -> None:
        run(ids[:, :-1], ids[:, 1:].contiguous()).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)

    more = sum(p.numel() for p in model.value_embeds.parameters()) / 1e6
    note = (f"its muon and adamw, nanochat {commit(checkout)[:7]}; not our shape exactly: value "
            f"embeddings ({more:.0f}M) besides")  # fmt: skip
    return Contender(
        step, optimizer, "FlashAttention 3" if USE_FA3 else "sdpa, found no FlashAttention 3", note
    )


PEERS = {"transformers": transformers, "litgpt": litgpt, "nanochat": nanochat}


def _loop(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor], None]:
    """The loop around a model with float32 weights under autocast."""

    def step(ids: Tensor) -> None:
        with torch.autocast(ids.device.type, torch.bfloat16):
            loss = loss_of(ids[:, :-1], ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
