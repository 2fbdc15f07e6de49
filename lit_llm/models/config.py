"""The configuration of a decoder-only transformer, and the presets."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_llm.errors import UserError
from lit_llm.models.hub.formats import format_of
from lit_llm.models.hub.locate import locate
from lit_llm.models.presets import preset_fields
from lit_llm.settings.ranges import Range, check_ranges, positive

_WIDTH, _ID, _FACTOR = Range(1, 1e6), Range(-1, 1e9), Range(0, 1e6)
# Layers and experts are limited too: a broken file that claims 2^40 of them would keep the machine
# busy for a day.
_COUNT = Range(1, 1e4)
RANGES: dict[str, Range] = {
    "vocab_size": Range(1, 1e8), "hidden_size": _WIDTH, "num_layers": _COUNT, "num_heads": _COUNT,
    "num_kv_heads": _COUNT, "head_dim": Range(2, 1e5), "intermediate_size": Range(1, 1e7),
    "max_seq_len": Range(1, 1e9), "norm_eps": Range(0, 1), "num_experts": Range(0, 1e4),
    "experts_per_token": _COUNT, "expert_size": Range(1, 1e7), "router_aux_loss": _FACTOR,
    "router_z_loss": _FACTOR, "rope_theta": positive(1e15), "rotary_fraction": positive(1),
    "local_rope_theta": positive(1e15), "attention_scale": _FACTOR,
    "attention_softcap": positive(1e6), "sliding_window": Range(1, 1e9),
    "embedding_scale": _FACTOR, "residual_scale": _FACTOR, "logit_scale": _FACTOR,
    "logit_softcap": positive(1e6), "value_gate_channels": _WIDTH, "smear_channels": _WIDTH,
    "bigram_rows": Range(1, 1e9),
    "backout_layer": Range(0, 1e4), "bos_token_id": _ID, "eos_token_id": _ID, "pad_token_id": _ID,
}  # fmt: skip
"""Allowed ranges of the numbers in `TransformerConfig`."""
# RoPE scaling types, with transformers' names -> (required keys, optional keys).
_SCALING_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "dynamic": ({"factor"}, set()),
    "llama3": (
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        set(),
    ),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    ),
}


@dataclass
class TransformerConfig:
    """The shape of a decoder-only transformer.

    The defaults give a small Qwen3-like model. The supported model families differ from it only in
    these fields.
    """

    vocab_size: int = 4096
    """Number of rows of the embedding and of the head."""
    hidden_size: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Query heads per layer."""
    num_kv_heads: int | None = None
    """Key/value heads per layer. None: num_heads.

    Fewer than num_heads is grouped-query attention (arXiv:2305.13245).
    """
    head_dim: int | None = None
    """Width of a head. None: hidden_size / num_heads."""
    intermediate_size: int | None = None
    """Width of the MLP. None: 4 * hidden_size.

    For the gated kinds None is two thirds of that, rounded up to a multiple of 32.
    """
    max_seq_len: int = 2048
    """Longest sequence the model is meant for."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of all normalisation layers."""
    norm_eps: float = 1e-6
    """Added to the variance in a norm."""
    norm_weight: bool = True
    """Whether norms have a learned gain (nanochat's have none)."""
    norm_bias: bool = True
    """Whether a layernorm has a learned bias (Command-R's have none)."""
    norm_offset: bool = False
    """The gain is 1 + weight (Gemma), so that weight decay pulls the gain to 1."""
    embedding_norm: bool = False
    """Normalise the embedding before the first block (nanochat)."""
    pre_norm: bool = True
    """Normalise the input of attention and MLP."""
    post_norm: bool = False
    """Normalise the output of attention and MLP before it is added to the residual stream.

    This is together with pre_norm (Gemma) or instead of it (OLMo 2).
    """
    residual: Literal["sequential", "parallel", "parallel_one_norm"] = "sequential"
    """What the MLP reads.

    sequential: the stream after attention. parallel: the block's input, as attention does
    (GPT-NeoX). parallel_one_norm: the same, through one common norm (Command-R).
    """
    mlp: Literal["swiglu", "geglu", "gelu", "gelu_erf", "relu2"] = "swiglu"
    """Activation of the MLP.

    swiglu, geglu: gated SiLU or GELU (arXiv:2002.05202). gelu, gelu_erf: plain GELU, tanh form or
    exact. relu2: squared ReLU (arXiv:2109.08668).
    """
    num_experts: int = 0
    """Experts per layer; 0 means one dense MLP."""
    experts_per_token: int = 2
    """Experts that each token is sent to."""
    expert_size: int | None = None
    """Width of an expert's MLP. None: intermediate_size."""
    normalize_expert_weights: bool = True
    """Scale the weights of the chosen experts to a sum of 1."""
    dense_layers: list[int] | None = None
    """Layers with one dense MLP in a model with experts, counted from 0. None: none."""
    router_aux_loss: float = 0.0
    """Weight of the load-balancing loss in training (arXiv:2101.03961, equations 4 to 6)."""
    router_z_loss: float = 0.0
    """Weight of the router's z-loss in training (arXiv:2202.08906, equation 5)."""
    qk_norm: Literal["none", "before_rope", "after_rope", "projection", "per_head"] = "none"
    """Normalise queries and keys.

    before_rope: each head before RoPE (Qwen3). after_rope: each head after RoPE (nanochat).
    projection: the whole projection (OLMo 2). per_head: each head with its own gain (StableLM 2
    12B, Command-R+).
    """
    learned_positions: bool = False
    """Positions are rows of an embedding (GPT-2) instead of rotations."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies (arXiv:2104.09864)."""
    rope_scaling: dict[str, Any] | None = None
    """How frequencies are stretched beyond the training context, with the keys of config.json.

    The keys are rope_type (linear, dynamic, llama3 or yarn), factor, and the further keys of that
    type.
    """
    rotary_fraction: float = 1.0
    """Fraction of a head's channels that RoPE rotates, from the first channel on."""
    local_rope_theta: float | None = None
    """Base of the frequencies in windowed layers, which are never stretched (Gemma 3).

    None: rope_theta, as in all other layers.
    """
    nope_layers: list[int] | None = None
    """Layers without position information (SmolLM3), counted from 0. None: none."""
    attention_scale: float | None = None
    """Attention scores are multiplied by this number. None: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """Squash attention scores to (-c, c) with c * tanh(scores / c) (Gemma 2)."""
    sliding_window: int | None = None
    """Tokens that a windowed layer sees, including the token itself. None: all tokens."""
    sliding_layers: list[int] | None = None
    """Layers that use the window, counted from 0. None: all layers."""
    attention_bias: bool = False
    """Biases on the q, k and v projections."""
    attention_output_bias: bool = False
    """Bias on the output projection of attention."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    embedding_scale: float | None = None
    """Embeddings are multiplied by this number (Gemma, Granite)."""
    residual_scale: float | None = None
    """Factor of the outputs of attention and MLP before they are added to the stream (Granite)."""
    logit_scale: float | None = None
    """Logits are multiplied by this number (Granite, Command-R)."""
    logit_softcap: float | None = None
    """Squash logits to (-c, c) with c * tanh(logits / c)."""
    value_embeddings: list[int] | None = None
    """Layers, counted from 0, whose values get a token's row of a table of their own added.

    Each table has vocab_size rows as wide as the layer's values. A row is looked up, not multiplied
    (https://github.com/KellerJordan/modded-nanogpt, after arXiv:2410.17897). None: none.
    """
    value_gate_channels: int | None = None
    """Channels of the layer's input from which a gate of each value head is computed.

    The looked-up row is multiplied by 3 * sigmoid(weight @ channels), as in nanochat
    (https://github.com/karpathy/nanochat, gpt.py). None: by 1.
    """
    smear_channels: int | None = None
    """Channels of the embedding from which a gate of the token before is computed.

    The embedding of the token before, times a learned number and sigmoid(weight @ channels), is
    added to each embedding (modded-nanogpt, nanochat). The first token of a document has no token
    before. None: no such sum.
    """
    bigram_rows: int | None = None
    """Rows of a table in which each pair of a token and the one before it has a row, by a hash.

    The row, times a learned number, is added to the embedding of the second token
    (https://github.com/KellerJordan/modded-nanogpt/pull/201). Pairs share rows if there are more
    pairs than rows. None: no table.
    """
    exclusive_attention: bool = False
    """A token's own value is taken out of what its attention heads return.

    Each head's output loses its component along the token's own value (arXiv:2603.09078).
    """
    embedding_mix: bool = False
    """Each block reads a * stream + b * first embedding; a and b are learned numbers of the layer.

    The first embedding is the input of the first block (modded-nanogpt, nanochat).
    """
    backout_layer: int | None = None
    """A learned share of this layer's output is subtracted before the last norm (nanochat).

    Layers are counted from 0. None: nothing is subtracted.
    """
    tie_embeddings: bool = False
    """Head and embedding share one matrix."""
    bos_token_id: int | None = None
    """Token at the start of a document."""
    eos_token_id: int | None = None
    """Token that ends generation."""
    pad_token_id: int | None = None
    """Token that fills up the rows of a batch."""
    family: str | None = None
    """Hugging Face model_type for saving, if this type can express the model.

    A loaded model keeps the type of its file. None: the first type that can express the model.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setattr(
                self, field.name, _checked(field.name, getattr(self, field.name), str(field.type))
            )
        check_ranges(vars(self), RANGES)
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_heads
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise UserError(
                    f"hidden_size={self.hidden_size} is not a multiple of "
                    f"num_heads={self.num_heads}: change one or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_heads
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} must be even: RoPE turns pairs of channels")
        if self.intermediate_size is None:
            width = 4 * self.hidden_size
            self.intermediate_size = -(-(2 * width // 3) // 32) * 32 if self.gated_mlp else width
        if self.expert_size is None:
            self.expert_size = self.intermediate_size
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise UserError(
                f"experts_per_token={self.experts_per_token} must be 1 to "
                f"num_experts={self.num_experts}"
            )
        if self.num_experts and not self.gated_mlp:
            raise UserError(f"experts have gated MLPs (swiglu or geglu), not {self.mlp}")
        if not (self.pre_norm or self.post_norm):
            raise UserError("a block needs pre_norm or post_norm")
        if self.residual != "sequential" and (self.post_norm or not self.pre_norm):
            raise UserError(f"residual={self.residual} needs pre_norm without post_norm")
        for name in ("sliding_layers", "dense_layers", "nope_layers", "value_embeddings"):
            for layer in getattr(self, name) or []:
                if not 0 <= layer < self.num_layers:
                    raise UserError(
                        f"{name} names layer {layer}; the model has layers 0 to "
                        f"{self.num_layers - 1}"
                    )
        self._simplify()
        self._check_mixing()
        self._check_scaling()
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise UserError(
                f"rotary_fraction={self.rotary_fraction} of head_dim={self.head_dim} must be an "
                "even number"
            )

    def _check_mixing(self) -> None:
        for name in ("value_gate_channels", "smear_channels"):
            channels = getattr(self, name)
            if channels is not None and channels > self.hidden_size:
                raise UserError(f"{name}={channels} is more than hidden_size={self.hidden_size}")
        if self.backout_layer is not None and self.backout_layer >= self.num_layers:
            raise UserError(
                f"backout_layer names layer {self.backout_layer}; the model has layers 0 to "
                f"{self.num_layers - 1}"
            )
        if self.smear_channels is not None and self.learned_positions:
            raise UserError(
                "smear_channels needs an embedding without positions: set learned_positions to "
                "false"
            )
        if self.value_gate_channels is not None and self.value_embeddings is None:
            raise UserError("value_gate_channels needs value_embeddings: name their layers")

    def _check_scaling(self) -> None:
        if self.rope_scaling is None:
            return
        kind = self.rope_scaling.get("rope_type")
        if kind not in _SCALING_KEYS:
            raise UserError(
                f"rope_scaling.rope_type is one of {', '.join(_SCALING_KEYS)}; got {kind!r}"
            )
        needed, optional = _SCALING_KEYS[kind]
        if missing := [key for key in needed if self.rope_scaling.get(key) is None]:
            raise UserError(f"rope_scaling of type {kind} needs {', '.join(missing)}")
        if unknown := self.rope_scaling.keys() - {"rope_type"} - needed - optional:
            raise UserError(f"rope_scaling of type {kind} has no {', '.join(sorted(unknown))}")

    def _simplify(self) -> None:
        """Normalise the fields, so that configs of equal shape compare equal."""
        assert self.head_dim is not None
        if self.sliding_layers is not None:
            self.sliding_layers = sorted(set(self.sliding_layers))
        if self.sliding_layers == [] or self.sliding_window is None:
            self.sliding_window = self.sliding_layers = None
        if self.sliding_layers == list(range(self.num_layers)):
            self.sliding_layers = None
        self.dense_layers = sorted(set(self.dense_layers or [])) or None
        if not self.num_experts:
            self.dense_layers = None
            self.expert_size, self.experts_per_token = self.intermediate_size, 2
            self.normalize_expert_weights = True
        if self.norm == "rmsnorm":
            self.norm_bias = True
        self.nope_layers = sorted(set(self.nope_layers or [])) or None
        self.value_embeddings = sorted(set(self.value_embeddings or [])) or None
        for name, neutral in (
            ("embedding_scale", 1.0),
            ("residual_scale", 1.0),
            ("logit_scale", 1.0),
            ("attention_scale", self.head_dim**-0.5),
        ):
            if getattr(self, name) == neutral:
                setattr(self, name, None)
        if self.sliding_window is None or (
            self.local_rope_theta == self.rope_theta and self.rope_scaling is None
        ):
            self.local_rope_theta = None

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP multiplies an activated gate with a second projection."""
        return self.mlp in ("swiglu", "geglu")

    @property
    def rotary_size(self) -> int:
        """Number of channels of a head that RoPE rotates."""
        assert self.head_dim is not None
        return int(self.head_dim * self.rotary_fraction)

    def window(self, layer: int) -> int | None:
        """Number of tokens that layer ``layer`` attends to, or None for all tokens."""
        windowed = self.sliding_layers is None or layer in self.sliding_layers
        return self.sliding_window if windowed else None

    def positions(self, layer: int) -> Literal["none", "global", "local"]:
        """How layer ``layer`` rotates queries and keys.

        "none": no rotation; "global": by ``rope_theta``; "local": by ``local_rope_theta``.
        """
        if self.learned_positions or layer in (self.nope_layers or []):
            return "none"
        return "global" if self.local_rope_theta is None or self.window(layer) is None else "local"

    @property
    def reads_token_before(self) -> bool:
        """Whether the embedding of a token depends on the id of the token before it."""
        return self.smear_channels is not None or self.bigram_rows is not None

    @property
    def mixing_parts(self) -> list[str]:
        """Names of the fields of the parts that learn faster, as far as the model has them.

        No family of transformers and no architecture of llama.cpp has them.
        """
        neutral = {field.name: field.default for field in dataclasses.fields(self)}
        names = (
            "value_embeddings", "value_gate_channels", "smear_channels", "bigram_rows",
            "exclusive_attention", "embedding_mix", "backout_layer",
        )  # fmt: skip
        return [name for name in names if getattr(self, name) != neutral[name]]

    def has_experts(self, layer: int) -> bool:
        """Whether layer ``layer`` is a mixture of experts."""
        return self.num_experts > 0 and layer not in (self.dense_layers or [])

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """Build from a plain dict, as in a YAML file; ``preset`` names a preset to start from.

        Raises:
            UserError: for an unknown key or preset (the message names the nearest valid one) or for
                a value of the wrong type.
        """
        values = dict(values)
        preset = values.pop("preset", None)
        base = {} if preset is None else dict(preset_fields(preset))
        known = {field.name for field in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                raise UserError(
                    f"unknown key transformer.{key}"
                    + (f": did you mean {near[0]}?" if near else "")
                )
            base[key] = value
        return cls(**base)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> TransformerConfig:
        """Build the preset ``name`` with single fields replaced."""
        return cls.from_dict({"preset": name, **overrides})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TransformerConfig:
        """Read the shape of the model in a Hugging Face directory or GGUF file.

        Raises the same errors as `Transformer.from_pretrained`.
        """
        found = locate(path)
        return format_of(found).read_config(found)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, with defaults resolved."""
        return dataclasses.asdict(self)


def _checked(key: str, value: Any, annotation: str) -> Any:
    """Return ``value`` if it has the annotated type.

    The conversions that YAML needs are applied (1 -> 1.0, "1e4" -> 10000.0).
    """
    if value is None and "None" in annotation:
        return None
    if annotation.startswith("Literal"):
        choices = [c.strip("\"'") for c in annotation[len("Literal[") : -1].split(", ")]
        if value not in choices:
            raise UserError(f"transformer.{key} is one of {', '.join(choices)}; got {value!r}")
        return value
    if annotation.startswith("dict"):
        if isinstance(value, dict):
            return dict(value)
        raise UserError(f"transformer.{key} must be a mapping, got {value!r}")
    if annotation.startswith("list"):
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            return list(value)
        raise UserError(f"transformer.{key} must be a list of whole numbers, got {value!r}")
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[annotation.split(" ")[0]]
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is wanted:
        return value
    elif wanted is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # a NumPy integer
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    raise UserError(f"transformer.{key} must be {kind[wanted.__name__]}, got {value!r}")
