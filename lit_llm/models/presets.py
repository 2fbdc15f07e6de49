"""The presets of `TransformerConfig`: name -> fields."""

from __future__ import annotations

import difflib
from typing import Any

from lit_llm.errors import UserError

# Published shapes are taken from their config.json; the "nano" and "fast" shapes are lit_llm's. The
# parts of "fast" are those that brought something at two sizes (docs/decisions.md, "What makes a
# model learn faster"); every second layer has value embeddings, as in nanochat.
_NANOCHAT: dict[str, Any] = {
    "mlp": "relu2",
    "qk_norm": "after_rope",
    "norm_weight": False,
    "embedding_norm": True,
    "logit_softcap": 15.0,
}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_seq_len": 8192,
}
_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "qk_norm": "before_rope",
    "rope_theta": 1e6,
    "max_seq_len": 32768,
    "head_dim": 128,
    "num_kv_heads": 8,
}
PRESETS: dict[str, dict[str, Any]] = {
    "nano-5m": {
        **_NANOCHAT, "vocab_size": 4096, "hidden_size": 256, "num_layers": 4, "num_heads": 4,
        "max_seq_len": 512,
    },
    "autoresearch-50m": {
        **_NANOCHAT, "vocab_size": 8192, "hidden_size": 512, "num_layers": 8, "num_heads": 4,
        "max_seq_len": 2048,
    },
    "nanochat-d20": {
        **_NANOCHAT, "vocab_size": 65536, "hidden_size": 1280, "num_layers": 20, "num_heads": 10,
        "max_seq_len": 2048,
    },
    "fast-5m": {
        **_NANOCHAT, "vocab_size": 4096, "hidden_size": 256, "num_layers": 4,
        "num_heads": 2, "max_seq_len": 512, "value_embeddings": [1, 3], "smear_channels": 24,
        "exclusive_attention": True,
    },
    "fast-50m": {
        **_NANOCHAT, "vocab_size": 8192, "hidden_size": 512, "num_layers": 8,
        "num_heads": 4, "max_seq_len": 2048, "value_embeddings": [1, 3, 5, 7],
        "smear_channels": 24, "exclusive_attention": True,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "num_layers": 30, "num_heads": 9,
        "num_kv_heads": 3, "intermediate_size": 1536, "norm_eps": 1e-5, "rope_theta": 100000.0,
        "max_seq_len": 8192, "tie_embeddings": True,
    },
    "llama-3.2-1b": {
        **_LLAMA3, "hidden_size": 2048, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8,
        "intermediate_size": 8192, "tie_embeddings": True,
    },
    "llama-3-8b": {
        **_LLAMA3, "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8,
        "intermediate_size": 14336,
    },
    "qwen3-0.6b": {
        **_QWEN3, "hidden_size": 1024, "num_layers": 28, "num_heads": 16, "intermediate_size": 3072,
        "tie_embeddings": True,
    },
    "qwen3-1.7b": {
        **_QWEN3, "hidden_size": 2048, "num_layers": 28, "num_heads": 16, "intermediate_size": 6144,
        "tie_embeddings": True,
    },
    "mixtral-8x7b": {
        "vocab_size": 32000, "hidden_size": 4096, "num_layers": 32, "num_heads": 32,
        "num_kv_heads": 8, "intermediate_size": 14336, "norm_eps": 1e-5, "rope_theta": 1e6,
        "max_seq_len": 32768, "num_experts": 8, "experts_per_token": 2, "router_aux_loss": 0.001,
    },
    "qwen3-30b-a3b": {
        **_QWEN3, "hidden_size": 2048, "num_layers": 48, "num_heads": 32, "num_kv_heads": 4,
        "intermediate_size": 6144, "num_experts": 128, "experts_per_token": 8, "expert_size": 768,
        "router_aux_loss": 0.001,
    },
    "gemma-3-1b": {
        "vocab_size": 262144, "hidden_size": 1152, "num_layers": 26, "num_heads": 4,
        "num_kv_heads": 1, "head_dim": 256, "intermediate_size": 6912, "max_seq_len": 32768,
        "mlp": "geglu", "norm_offset": True, "post_norm": True, "qk_norm": "before_rope",
        "rope_theta": 1e6, "local_rope_theta": 1e4, "sliding_window": 512,
        "sliding_layers": [i for i in range(26) if (i + 1) % 6], "embedding_scale": 1152**0.5,
        "tie_embeddings": True,
    },
    "gpt2": {
        "vocab_size": 50257, "hidden_size": 768, "num_layers": 12, "num_heads": 12,
        "max_seq_len": 1024, "norm": "layernorm", "norm_eps": 1e-5, "mlp": "gelu",
        "learned_positions": True, "attention_bias": True, "attention_output_bias": True,
        "mlp_bias": True, "tie_embeddings": True,
    },
}  # fmt: skip


def preset_fields(name: str) -> dict[str, Any]:
    """Return the fields of the preset ``name``.

    Raises:
        UserError: there is no such preset; the message names the nearest one.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.4)
        hint = f": did you mean {near[0]}?" if near else "."
        raise UserError(f"no model preset named {name!r}{hint} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
