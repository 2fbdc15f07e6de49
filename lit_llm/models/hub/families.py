"""The supported Hugging Face model families, as data.

Each row of `FAMILIES` maps one family's config.json keys and tensor names to those of lit_llm. A
new dense family is a new row. Forward code changes only if a model computes something new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig

Values = dict[str, Any]

# lit_llm's field -> key in config.json, for the fields that most families name alike
COMMON_FIELDS: dict[str, str | None] = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# lit_llm's tensor, or its module -> Hugging Face's name; {i} is the layer, {n} counts the tensors
# that form one stacked tensor of lit_llm
COMMON_TENSORS = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.attention": "model.layers.{i}.self_attn",
    "layers.{i}.mlp": "model.layers.{i}.mlp",
}
# lit_llm's MLP kind -> activation names in config.json; the first is written, all are read
ACTIVATIONS = {
    "swiglu": ("silu", "swish"),
    "geglu": ("gelu_pytorch_tanh", "gelu_new"),
    "gelu": ("gelu_new", "gelu_pytorch_tanh"),
    "gelu_erf": ("gelu",),
    "relu2": ("relu2",),
}


@dataclass(frozen=True)
class Family:
    """How one Hugging Face ``model_type`` maps to lit_llm.

    "Field" is a field of `TransformerConfig`, "key" a key of config.json.
    """

    architecture: str
    """Class name in config.json."""
    defaults: Values
    """Values that transformers uses for keys missing in a config.json."""
    traits: Values = field(default_factory=dict)
    """Fields that the family fixes, where they differ from Llama's."""
    fields: dict[str, str | None] = field(default_factory=dict)
    """Field -> key, in addition to the common ones; None if the family has no such key."""
    needs: Values = field(default_factory=dict)
    """Keys that are supported with one value only."""
    activation_key: str = "hidden_act"
    """Key of the activation."""
    rope_keys: tuple[str, str] | None = ("rope_theta", "partial_rotary_factor")
    """Keys of the base and the rotated fraction outside of rope_parameters; None: no RoPE."""
    partial_rotary: bool = False
    """Whether transformers' code of this model reads the rotated fraction.

    Other models rotate whole heads.
    """
    tensors: dict[str, str] = field(default_factory=dict)
    """Tensor names that differ from the common ones."""
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Hugging Face module -> lit_llm's modules whose rows it holds."""
    fused_by_head: bool = False
    """Whether the rows of a fused q, k and v alternate head by head."""
    transposed: tuple[str, ...] = ()
    """Ends of names of Hugging Face modules whose weights are (in, out)."""
    rope_layout: Literal["halves", "reversed", "pairs"] = "halves"
    """Which channels form a pair.

    "halves": (i, i + D/2); "reversed": the same, rotated by -theta; "pairs": (2i, 2i + 1).
    """
    read: Callable[[Values], Values] = lambda hf: {}
    """Computes fields from a config.json with its defaults, where a plain key is not enough."""
    write: Callable[[TransformerConfig], Values] = lambda config: {}
    """The inverse of ``read``."""


def _both_biases(hf: Values) -> Values:
    """Read the one flag that stands for the biases of q, k, v and the output."""
    bias = bool(hf.get("attention_bias", False))
    return {"attention_bias": bias, "attention_output_bias": bias}


def _write_bias(config: TransformerConfig) -> Values:
    return {"attention_bias": config.attention_bias}


def _layer_types(config: TransformerConfig) -> list[str]:
    return [
        "full_attention" if config.window(i) is None else "sliding_attention"
        for i in range(config.num_layers)
    ]


def _windowed(types: list[str], layers: int) -> list[int]:
    """Return the layers with a window.

    Raises:
        UserError: a kind of layer is not supported, or the number of kinds is not ``layers``.
    """
    if len(types) != layers:
        raise UserError(f"layer_types: {len(types)} of {layers} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"layer_types: {kind!r} is not supported")
    return [i for i, kind in enumerate(types) if kind == "sliding_attention"]


def _read_mistral(hf: Values) -> Values:
    """Read the windowed layers from layer_types; a file with this key loads as Ministral."""
    types = hf.get("layer_types")
    return {} if types is None else {"sliding_layers": _windowed(types, hf["num_hidden_layers"])}


def _write_mistral(config: TransformerConfig) -> Values:
    return {} if config.sliding_layers is None else {"layer_types": _layer_types(config)}


def _read_switched_window(hf: Values) -> Values:
    """Read Qwen's window.

    It is off unless use_sliding_window is set, and holds from layer max_window_layers on.
    """
    types, count = hf.get("layer_types"), hf["num_hidden_layers"]
    layers = (
        list(range(hf.get("max_window_layers", 0), count))
        if types is None
        else _windowed(types, count)
    )
    if not hf.get("use_sliding_window") or hf.get("sliding_window") is None:
        return {"sliding_window": None}
    return {"sliding_window": hf["sliding_window"], "sliding_layers": layers}


def _write_switched_window(config: TransformerConfig) -> Values:
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": _layer_types(config),
    }


def _read_qwen3_moe(hf: Values) -> Values:
    """Read Qwen3-MoE's layers and window.

    Every decoder_sparse_step-th layer has experts, except the layers in mlp_only_layers. The
    window, if on, holds in all layers.
    """
    step, named = hf["decoder_sparse_step"], hf.get("mlp_only_layers") or []
    dense = [i for i in range(hf["num_hidden_layers"]) if i in named or (i + 1) % step]
    window = hf["sliding_window"] if hf["use_sliding_window"] else None
    # transformers 5 writes num_local_experts; files on the hub have num_experts.
    experts = hf.get("num_local_experts", hf["num_experts"])
    return _both_biases(hf) | {
        "num_experts": experts,
        "sliding_window": window,
        "dense_layers": dense,
    }


def _write_qwen3_moe(config: TransformerConfig) -> Values:
    return _write_bias(config) | {
        "decoder_sparse_step": 1,
        "mlp_only_layers": config.dense_layers or [],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
    }


def _read_gemma(every: int) -> Callable[[Values], Values]:
    """Read Gemma's fields: every ``every``-th layer has no window; scores have their own scale."""

    def read(hf: Values) -> Values:
        types, window = hf.get("layer_types"), hf.get("sliding_window")
        every_nth = hf.get("sliding_window_pattern", every)
        count = hf["num_hidden_layers"]
        layers = (
            [i for i in range(count) if (i + 1) % every_nth]
            if types is None
            else _windowed(types, count)
        )
        return _both_biases(hf) | {
            "attention_scale": hf["query_pre_attn_scalar"] ** -0.5,
            "embedding_scale": hf["hidden_size"] ** 0.5,
            "sliding_window": window,
            "sliding_layers": layers,
        }

    return read


def _write_gemma(config: TransformerConfig) -> Values:
    assert config.head_dim is not None
    scalar = config.head_dim if config.attention_scale is None else config.attention_scale**-2
    return _write_bias(config) | {
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "layer_types": _layer_types(config),
        # transformers requires a window even if no layer uses it.
        "sliding_window": config.sliding_window or config.max_seq_len,
    }


def _read_smollm3(hf: Values) -> Values:
    """Read SmolLM3's layers without RoPE; no_rope_layers holds 1 for a layer with RoPE."""
    turned, every = hf.get("no_rope_layers"), hf["no_rope_layer_interval"]
    if turned is None:
        turned = [int((i + 1) % every != 0) for i in range(hf["num_hidden_layers"])]
    nope = [i for i, turns in enumerate(turned) if not turns]
    windowed = _read_switched_window(hf)
    if hf.get("layer_types") is None and windowed["sliding_window"] is not None:
        windowed["sliding_layers"] = nope
    return _both_biases(hf) | windowed | {"nope_layers": nope}


def _write_smollm3(config: TransformerConfig) -> Values:
    turned = [int(i not in (config.nope_layers or [])) for i in range(config.num_layers)]
    return _write_bias(config) | _write_switched_window(config) | {"no_rope_layers": turned}


def _read_stablelm(hf: Values) -> Values:
    return {
        "attention_bias": hf["use_qkv_bias"],
        "qk_norm": "per_head" if hf["qk_layernorm"] else "none",
        "residual": "parallel_one_norm" if hf["use_parallel_residual"] else "sequential",
    }


def _write_stablelm(config: TransformerConfig) -> Values:
    return {
        "use_qkv_bias": config.attention_bias,
        "qk_layernorm": config.qk_norm == "per_head",
        "use_parallel_residual": config.residual == "parallel_one_norm",
    }


def _read_granite(hf: Values) -> Values:
    return _both_biases(hf) | {"logit_scale": 1 / hf["logits_scaling"]}


def _write_granite(config: TransformerConfig) -> Values:
    assert config.head_dim is not None
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return _write_bias(config) | {
        "logits_scaling": 1 / (config.logit_scale or 1.0),
        "attention_multiplier": scale,
        "embedding_multiplier": config.embedding_scale or 1.0,
        "residual_multiplier": config.residual_scale or 1.0,
    }


_QKV = ("layers.{i}.attention.q_proj", "layers.{i}.attention.k_proj", "layers.{i}.attention.v_proj")
_LAYERNORM: Values = {"norm": "layernorm"}
_BIASED: Values = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
_GEMMA: Values = {"norm_offset": True, "post_norm": True, "mlp": "geglu"}
_GEMMA_NORMS = {
    "layers.{i}.attention_post_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "layers.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}
FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 2048,
         "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False},
        fields={"head_dim": "head_dim", "mlp_bias": "mlp_bias"},
        read=_both_biases,
        write=_write_bias,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
         "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "bos_token_id": 1,
         "eos_token_id": 2, "tie_word_embeddings": False, "sliding_window": 4096},
        fields={"head_dim": "head_dim", "sliding_window": "sliding_window"},
        read=_read_mistral,
        write=_write_mistral,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
         "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "bos_token_id": 1,
         "eos_token_id": 2, "tie_word_embeddings": False, "sliding_window": None,
         "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.001,
         "rope_theta": 1e6},
        fields={"head_dim": "head_dim", "sliding_window": "sliding_window",
                "num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok",
                "router_aux_loss": "router_aux_loss_coef"},
        tensors={"layers.{i}.mlp.router": "model.layers.{i}.block_sparse_moe.gate",
                 "layers.{i}.mlp.experts.gate_proj":
                     "model.layers.{i}.block_sparse_moe.experts.{n}.w1.weight",
                 "layers.{i}.mlp.experts.up_proj":
                     "model.layers.{i}.block_sparse_moe.experts.{n}.w3.weight",
                 "layers.{i}.mlp.experts.down_proj":
                     "model.layers.{i}.block_sparse_moe.experts.{n}.w2.weight"},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {"vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 22016,
         "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
         "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
        {"attention_bias": True},
        read=_read_switched_window,
        write=_write_switched_window,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {"vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128,
         "intermediate_size": 22016, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
         "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 4096,
         "max_window_layers": 28},
        {"qk_norm": "before_rope"},
        {"head_dim": "head_dim"},
        read=lambda hf: _read_switched_window(hf) | _both_biases(hf),
        write=lambda config: _write_switched_window(config) | _write_bias(config),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24,
         "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 6144,
         "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
         "use_sliding_window": False, "sliding_window": 4096, "num_experts": 128,
         "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False,
         "decoder_sparse_step": 1, "router_aux_loss_coef": 0.001},
        {"qk_norm": "before_rope"},
        {"head_dim": "head_dim", "num_experts": "num_experts",
         "experts_per_token": "num_experts_per_tok", "expert_size": "moe_intermediate_size",
         "normalize_expert_weights": "norm_topk_prob", "router_aux_loss": "router_aux_loss_coef"},
        tensors={"layers.{i}.mlp.router": "model.layers.{i}.mlp.gate",
                 "layers.{i}.mlp.experts.gate_proj":
                     "model.layers.{i}.mlp.experts.{n}.gate_proj.weight",
                 "layers.{i}.mlp.experts.up_proj":
                     "model.layers.{i}.mlp.experts.{n}.up_proj.weight",
                 "layers.{i}.mlp.experts.down_proj":
                     "model.layers.{i}.mlp.experts.{n}.down_proj.weight"},
        read=_read_qwen3_moe,
        write=_write_qwen3_moe,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {"vocab_size": 256000, "hidden_size": 2304, "num_hidden_layers": 26,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
         "intermediate_size": 9216, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
         "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
         "query_pre_attn_scalar": 256, "sliding_window": 4096, "final_logit_softcapping": 30.0,
         "attn_logit_softcapping": 50.0},
        _GEMMA,
        {"head_dim": "head_dim", "logit_softcap": "final_logit_softcapping",
         "attention_softcap": "attn_logit_softcapping"},
        {"use_bidirectional_attention": False},
        "hidden_activation",
        tensors=_GEMMA_NORMS,
        read=_read_gemma(2),
        write=_write_gemma,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {"vocab_size": 262208, "hidden_size": 2304, "num_hidden_layers": 26,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
         "intermediate_size": 9216, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
         "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
         "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1e6,
         "rope_local_base_freq": 1e4},
        {**_GEMMA, "qk_norm": "before_rope"},
        {"head_dim": "head_dim", "logit_softcap": "final_logit_softcapping"},
        {"use_bidirectional_attention": False, "attn_logit_softcapping": None},
        "hidden_activation",
        tensors=_GEMMA_NORMS,
        read=_read_gemma(6),
        write=_write_gemma,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {"vocab_size": 32064, "hidden_size": 3072, "num_hidden_layers": 32,
         "num_attention_heads": 32, "intermediate_size": 8192, "max_position_embeddings": 4096,
         "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000,
         "tie_word_embeddings": False, "sliding_window": None},
        fields={"head_dim": "head_dim", "sliding_window": "sliding_window"},
        partial_rotary=True,
        fused={"model.layers.{i}.self_attn.qkv_proj": _QKV,
               "model.layers.{i}.mlp.gate_up_proj": (
                   "layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"
               )},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
         "n_inner": None, "layer_norm_epsilon": 1e-5, "bos_token_id": 50256, "eos_token_id": 50256,
         "tie_word_embeddings": True},
        {**_LAYERNORM, **_BIASED, "mlp": "gelu", "learned_positions": True},
        {"hidden_size": "n_embd", "num_layers": "n_layer", "num_heads": "n_head",
         "num_kv_heads": None, "intermediate_size": "n_inner", "max_seq_len": "n_positions",
         "norm_eps": "layer_norm_epsilon"},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
         "add_cross_attention": False},
        "activation_function",
        None,
        tensors={"embed": "transformer.wte", "position_embed": "transformer.wpe",
                 "norm": "transformer.ln_f", "layers.{i}.attention_norm": "transformer.h.{i}.ln_1",
                 "layers.{i}.mlp_norm": "transformer.h.{i}.ln_2",
                 "layers.{i}.attention.o_proj": "transformer.h.{i}.attn.c_proj",
                 "layers.{i}.mlp.up_proj": "transformer.h.{i}.mlp.c_fc",
                 "layers.{i}.mlp.down_proj": "transformer.h.{i}.mlp.c_proj"},
        fused={"transformer.h.{i}.attn.c_attn": _QKV},
        transposed=("c_attn", "c_proj", "c_fc"),
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        {"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44,
         "num_attention_heads": 64, "intermediate_size": 24576, "max_position_embeddings": 2048,
         "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False,
         "use_parallel_residual": True, "attention_bias": True, "rotary_pct": 0.25},
        {**_LAYERNORM, "mlp": "gelu_erf", "mlp_bias": True},
        {"norm_eps": "layer_norm_eps", "num_kv_heads": None},
        rope_keys=("rotary_emb_base", "rotary_pct"),
        partial_rotary=True,
        tensors={"embed": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm",
                 "head": "embed_out",
                 "layers.{i}.attention_norm": "gpt_neox.layers.{i}.input_layernorm",
                 "layers.{i}.mlp_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
                 "layers.{i}.attention.o_proj": "gpt_neox.layers.{i}.attention.dense",
                 "layers.{i}.mlp.up_proj": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
                 "layers.{i}.mlp.down_proj": "gpt_neox.layers.{i}.mlp.dense_4h_to_h"},
        fused={"gpt_neox.layers.{i}.attention.query_key_value": _QKV},
        fused_by_head=True,
        read=lambda hf: _both_biases(hf) | {
            "residual": "parallel" if hf["use_parallel_residual"] else "sequential"
        },
        write=lambda config: _write_bias(config) | {
            "use_parallel_residual": config.residual == "parallel"
        },
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        {"vocab_size": 50304, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 2048,
         "rms_norm_eps": 1e-5, "pad_token_id": 1, "eos_token_id": 50279,
         "tie_word_embeddings": False},
        {"pre_norm": False, "post_norm": True, "qk_norm": "projection"},
        {"head_dim": "head_dim"},
        tensors={"layers.{i}.attention_post_norm": "model.layers.{i}.post_attention_layernorm",
                 "layers.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm"},
        read=_both_biases,
        write=_write_bias,
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36,
         "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 11008,
         "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "bos_token_id": 128000,
         "eos_token_id": 128001, "pad_token_id": 128004, "tie_word_embeddings": True,
         "no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None,
         "rope_theta": 2e6},
        fields={"head_dim": "head_dim", "mlp_bias": "mlp_bias"},
        read=_read_smollm3,
        write=_write_smollm3,
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        {"vocab_size": 50304, "hidden_size": 2560, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 6912,
         "max_position_embeddings": 4096, "layer_norm_eps": 1e-5, "bos_token_id": 0,
         "eos_token_id": 0, "tie_word_embeddings": False, "use_qkv_bias": False,
         "qk_layernorm": False, "use_parallel_residual": False, "partial_rotary_factor": 0.25},
        _LAYERNORM,
        {"norm_eps": "layer_norm_eps"},
        partial_rotary=True,
        tensors={"layers.{i}.attention.q_norm.weight":
                     "model.layers.{i}.self_attn.q_layernorm.norms.{n}.weight",
                 "layers.{i}.attention.k_norm.weight":
                     "model.layers.{i}.self_attn.k_layernorm.norms.{n}.weight"},
        read=_read_stablelm,
        write=_write_stablelm,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        {"vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
         "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 2048,
         "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
         "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
         "attention_multiplier": 1.0},
        fields={"mlp_bias": "mlp_bias", "embedding_scale": "embedding_multiplier",
                "residual_scale": "residual_multiplier", "attention_scale": "attention_multiplier"},
        read=_read_granite,
        write=_write_granite,
    ),
    "cohere": Family(
        "CohereForCausalLM",
        {"vocab_size": 256000, "hidden_size": 8192, "num_hidden_layers": 40,
         "num_attention_heads": 64, "intermediate_size": 22528, "max_position_embeddings": 8192,
         "layer_norm_eps": 1e-5, "bos_token_id": 5, "eos_token_id": 255001, "pad_token_id": 0,
         "tie_word_embeddings": True, "logit_scale": 0.0625, "use_qk_norm": False,
         "rope_theta": 500000.0},
        {**_LAYERNORM, "norm_bias": False, "residual": "parallel_one_norm"},
        {"head_dim": "head_dim", "norm_eps": "layer_norm_eps", "logit_scale": "logit_scale"},
        rope_layout="pairs",
        read=lambda hf: _both_biases(hf) | {"qk_norm": "per_head" if hf["use_qk_norm"] else "none"},
        write=lambda config: _write_bias(config)
        | {"use_qk_norm": config.qk_norm == "per_head", "logit_scale": config.logit_scale or 1.0},
    ),
    "nanochat": Family(
        "NanoChatForCausalLM",
        {"vocab_size": 50304, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 6,
         "intermediate_size": 8192, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
         "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "tie_word_embeddings": False,
         "final_logit_softcapping": 15.0},
        {"norm_weight": False, "embedding_norm": True, "mlp": "relu2", "qk_norm": "after_rope"},
        {"logit_softcap": "final_logit_softcapping"},
        tensors={"layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.fc1",
                 "layers.{i}.mlp.down_proj": "model.layers.{i}.mlp.fc2"},
        rope_layout="reversed",
        read=_both_biases,
        write=_write_bias,
    ),
}  # fmt: skip
