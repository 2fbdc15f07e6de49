"""Convert GGUF metadata and tensor names to TransformerConfig and parameters, and back.

The architectures are data in `architectures`. What an engine assumes without a key (Gemma's scale
of scores, SmolLM3's layers without positions) is in their ``read``. `gguf_arch_of` finds what a
model would lose: it reads back what would be written, and it asks which of the model's fields
llama.cpp does not load or compute.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.config_json import family_of
from lit_llm.models.hub.gguf.architectures import (
    ARCHITECTURES,
    COMMON_KEYS,
    COMMON_TENSORS,
    NORM_EPS,
    Architecture,
    Values,
    beyond_limits,
)
from lit_llm.models.hub.gguf.rope import read_scaling, without_neutral_values, write_scaling

# Keys without effect, with any value (None) or with these values. Any other unknown key is refused.
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
_TRAINING_ONLY: Values = {"family": None, "router_aux_loss": 0.0, "router_z_loss": 0.0}
_FROM_TOKENIZER: Values = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def gguf_name(ours: str, arch: Architecture) -> str:
    """Return the name of the GGUF tensor that holds lit_llm's tensor ``ours``."""
    parts = ours.split(".")
    layer = parts[1] if parts[0] == "layers" else ""
    generic = ".".join(["layers", "{i}", *parts[2:]]) if layer else ours
    table = COMMON_TENSORS | {part: whole for whole, held in arch.fused.items() for part in held}
    if generic in table:  # experts are parameters without a ".weight" of their own
        return table[generic].replace("{i}", layer) + ".weight"
    module, _, kind = generic.rpartition(".")
    return table[module].replace("{i}", layer) + "." + kind


def layout_of(
    shapes: Iterable[str], config: TransformerConfig, arch: Architecture
) -> dict[str, list[str]]:
    """Return GGUF tensor -> names of lit_llm's tensors whose rows it holds, in order.

    ``shapes`` are the names of lit_llm's tensors. A tied head is written only if llama.cpp does not
    load the file without it.
    """
    layout: dict[str, list[str]] = {}
    for ours in shapes:
        if ours != "head.weight" or not config.tie_embeddings or arch.head == "own":
            layout.setdefault(gguf_name(ours, arch), []).append(ours)
    return layout


def convert_layout(
    ours: str, tensor: Tensor, config: TransformerConfig, arch: Architecture, *, back: bool
) -> Tensor:
    """Convert a tensor of a file to lit_llm's layout, or ``back``.

    The rotary pairs are adjacent rows in some architectures, and Gemma's gains are stored as 1 +
    weight.
    """
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
    metadata: Values,
    names: set[str],
    rope_factors: Tensor | None,
    head_repeats_embedding: bool = False,
) -> TransformerConfig:
    """Build the config of the model in a file with this metadata and these tensors.

    The error messages do not contain the file's name.

    Args:
        metadata: of the whole file, including tokenizer.ggml.tokens, whose number is the vocabulary
            size.
        names: of the file's tensors.
        rope_factors: the file's tensor rope_freqs.weight, float32 (rotary_size / 2,), or None.
        head_repeats_embedding: whether output.weight is a copy of token_embd.weight. Tied models
            are stored this way if llama.cpp requires output.weight in every file.

    Raises:
        UserError: an architecture, a key or a scaling is not supported, or a value has the wrong
            type.
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
    needed = {**COMMON_KEYS, "norm_eps": NORM_EPS[norm]}
    if missing := [key for key in needed.values() if key not in given]:
        raise UserError(f"the metadata lacks {', '.join(f'{kind}.{key}' for key in missing)}")
    fields: Values = {
        **arch.traits,
        "vocab_size": len(tokens),
        "tie_embeddings": "output.weight" not in names
        or (arch.head == "own" and head_repeats_embedding),
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
        roles = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        fields |= {
            key: metadata.get(f"tokenizer.ggml.{role}_token_id") for key, role in roles.items()
        }
        config = TransformerConfig.from_dict(fields)
        scaling = read_scaling(config, given, rope_factors)
        config = dataclasses.replace(config, rope_scaling=scaling)
        # TransformerConfig drops a local_rope_theta without effect. It is added again here, because
        # the fields of ``read`` may give it an effect.
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
    """Return the fields that follow from which tensors the file has."""
    return {
        "attention_bias": gguf_name("layers.0.attention.q_proj.bias", arch) in names,
        "attention_output_bias": "blk.0.attn_output.bias" in names,
        "mlp_bias": "blk.0.ffn_down.bias" in names,
        "norm_bias": "output_norm.bias" in names
        if arch.traits.get("norm") == "layernorm"
        else True,
        "qk_norm": arch.qk_norm if "blk.0.attn_q_norm.weight" in names else "none",
    }


def metadata_of(config: TransformerConfig, kind: str) -> tuple[Values, Tensor | None]:
    """Return the keys of architecture ``kind`` for ``config``, and rope_freqs.weight or None.

    The keys may not express the whole config.
    """
    arch = ARCHITECTURES[kind]
    config = _drop_redundant_fields(config, arch)
    values = {key: getattr(config, ours) for ours, key in (COMMON_KEYS | arch.keys).items()}
    values[NORM_EPS[arch.traits.get("norm", "rmsnorm")]] = config.norm_eps
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


_PRESETS = (
    "--config pretrain/base-135m or another of transformers' shapes, "
    "as model.transformer=qwen3-0.6b"
)


def gguf_arch_of(config: TransformerConfig) -> str:
    """Return the ``general.architecture`` that expresses ``config`` exactly.

    It is the architecture of the config's family, or the first that fits for other models.

    Raises:
        UserError: there is none. The message names the fields that the family's architecture, or
            the first one, cannot express or that llama.cpp does not load.
    """
    from lit_llm.models.meta import meta_transformer

    if config.mixing_parts:
        raise UserError(
            "no GGUF architecture expresses this model: llama.cpp has no "
            f"{', '.join(config.mixing_parts)}; export it with --format hf"
        )
    family = config.family or family_of(config)
    own = next((kind for kind, arch in ARCHITECTURES.items() if family in arch.families), None)
    names = list(meta_transformer(config).state_dict())
    refused = ""
    for kind in [own] if own else ARCHITECTURES:
        difference = _difference(config, kind, names)
        if difference is None:
            return kind
        refused = refused or f"{kind} cannot express {difference}"
    advice = f"export it with --format hf, or train a new one that starts from {_PRESETS}"
    if "sliding_window=" in refused and config.sliding_window is not None:
        advice = (
            f"where no text is longer than {config.sliding_window} tokens, the window has no "
            f"effect: set sliding_window to null in its config.json; else {advice}"
        )
    raise UserError(f"no GGUF architecture expresses this model: {refused}; {advice}")


def _drop_redundant_fields(config: TransformerConfig, arch: Architecture) -> TransformerConfig:
    """Return ``config`` without fields that have no effect.

    A field is dropped only if this kind of file cannot hold it.
    """
    changes: Values = {"rope_scaling": without_neutral_values(config.rope_scaling)}
    window = config.sliding_window
    if window is not None and window >= config.max_seq_len and config.local_rope_theta is None:
        has_key = "sliding_window" in arch.keys and "sliding_window" not in arch.ignored
        changes |= {} if has_key else {"sliding_window": None}
    return dataclasses.replace(config, **changes)


def _difference(config: TransformerConfig, kind: str, names: list[str]) -> str | None:
    """Return what is lost when ``config`` is written as ``kind`` and read back, or None."""
    arch = ARCHITECTURES[kind]
    config = _drop_redundant_fields(config, arch)
    beyond = beyond_limits(config, kind)
    try:
        values, factors = metadata_of(config, kind)
        metadata = {f"{kind}.{key}": value for key, value in values.items()} | {
            "general.architecture": kind
        }
        metadata["tokenizer.ggml.tokens"] = [""] * config.vocab_size
        tensors = set(layout_of(names, config, arch))
        reread = config_from_gguf(metadata, tensors, factors, config.tie_embeddings)
    except UserError as error:
        return ", ".join([*beyond, str(error)])
    if factors is not None and not arch.rope_factors:
        beyond.append(f"rope_scaling={config.rope_scaling!r}")
    ours = dataclasses.replace(config, **_TRAINING_ONLY, **_FROM_TOKENIZER).to_dict()
    theirs = dataclasses.replace(reread, **_TRAINING_ONLY, **_FROM_TOKENIZER).to_dict()
    lost = [f"{key}={value!r}" for key, value in ours.items() if not _same(value, theirs[key])]
    return ", ".join(dict.fromkeys(lost + beyond)) or None


def _same(a: Any, b: Any) -> bool:
    """Whether the values are equal; floats to the precision of float32, which a file stores."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
