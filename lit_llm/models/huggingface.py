"""Hugging Face directories, in and out: each family is one row of a table.

A row says what a family fixes (its traits), where its config keys go, and how its tensors are called. Reading streams
tensor by tensor from safetensors onto a model built on the meta device; writing inverts the same row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.transformer import Transformer

MAX_SHARD_BYTES = 5 * 10**9

# our field -> their key, for what every family calls the same
_COMMON_FIELDS = {
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
# our mlp -> the activation's name in config.json
_ACTIVATIONS = {"swiglu": "silu", "relu2": "relu2"}
# our tensor -> theirs; {i} is the layer
_COMMON_TENSORS = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "layers.{i}.attention": "model.layers.{i}.self_attn",
    "layers.{i}.mlp": "model.layers.{i}.mlp",
}


@dataclass(frozen=True)
class Family:
    """How one Hugging Face ``model_type`` maps to ours."""

    architecture: str
    """Class name in config.json."""
    traits: dict[str, Any]
    """Fields of ours that this family fixes, and so what a model must have to be saved as it."""
    fields: dict[str, str] = field(default_factory=dict)
    """Fields of ours -> their config keys, beyond the common ones."""
    tensors: dict[str, str] = field(default_factory=dict)
    """Names that differ from the common ones."""
    reversed_rope: bool = False
    """It turns channel pairs by -theta: the halves of each q and k head are swapped on the way in and out."""
    read: Callable[[dict[str, Any]], dict[str, Any]] = lambda hf: {}
    """Fields of ours computed from its config.json, where a plain key will not do."""
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    """The inverse of ``read``."""


_LLAMA_LIKE: dict[str, Any] = {
    "norm": "rmsnorm",
    "norm_weight": True,
    "embedding_norm": False,
    "mlp": "swiglu",
    "qk_norm": "none",
    "logit_softcap": None,
}


def _qwen_window(hf: dict[str, Any]) -> dict[str, Any]:
    """Qwen's window is off unless use_sliding_window; it then holds from layer max_window_layers on."""
    if not hf.get("use_sliding_window") or hf.get("sliding_window") is None:
        return {"sliding_window": None}
    types = hf.get("layer_types")
    if types is not None:
        layers = [i for i, kind in enumerate(types) if kind == "sliding_attention"]
    else:
        layers = list(range(hf.get("max_window_layers", 28), hf["num_hidden_layers"]))
    return {"sliding_window": hf["sliding_window"], "sliding_layers": layers}


def _write_qwen_window(config: TransformerConfig) -> dict[str, Any]:
    kinds = ["full_attention" if config.window(i) is None else "sliding_attention" for i in range(config.num_layers)]
    return {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": kinds,
    }


def _attention_biases(hf: dict[str, Any]) -> dict[str, Any]:
    """Families whose one flag means q, k, v and output biases alike."""
    bias = bool(hf.get("attention_bias", False))
    return {"attention_bias": bias, "attention_output_bias": bias}


FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        {**_LLAMA_LIKE, "sliding_window": None},
        {"head_dim": "head_dim", "mlp_bias": "mlp_bias"},
        read=_attention_biases,
        write=lambda config: {"attention_bias": config.attention_bias},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        {**_LLAMA_LIKE, "attention_bias": False, "attention_output_bias": False, "mlp_bias": False,
         "sliding_layers": None},
        {"head_dim": "head_dim", "sliding_window": "sliding_window"},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        {**_LLAMA_LIKE, "attention_bias": True, "attention_output_bias": False, "mlp_bias": False},
        read=_qwen_window,
        write=_write_qwen_window,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        {**_LLAMA_LIKE, "qk_norm": "before_rope", "mlp_bias": False},
        {"head_dim": "head_dim"},
        read=lambda hf: _qwen_window(hf) | _attention_biases(hf),
        write=lambda config: _write_qwen_window(config) | {"attention_bias": config.attention_bias},
    ),
    "nanochat": Family(
        "NanoChatForCausalLM",
        {"norm": "rmsnorm", "norm_weight": False, "embedding_norm": True, "mlp": "relu2", "qk_norm": "after_rope",
         "mlp_bias": False, "sliding_window": None},
        {"logit_softcap": "final_logit_softcapping"},
        {"layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.fc1", "layers.{i}.mlp.down_proj": "model.layers.{i}.mlp.fc2"},
        reversed_rope=True,
        read=_attention_biases,
        write=lambda config: {"attention_bias": config.attention_bias},
    ),
}  # fmt: skip


def family_of(config: TransformerConfig) -> str | None:
    """The Hugging Face ``model_type`` that expresses ``config`` exactly, or None."""
    assert config.head_dim is not None
    for name, family in FAMILIES.items():
        fits = all(getattr(config, key) == value for key, value in family.traits.items())
        if "attention_output_bias" not in family.traits:
            fits &= config.attention_bias == config.attention_output_bias
        if "head_dim" not in family.fields:
            fits &= config.head_dim * config.num_heads == config.hidden_size
        if fits:
            return name
    return None


def config_from_hf(hf: dict[str, Any], origin: str) -> TransformerConfig:
    """Our config from the contents of a config.json; ``origin`` is named in errors."""
    model_type = hf.get("model_type")
    if model_type == "lit_llm":
        return TransformerConfig.from_dict(hf["transformer"])
    if model_type not in FAMILIES:
        raise UserError(f"{origin}: model_type {model_type!r} is not known; known are {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{origin}: RoPE scaling {kind!r} is not supported yet; only the default is")
    activation = hf.get("hidden_act", hf.get("hidden_activation"))
    if activation is not None and activation != _ACTIVATIONS[family.traits["mlp"]]:
        raise UserError(f"{origin}: hidden_act {activation!r} is not what {model_type} models have here")
    values = dict(family.traits)
    for ours, theirs in (_COMMON_FIELDS | family.fields).items():
        if theirs in hf:
            values[ours] = hf[theirs]
    values["rope_theta"] = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = values["eos_token_id"][0]
    return TransformerConfig.from_dict(values | family.read(hf))


def config_to_hf(config: TransformerConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The contents of a config.json for ``config``."""
    name = family_of(config)
    dtype_name = str(dtype).removeprefix("torch.")
    if name is None:
        return {"model_type": "lit_llm", "dtype": dtype_name, "transformer": config.to_dict()}
    family = FAMILIES[name]
    hf = {theirs: getattr(config, ours) for ours, theirs in (_COMMON_FIELDS | family.fields).items()}
    return {
        "architectures": [family.architecture],
        "model_type": name,
        "dtype": dtype_name,
        "torch_dtype": dtype_name,  # what transformers 4 and vLLM read
        **hf,
        "hidden_act": _ACTIVATIONS[config.mlp],
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": 0.0,
    } | family.write(config)


def tensor_names(config: TransformerConfig, ours: str, family: Family) -> str:
    """Their name for our tensor ``ours``."""
    parts = ours.split(".")
    layer = parts[1] if parts[0] == "layers" else None
    generic = ours if layer is None else ".".join(["layers", "{i}", *parts[2:]])
    table = _COMMON_TENSORS | family.tensors
    # The longest prefix wins, so that a family renames one projection and keeps the rest.
    prefix = max((p for p in table if generic == p or generic.startswith(p + ".")), key=len)
    return (table[prefix] + generic[len(prefix) :]).replace("{i}", str(layer))


def _swap_halves(tensor: Tensor, head_dim: int) -> Tensor:
    """Exchange the two halves of every head's rows: turning pairs by -theta becomes turning them by theta."""
    heads = tensor.unflatten(0, (-1, 2, head_dim // 2))
    return heads.flip(1).reshape(tensor.shape)


def converted(name: str, tensor: Tensor, config: TransformerConfig, family: Family) -> Tensor:
    """Layout changes a family needs; each is its own inverse."""
    assert config.head_dim is not None
    if (family.reversed_rope and ".q_proj." in name) or (family.reversed_rope and ".k_proj." in name):
        return _swap_halves(tensor, config.head_dim)
    return tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``; UserError names the file when it is missing or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def iter_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every entry in the folder's (sharded) safetensors, one in memory at a time."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: no such file; a model directory holds model.safetensors or its shards")
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 -- no dict: it has no iterator
                    yield name, reader.get_tensor(name)
        except SafetensorError as error:
            raise UserError(f"{file}: not a whole safetensors file ({error})") from None


def load_pretrained(folder: Path, dtype: torch.dtype | None = None) -> Transformer:
    """See `Transformer.from_pretrained`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model directory")
    hf = read_json(folder / "config.json")
    config = config_from_hf(hf, str(folder / "config.json"))
    with torch.device("meta"):
        model = Transformer(config)
    family = FAMILIES.get(hf["model_type"])
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    ours_by_theirs = {tensor_names(config, name, family) if family else name: name for name in shapes}
    loaded: dict[str, Tensor] = {}
    unknown = []
    for theirs, tensor in iter_tensors(folder):
        ours = ours_by_theirs.get(theirs)
        if ours is None:
            # A tied head and stored rotary tables repeat what is known already.
            if not (theirs == "lm_head.weight" and config.tie_embeddings) and "rotary_emb" not in theirs:
                unknown.append(theirs)
            continue
        if tensor.shape != shapes[ours]:
            raise UserError(
                f"{folder}: tensor {theirs} has shape {tuple(tensor.shape)}, config.json says {tuple(shapes[ours])}"
            )
        tensor = tensor if dtype is None else tensor.to(dtype)
        loaded[ours] = tensor if family is None else converted(ours, tensor, config, family)
    missing = [theirs for theirs, ours in ours_by_theirs.items() if ours not in loaded]
    if unknown or missing:
        raise UserError(f"{folder}: tensors without a place: {unknown or 'none'}; tensors missing: {missing or 'none'}")
    model.assign_weights(loaded)
    return model


def save_pretrained(
    model: Transformer, folder: Path, dtype: torch.dtype | None = None, state_dict: dict[str, Tensor] | None = None
) -> None:
    """See `Transformer.save_pretrained`."""
    from safetensors.torch import save_file

    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    name = family_of(config)
    tensors: dict[str, Tensor] = {}
    for ours, tensor in (state_dict or model.state_dict()).items():
        if ours == "head.weight" and config.tie_embeddings:
            continue
        tensor = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype)
        if name is not None:
            tensor = converted(ours, tensor, config, FAMILIES[name])
            ours = tensor_names(config, ours, FAMILIES[name])
        tensors[ours] = tensor.contiguous()
    saved_dtype = dtype or next(model.parameters()).dtype
    (folder / "config.json").write_text(json.dumps(config_to_hf(config, saved_dtype), indent=2) + "\n")
    generation = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
                  "pad_token_id": config.pad_token_id}  # fmt: skip
    (folder / "generation_config.json").write_text(
        json.dumps({k: v for k, v in generation.items() if v is not None}, indent=2) + "\n"
    )
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        size += tensor.nbytes
        if size > MAX_SHARD_BYTES and shards[-1]:
            shards.append({})
            size = tensor.nbytes
        shards[-1][key] = tensor
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
