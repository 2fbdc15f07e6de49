"""GGUF architectures as data: the keys, tensors and limits of each ``general.architecture``.

Keys, names and layouts are llama.cpp's (``gguf-py/gguf/constants.py``). The fields under "limits"
say what llama.cpp's loader needs and what it ignores (``src/models/*.cpp``, release 0.5.0). A file
outside of these limits does not load, or computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_llm.models.config import TransformerConfig

Values = dict[str, Any]

# lit_llm's field -> key after the architecture's name; every file has these keys
COMMON_KEYS = {
    "num_layers": "block_count",
    "max_seq_len": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
}
NORM_EPS = {
    "rmsnorm": "attention.layer_norm_rms_epsilon",
    "layernorm": "attention.layer_norm_epsilon",
}
# lit_llm's module -> GGUF's; {i} is the layer
COMMON_TENSORS = {
    "embed": "token_embd",
    "position_embed": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm",
    "layers.{i}.attention_post_norm": "blk.{i}.post_attention_norm",
    "layers.{i}.mlp_norm": "blk.{i}.ffn_norm",
    "layers.{i}.mlp_post_norm": "blk.{i}.post_ffw_norm",
    "layers.{i}.attention.q_proj": "blk.{i}.attn_q",
    "layers.{i}.attention.k_proj": "blk.{i}.attn_k",
    "layers.{i}.attention.v_proj": "blk.{i}.attn_v",
    "layers.{i}.attention.o_proj": "blk.{i}.attn_output",
    "layers.{i}.attention.q_norm": "blk.{i}.attn_q_norm",
    "layers.{i}.attention.k_norm": "blk.{i}.attn_k_norm",
    "layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
    "layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
    "layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
    "layers.{i}.mlp.router": "blk.{i}.ffn_gate_inp",
    "layers.{i}.mlp.experts.gate_proj": "blk.{i}.ffn_gate_exps",
    "layers.{i}.mlp.experts.up_proj": "blk.{i}.ffn_up_exps",
    "layers.{i}.mlp.experts.down_proj": "blk.{i}.ffn_down_exps",
}


@dataclass(frozen=True)
class Architecture:
    """How one ``general.architecture`` maps to lit_llm.

    "Field" is a field of `TransformerConfig`, "key" a key of the file.
    """

    families: tuple[str, ...]
    """Hugging Face families that are written as this architecture.

    A file that is read gets the first family that can express it.
    """
    traits: Values = field(default_factory=dict)
    """Fields that the architecture fixes, where they differ from Llama's."""
    keys: dict[str, str] = field(default_factory=dict)
    """Field -> key that a file may leave out."""
    defaults: Values = field(default_factory=dict)
    """Values that engines use for those keys if a file leaves them out."""
    qk_norm: Literal["none", "before_rope", "projection", "per_head"] = "none"
    """Meaning of norms of q and k in the file."""
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """GGUF tensor -> lit_llm's tensors whose rows it holds."""
    pairs: bool = False
    """Whether rotary pairs are the rows (2i, 2i + 1) of a head instead of (i, i + D/2)."""
    read: Callable[[TransformerConfig, Values], Values] = lambda config, values: {}
    """Computes fields without a plain key from the rest of the config and ``extra_keys``."""
    extra_keys: tuple[str, ...] = ()
    """Keys that ``read`` uses."""
    write: Callable[[TransformerConfig], Values] = lambda config: {}
    """Values of ``extra_keys`` to write."""

    # Limits of llama.cpp's loader, which a written file must respect.
    head: Literal["either", "own", "tied"] = "either"
    """Where the output matrix is.

    "either": in the file, or it is the embedding. "own": always in the file, so a tied matrix is
    written twice. "tied": never in the file.
    """
    biases: tuple[str, ...] = ("attention_bias",)
    """Bias fields that are loaded if a file has them.

    Other biases must be absent, or are in ``needs``.
    """
    needs: Callable[[TransformerConfig], Values] = lambda config: {}
    """Fields that llama.cpp computes with one value only, whatever the file says."""
    wide_heads: bool = False
    """Whether a head's width may differ from hidden_size / num_heads."""
    partial_rotary: bool = False
    """Whether RoPE may rotate a part of a head."""
    rope_factors: bool = False
    """Whether the tensor rope_freqs.weight is loaded."""
    ignored: tuple[str, ...] = ()
    """Fields whose keys are in files but have no effect."""
    why: dict[str, str] = field(default_factory=dict)
    """Field -> the reason for its limit, if the limit is not obvious."""


_QKV = tuple(f"layers.{{i}}.attention.{part}_proj" for part in "qkv")
_LAYERNORM: Values = {"norm": "layernorm"}
_ALL_BIASES = ("attention_bias", "attention_output_bias", "mlp_bias")
_EXPERTS = {"num_experts": "expert_count", "experts_per_token": "expert_used_count"}


def _gemma(every: int, layers_of_27b: int) -> Callable[[TransformerConfig, Values], Values]:
    """Read Gemma's fields: every ``every``-th layer has no window.

    The 27B model, known by its number of layers, has its own scale of scores.
    """

    def read(config: TransformerConfig, values: Values) -> Values:
        fields: Values = {
            "embedding_scale": config.hidden_size**0.5,
            "sliding_layers": [i for i in range(config.num_layers) if (i + 1) % every],
        }
        if config.num_layers == layers_of_27b:
            fields["attention_scale"] = (config.hidden_size // config.num_heads) ** -0.5
        return fields

    return read


def _parallel(shared: bool) -> Callable[[TransformerConfig, Values], Values]:
    kind = "parallel_one_norm" if shared else "parallel"

    def read(config: TransformerConfig, values: Values) -> Values:
        return {"residual": kind if values.get("use_parallel_residual", True) else "sequential"}

    return read


def _write_parallel(config: TransformerConfig) -> Values:
    return {"use_parallel_residual": config.residual != "sequential"}


def _write_local_theta(config: TransformerConfig) -> Values:
    """Write the local base, even if it equals the base of all layers.

    A file without this key means 10000.
    """
    if config.sliding_window is None:
        return {}
    return {"rope.freq_base_swa": config.local_rope_theta or config.rope_theta}


def _normed_heads(config: TransformerConfig) -> Values:
    return {"qk_norm": "before_rope"}


def _normed_heads_and_experts(config: TransformerConfig) -> Values:
    return {"qk_norm": "before_rope", "num_experts": config.num_experts or "at least 1"}


def _all_biases(config: TransformerConfig) -> Values:
    return dict.fromkeys((*_ALL_BIASES, "norm_bias"), True)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        ("llama", "mixtral", "mistral"),
        keys=_EXPERTS,
        pairs=True,
        biases=_ALL_BIASES,
        wide_heads=True,
        rope_factors=True,
    ),
    "qwen2": Architecture(("qwen2",)),
    "qwen3": Architecture(("qwen3",), qk_norm="before_rope", needs=_normed_heads, wide_heads=True),
    "qwen3moe": Architecture(
        ("qwen3_moe",),
        keys={**_EXPERTS, "expert_size": "expert_feed_forward_length"},
        qk_norm="before_rope",
        needs=_normed_heads_and_experts,
        wide_heads=True,
    ),
    "gemma2": Architecture(
        ("gemma2",),
        {"norm_offset": True, "post_norm": True, "mlp": "geglu"},
        {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping",
         "sliding_window": "attention.sliding_window"},
        {"attention_softcap": 50.0, "logit_softcap": 30.0, "sliding_window": 4096},
        read=_gemma(2, 46),
        head="tied",
        wide_heads=True,
    ),
    "gemma3": Architecture(
        ("gemma3_text",),
        {"norm_offset": True, "post_norm": True, "mlp": "geglu"},
        {"logit_softcap": "final_logit_softcapping", "sliding_window": "attention.sliding_window",
         "local_rope_theta": "rope.freq_base_swa"},
        {"local_rope_theta": 10000.0},
        qk_norm="before_rope",
        read=_gemma(6, 62),
        write=_write_local_theta,
        needs=_normed_heads,
        wide_heads=True,
    ),
    "phi3": Architecture(
        ("phi3",),
        keys={"sliding_window": "attention.sliding_window"},
        fused={"blk.{i}.attn_qkv": _QKV,
               "blk.{i}.ffn_up": ("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj")},
        partial_rotary=True,
        ignored=("sliding_window",),
        why={"sliding_window": "llama.cpp leaves the window out"},
    ),
    "gpt2": Architecture(
        ("gpt2",),
        {**_LAYERNORM, "mlp": "gelu", "learned_positions": True},
        fused={"blk.{i}.attn_qkv": _QKV},
        needs=_all_biases,
    ),
    "gptneox": Architecture(
        ("gpt_neox",),
        {**_LAYERNORM, "mlp": "gelu_erf"},
        fused={"blk.{i}.attn_qkv": _QKV},
        read=_parallel(shared=False),
        extra_keys=("use_parallel_residual",),
        write=_write_parallel,
        head="own",
        needs=_all_biases,
        partial_rotary=True,
    ),
    "olmo2": Architecture(
        ("olmo2",),
        {"pre_norm": False, "post_norm": True},
        qk_norm="projection",
        head="own",
        needs=lambda config: {"qk_norm": "projection"},
    ),
    "stablelm": Architecture(
        ("stablelm",),
        _LAYERNORM,
        qk_norm="per_head",
        read=_parallel(shared=True),
        extra_keys=("use_parallel_residual",),
        write=_write_parallel,
        head="own",
        needs=lambda config: {"norm_bias": True},
        partial_rotary=True,
    ),
    "smollm3": Architecture(
        ("smollm3",),
        pairs=True,
        read=lambda config, values: {
            "nope_layers": [i for i in range(config.num_layers) if (i + 1) % 4 == 0]
        },
        wide_heads=True,
    ),
    "granite": Architecture(
        ("granite",),
        keys={"embedding_scale": "embedding_scale", "residual_scale": "residual_scale",
              "attention_scale": "attention.scale"},
        pairs=True,
        read=lambda config, values: {"logit_scale": 1 / values.get("logit_scale", 1.0)},
        extra_keys=("logit_scale",),
        write=lambda config: {"logit_scale": 1 / (config.logit_scale or 1.0)},
        biases=_ALL_BIASES,
        wide_heads=True,
        rope_factors=True,
    ),
    "command-r": Architecture(
        ("cohere",),
        {**_LAYERNORM, "residual": "parallel_one_norm"},
        {"logit_scale": "logit_scale"},
        qk_norm="per_head",
        pairs=True,
        head="tied",
        # Command-R+ is known by its number of layers, 64.
        needs=lambda config: {
            "norm_bias": False, "qk_norm": "per_head" if config.num_layers >= 64 else "none",
        },
        why={"qk_norm": "llama.cpp has them in models of 64 layers or more, and in those always"},
    ),
}  # fmt: skip
_MAX_LAYERS = 512


def beyond_limits(config: TransformerConfig, kind: str) -> list[str]:
    """Return the fields of ``config`` that llama.cpp does not load or compute in this ``kind``.

    Each is a text "name=value".
    """
    arch = ARCHITECTURES[kind]
    needs = arch.needs(config)
    for name in _ALL_BIASES:
        if name not in arch.biases:
            needs.setdefault(name, False)
    if arch.head == "tied":
        needs["tie_embeddings"] = True
    if not arch.wide_heads:
        needs["head_dim"] = config.hidden_size / config.num_heads
    if not arch.partial_rotary:
        needs["rotary_fraction"] = 1.0
    needs |= dict.fromkeys(arch.ignored)
    if config.num_layers > _MAX_LAYERS:
        needs["num_layers"] = _MAX_LAYERS
    values = {name: getattr(config, name) for name in needs}
    return [
        f"{name}={value!r}" + (f" ({arch.why[name]})" if name in arch.why else "")
        for name, value in values.items()
        if value != needs[name]
    ]
