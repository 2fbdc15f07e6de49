"""GGUF architectures as data: how each one's metadata and tensors map to ours, for reading and writing.

Keys, names and layouts are llama.cpp's (``gguf-py/gguf/constants.py`` and its converter from Hugging Face). What an
engine takes for granted without a key (Gemma's scale of scores, SmolLM3's layers without positions) is in ``read``; a
model that differs there is refused when written, because `gguf_arch_of` reads back what would be written.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.config_json import family_of
from lit_llm.models.gguf_rope import read_scaling, write_scaling

Values = dict[str, Any]

# our field -> key after the architecture's name, which every file has
_COMMON_KEYS = {
    "num_layers": "block_count",
    "max_seq_len": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
}
_NORM_EPS = {
    "rmsnorm": "attention.layer_norm_rms_epsilon",
    "layernorm": "attention.layer_norm_epsilon",
}
# our module -> theirs; {i} is the layer
_COMMON_TENSORS = {
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
# Keys that change nothing here, at any value (None) or at these; a key that is neither known nor here is refused.
_HARMLESS: dict[str, tuple[Any, ...] | None] = {
    "vocab_size": None,
    "tensor_data_layout": None,
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (1, 1.0),
    "attention.max_alibi_bias": (0, 0.0),
    "attention.clamp_kqv": (0, 0.0),
    "attention.causal": (True,),
    "expert_shared_count": (0,),
    "expert_weights_norm": (True,),
    "expert_weights_scale": (1, 1.0),
    "expert_gating_func": (1,),  # softmax
    "leading_dense_block_count": (0,),
}


@dataclass(frozen=True)
class Architecture:
    """How one ``general.architecture`` maps to ours."""

    families: tuple[str, ...]
    """Hugging Face families that are written as this; a file that is read is the first that can express it."""
    traits: Values = field(default_factory=dict)
    """Fields of ours that it fixes, where they differ from Llama's."""
    keys: dict[str, str] = field(default_factory=dict)
    """Fields of ours -> keys that a file may leave out."""
    defaults: Values = field(default_factory=dict)
    """What engines take for those keys of a file that leaves them out."""
    qk_norm: Literal["none", "before_rope", "projection", "per_head"] = "none"
    """What it means that the file has norms of q and k."""
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors of theirs whose rows are those of several of ours."""
    pairs: bool = False
    """Rotary pairs are rows (2i, 2i + 1) of a head, and not (i, i + D/2)."""
    read: Callable[[TransformerConfig, Values], Values] = lambda config, values: {}
    """Fields that no plain key says, from the rest of the config and the values of ``extra_keys``."""
    extra_keys: tuple[str, ...] = ()
    """Keys that ``read`` takes."""
    write: Callable[[TransformerConfig], Values] = lambda config: {}
    """Values of ``extra_keys`` to write."""


_QKV = tuple(f"layers.{{i}}.attention.{part}_proj" for part in "qkv")
_LAYERNORM: Values = {"norm": "layernorm"}
_EXPERTS = {"num_experts": "expert_count", "experts_per_token": "expert_used_count"}


def _gemma(every: int, layers_of_27b: int) -> Callable[[TransformerConfig, Values], Values]:
    """Every so many layers one sees all; the 27B, known by its depth, scales scores by a width of its own."""

    def read(config: TransformerConfig, values: Values) -> Values:
        fields: Values = {
            "embedding_scale": config.hidden_size**0.5,
            "sliding_layers": [i for i in range(config.num_layers) if (i + 1) % every],
        }
        if config.num_layers == layers_of_27b:
            fields["attention_scale"] = (config.hidden_size / config.num_heads) ** -0.5
        return fields

    return read


def _parallel(shared: bool) -> Callable[[TransformerConfig, Values], Values]:
    kind = "parallel_one_norm" if shared else "parallel"

    def read(config: TransformerConfig, values: Values) -> Values:
        return {"residual": kind if values.get("use_parallel_residual", True) else "sequential"}

    return read


def _write_parallel(config: TransformerConfig) -> Values:
    return {"use_parallel_residual": config.residual != "sequential"}


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(("llama", "mixtral", "mistral"), keys=_EXPERTS, pairs=True),
    "qwen2": Architecture(("qwen2",)),
    "qwen3": Architecture(("qwen3",), qk_norm="before_rope"),
    "qwen3moe": Architecture(
        ("qwen3_moe",), keys={**_EXPERTS, "expert_size": "expert_feed_forward_length"}, qk_norm="before_rope"
    ),
    "gemma2": Architecture(
        ("gemma2",),
        {"norm_offset": True, "post_norm": True, "mlp": "geglu"},
        {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping",
         "sliding_window": "attention.sliding_window"},
        {"attention_softcap": 50.0, "logit_softcap": 30.0, "sliding_window": 4096},
        read=_gemma(2, 46),
    ),
    "gemma3": Architecture(
        ("gemma3_text",),
        {"norm_offset": True, "post_norm": True, "mlp": "geglu"},
        {"logit_softcap": "final_logit_softcapping", "sliding_window": "attention.sliding_window",
         "local_rope_theta": "rope.freq_base_swa"},
        {"local_rope_theta": 10000.0},
        qk_norm="before_rope",
        read=_gemma(6, 62),
    ),
    "phi3": Architecture(
        ("phi3",),
        keys={"sliding_window": "attention.sliding_window"},
        fused={"blk.{i}.attn_qkv": _QKV, "blk.{i}.ffn_up": ("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj")},
    ),
    "gpt2": Architecture(
        ("gpt2",), {**_LAYERNORM, "mlp": "gelu", "learned_positions": True}, fused={"blk.{i}.attn_qkv": _QKV}
    ),
    "gptneox": Architecture(
        ("gpt_neox",),
        {**_LAYERNORM, "mlp": "gelu_erf"},
        fused={"blk.{i}.attn_qkv": _QKV},
        read=_parallel(shared=False),
        extra_keys=("use_parallel_residual",),
        write=_write_parallel,
    ),
    "olmo2": Architecture(("olmo2",), {"pre_norm": False, "post_norm": True}, qk_norm="projection"),
    "stablelm": Architecture(
        ("stablelm",),
        _LAYERNORM,
        qk_norm="per_head",
        read=_parallel(shared=True),
        extra_keys=("use_parallel_residual",),
        write=_write_parallel,
    ),
    "smollm3": Architecture(
        ("smollm3",),
        pairs=True,
        read=lambda config, values: {"nope_layers": [i for i in range(config.num_layers) if (i + 1) % 4 == 0]},
    ),
    "granite": Architecture(
        ("granite",),
        keys={"embedding_scale": "embedding_scale", "residual_scale": "residual_scale",
              "attention_scale": "attention.scale"},
        pairs=True,
        read=lambda config, values: {"logit_scale": 1 / values.get("logit_scale", 1.0)},
        extra_keys=("logit_scale",),
        write=lambda config: {"logit_scale": 1 / (config.logit_scale or 1.0)},
    ),
    "command-r": Architecture(
        ("cohere",),
        {**_LAYERNORM, "residual": "parallel_one_norm"},
        {"logit_scale": "logit_scale"},
        qk_norm="per_head",
        pairs=True,
    ),
}  # fmt: skip
_TRAINING_ONLY: Values = {"family": None, "router_aux_loss": 0.0, "router_z_loss": 0.0}
_FROM_TOKENIZER: Values = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def their_name(ours: str, arch: Architecture) -> str:
    """The GGUF tensor that holds our tensor ``ours``."""
    parts = ours.split(".")
    layer = parts[1] if parts[0] == "layers" else ""
    generic = ".".join(["layers", "{i}", *parts[2:]]) if layer else ours
    table = _COMMON_TENSORS | {part: whole for whole, held in arch.fused.items() for part in held}
    if generic in table:  # experts are parameters without a ".weight" of their own
        return table[generic].replace("{i}", layer) + ".weight"
    module, _, kind = generic.rpartition(".")
    return table[module].replace("{i}", layer) + "." + kind


def layout_of(
    shapes: Iterable[str], config: TransformerConfig, arch: Architecture
) -> dict[str, list[str]]:
    """GGUF tensors of a model with our tensors ``shapes`` -> ours whose rows each holds, in order."""
    layout: dict[str, list[str]] = {}
    for ours in shapes:
        if ours != "head.weight" or not config.tie_embeddings:
            layout.setdefault(their_name(ours, arch), []).append(ours)
    return layout


def relaid(
    ours: str, tensor: Tensor, config: TransformerConfig, arch: Architecture, *, back: bool
) -> Tensor:
    """A tensor of a file as ours, or ``back``: rotary pairs together or apart, Gemma's gains as 1 + weight or whole."""
    if config.norm_offset and ours.split(".")[-2].endswith("norm"):
        return tensor + 1 if back else tensor - 1
    if not (arch.pairs and re.search(r"\.[qk]_(proj|norm)\.", ours)):
        return tensor
    assert config.head_dim is not None
    rows = (
        tensor.reshape(-1, *tensor.shape[1:])
        if "_proj" in ours or tensor.ndim == 1
        else tensor.flatten(0, 1)
    )
    sizes = (-1, 2, config.head_dim // 2) if back else (-1, config.head_dim // 2, 2)
    return rows.unflatten(0, sizes).transpose(1, 2).reshape(tensor.shape)


def config_from_gguf(
    metadata: Values, names: set[str], rope_factors: Tensor | None
) -> TransformerConfig:
    """The shape of the model in a file with this metadata and these tensors; messages of errors lack the file's name.

    Args:
        metadata: of the whole file, tokenizer.ggml.tokens included: they count the vocabulary.
        names: of its tensors.
        rope_factors: its tensor rope_freqs.weight, float32 (rotary_size / 2,), or None.

    Raises:
        UserError: an architecture, a key or a scaling that we do not compute, or a value of the wrong type.
    """
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"architecture {kind!r} is not known; known are {', '.join(ARCHITECTURES)}")
    arch = ARCHITECTURES[kind]
    given = {
        key.removeprefix(kind + "."): value
        for key, value in metadata.items()
        if key.startswith(kind + ".")
    }
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise UserError("the metadata lacks tokenizer.ggml.tokens")
    norm = {**dataclasses.asdict(TransformerConfig()), **arch.traits}["norm"]
    needed = {**_COMMON_KEYS, "norm_eps": _NORM_EPS[norm]}
    if missing := [key for key in needed.values() if key not in given]:
        raise UserError(f"the metadata lacks {', '.join(f'{kind}.{key}' for key in missing)}")
    fields: Values = {
        **arch.traits,
        "vocab_size": len(tokens),
        "tie_embeddings": "output.weight" not in names,
    }
    try:
        fields |= {ours: given.pop(key) for ours, key in needed.items()}
        fields |= arch.defaults | {
            ours: given.pop(key) for ours, key in arch.keys.items() if key in given
        }
        heads = fields["num_heads"]
        fields["num_kv_heads"] = given.pop("attention.head_count_kv", heads)
        fields["head_dim"] = given.pop("attention.key_length", fields["hidden_size"] // heads)
        if given.pop("attention.value_length", fields["head_dim"]) != fields["head_dim"]:
            raise UserError("keys and values of different widths are not supported")
        fields["rope_theta"] = given.pop("rope.freq_base", 10000.0)
        fields["rotary_fraction"] = (
            given.pop("rope.dimension_count", fields["head_dim"]) / fields["head_dim"]
        )
        fields |= _from_tensors(names, arch)
        extra = {key: given.pop(key) for key in arch.extra_keys if key in given}
        fields |= {key: metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in
                   (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))}  # fmt: skip
        config = TransformerConfig.from_dict(fields)
        scaling = read_scaling(config, given, rope_factors)
        config = dataclasses.replace(config, rope_scaling=scaling)
        # local_rope_theta is dropped where it says nothing, so that read's fields come with those given
        values = config.to_dict() | {k: v for k, v in fields.items() if k == "local_rope_theta"}
        config = TransformerConfig.from_dict(values | arch.read(config, extra))
    except (TypeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"a value in the metadata is of the wrong kind ({error})") from None
    for key, value in given.items():
        if key not in _HARMLESS or (
            _HARMLESS[key] is not None and value not in (_HARMLESS[key] or ())
        ):
            raise UserError(f"{kind}.{key} = {value!r} is not supported")
    config.family = next(
        (name for name in arch.families if family_of(_as(config, name)) == name), arch.families[0]
    )
    return config


def _as(config: TransformerConfig, family: str) -> TransformerConfig:
    return dataclasses.replace(config, family=family)


def _from_tensors(names: set[str], arch: Architecture) -> Values:
    """What a file says by the tensors that it has."""
    return {
        "attention_bias": their_name("layers.0.attention.q_proj.bias", arch) in names,
        "attention_output_bias": "blk.0.attn_output.bias" in names,
        "mlp_bias": "blk.0.ffn_down.bias" in names,
        "norm_bias": "output_norm.bias" in names
        if arch.traits.get("norm") == "layernorm"
        else True,
        "qk_norm": arch.qk_norm if "blk.0.attn_q_norm.weight" in names else "none",
    }


def metadata_of(config: TransformerConfig, kind: str) -> tuple[Values, Tensor | None]:
    """Keys under architecture ``kind`` for ``config``, whether or not they say it all; rope_freqs.weight or None."""
    arch = ARCHITECTURES[kind]
    values = {key: getattr(config, ours) for ours, key in (_COMMON_KEYS | arch.keys).items()}
    values[_NORM_EPS[arch.traits.get("norm", "rmsnorm")]] = config.norm_eps
    values |= {
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        **arch.write(config),
    }
    if not config.num_experts:
        values = {key: value for key, value in values.items() if not key.startswith("expert_")}
    factors = None
    if not config.learned_positions:
        values |= {"rope.freq_base": config.rope_theta, "rope.dimension_count": config.rotary_size}
        scaling, factors = write_scaling(config)
        values |= scaling
    return {key: value for key, value in values.items() if value is not None}, factors


def gguf_arch_of(config: TransformerConfig) -> str:
    """The ``general.architecture`` that expresses ``config`` exactly: its family's own, or the first for other models.

    Raises:
        UserError: there is none; the fields that the family's own one, or the first, cannot express are named.
    """
    from lit_llm.models.meta import meta_transformer

    family = config.family or family_of(config)
    own = next((kind for kind, arch in ARCHITECTURES.items() if family in arch.families), None)
    names = list(meta_transformer(config).state_dict())
    refused = ""
    for kind in [own] if own else ARCHITECTURES:
        difference = _difference(config, kind, names)
        if difference is None:
            return kind
        refused = refused or f"{kind} cannot say {difference}"
    raise UserError(f"no GGUF architecture expresses this model: {refused}")


def _difference(config: TransformerConfig, kind: str, names: list[str]) -> str | None:
    """What is lost when ``config`` is written as ``kind`` and read again, or None."""
    arch = ARCHITECTURES[kind]
    try:
        values, factors = metadata_of(config, kind)
        metadata = {f"{kind}.{key}": value for key, value in values.items()} | {
            "general.architecture": kind
        }
        metadata["tokenizer.ggml.tokens"] = [""] * config.vocab_size
        again = config_from_gguf(metadata, set(layout_of(names, config, arch)), factors)
    except UserError as error:
        return str(error)
    ours = dataclasses.replace(config, **_TRAINING_ONLY, **_FROM_TOKENIZER).to_dict()
    theirs = dataclasses.replace(again, **_TRAINING_ONLY, **_FROM_TOKENIZER).to_dict()
    lost = [f"{key}={value!r}" for key, value in ours.items() if not _same(value, theirs[key])]
    return ", ".join(lost) or None


def _same(a: Any, b: Any) -> bool:
    """Equal, floats to the precision of a float32: what a file keeps."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
