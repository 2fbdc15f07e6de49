"""One readable description of a decoder-only transformer, and the presets known by name."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_llm.errors import UserError
from lit_llm.models.locate import locate


@dataclass
class TransformerConfig:
    """The shape of a decoder-only transformer.

    The defaults are a small Qwen3-like model; the families people use differ from it only in these fields.
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
    """Key/value heads per layer: fewer than num_heads is grouped-query attention (arXiv:2305.13245). None:
    num_heads."""
    head_dim: int | None = None
    """Width of a head. None: hidden_size / num_heads."""
    intermediate_size: int | None = None
    """Width of the MLP. None: 4 * hidden_size, and two thirds of that (rounded up to 32) for the gated kinds."""
    max_seq_len: int = 2048
    """Longest sequence the model is meant for."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of every normalisation layer."""
    norm_eps: float = 1e-6
    """Added to the variance in a norm."""
    norm_weight: bool = True
    """Whether norms carry a learned gain (nanochat's do not)."""
    embedding_norm: bool = False
    """Normalise the embedding before the first block (nanochat)."""
    mlp: Literal["swiglu", "geglu", "gelu", "relu2"] = "swiglu"
    """Activation: gated SiLU or GELU (arXiv:2002.05202), plain GELU (tanh form), or squared ReLU (arXiv:2109.08668)."""
    qk_norm: Literal["none", "before_rope", "after_rope"] = "none"
    """Normalise queries and keys per head: before RoPE (Qwen3) or after it (nanochat)."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies (arXiv:2104.09864)."""
    sliding_window: int | None = None
    """Tokens a windowed layer sees, itself included. None: every layer sees all."""
    sliding_layers: list[int] | None = None
    """Layers that use the window, counted from 0. None: all of them."""
    attention_bias: bool = False
    """Biases on the q, k and v projections."""
    attention_output_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    """Biases in the MLP."""
    logit_softcap: float | None = None
    """Squash logits to (-c, c) by c * tanh(logits / c)."""
    tie_embeddings: bool = False
    """Head and embedding are one matrix."""
    bos_token_id: int | None = None
    """Token put before a document."""
    eos_token_id: int | None = None
    """Token that ends generation."""
    pad_token_id: int | None = None
    """Token that fills a batch."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_seq_len"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_kv_heads is None:
            self.num_kv_heads = self.num_heads
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise UserError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim is None:
            if self.hidden_size % self.num_heads:
                raise UserError(
                    f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}: "
                    "change one or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_heads
        if self.head_dim < 2 or self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} must be even: RoPE turns pairs of channels")
        if self.intermediate_size is None:
            width = 4 * self.hidden_size
            self.intermediate_size = -(-(2 * width // 3) // 32) * 32 if self.gated_mlp else width
        if self.intermediate_size < 1:
            raise UserError(f"intermediate_size must be at least 1, got {self.intermediate_size}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise UserError(f"sliding_window must be at least 1, got {self.sliding_window}")
        for layer in self.sliding_layers or []:
            if not 0 <= layer < self.num_layers:
                raise UserError(f"sliding_layers names layer {layer}; the model has layers 0 to {self.num_layers - 1}")

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP multiplies an activated gate with a second projection."""
        return self.mlp in ("swiglu", "geglu")

    def window(self, layer: int) -> int | None:
        """Tokens layer ``layer`` attends to, or None for all."""
        windowed = self.sliding_layers is None or layer in self.sliding_layers
        return self.sliding_window if windowed else None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """Build from a plain dict, as in a YAML file; ``preset`` names one to start from.

        Raises:
            UserError: an unknown key or preset (the nearest right one is named) or a value of the wrong type.
        """
        values = dict(values)
        preset = values.pop("preset", None)
        base = {} if preset is None else dict(_preset(preset))
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                raise UserError(f"unknown key transformer.{key}" + (f": did you mean {near[0]}?" if near else ""))
            base[key] = _checked(key, value, str(known[key].type))
        return cls(**base)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> TransformerConfig:
        """The preset ``name`` with single fields replaced."""
        return cls.from_dict({"preset": name, **overrides})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TransformerConfig:
        """The shape of the model in a Hugging Face directory or GGUF file. Raises as `Transformer.from_pretrained`."""
        from lit_llm.models.gguf import gguf_config
        from lit_llm.models.huggingface import config_from_hf, read_json

        found = locate(path)
        if found.suffix == ".gguf":
            return gguf_config(found)
        return config_from_hf(read_json(found / "config.json"), str(found / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, resolved."""
        return dataclasses.asdict(self)


def _checked(key: str, value: Any, annotation: str) -> Any:
    """``value`` if it has the annotated type, with the harmless widenings YAML needs (1 -> 1.0, "1e4" -> 10000.0)."""
    if value is None and "None" in annotation:
        return None
    if annotation.startswith("Literal"):
        choices = [c.strip("\"'") for c in annotation[len("Literal[") : -1].split(", ")]
        if value not in choices:
            raise UserError(f"transformer.{key} is one of {', '.join(choices)}; got {value!r}")
        return value
    if annotation.startswith("list"):
        if isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
            return list(value)
        raise UserError(f"transformer.{key} must be a list of whole numbers, got {value!r}")
    wanted = {"int": int, "float": float, "bool": bool}[annotation.split(" ")[0]]
    if wanted is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is wanted:
        return value
    raise UserError(f"transformer.{key} must be a {wanted.__name__}, got {value!r}")


# Shapes by name. The published ones are from their config.json; the "nano" ones are ours for small machines.
_NANOCHAT: dict[str, Any] = {
    "mlp": "relu2",
    "qk_norm": "after_rope",
    "norm_weight": False,
    "embedding_norm": True,
    "logit_softcap": 15.0,
}
_LLAMA3: dict[str, Any] = {"vocab_size": 128256, "norm_eps": 1e-5, "rope_theta": 500000.0, "max_seq_len": 8192}
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
        **_NANOCHAT, "vocab_size": 4096, "hidden_size": 256, "num_layers": 4, "num_heads": 4, "max_seq_len": 512,
    },
    "autoresearch-50m": {
        **_NANOCHAT, "vocab_size": 8192, "hidden_size": 512, "num_layers": 8, "num_heads": 4, "max_seq_len": 2048,
    },
    "nanochat-d20": {
        **_NANOCHAT, "vocab_size": 65536, "hidden_size": 1280, "num_layers": 20, "num_heads": 10, "max_seq_len": 2048,
    },
    "smollm2-135m": {
        "vocab_size": 49152, "hidden_size": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
        "intermediate_size": 1536, "norm_eps": 1e-5, "rope_theta": 100000.0, "max_seq_len": 8192,
        "tie_embeddings": True,
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
}  # fmt: skip


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1, cutoff=0.4)
        hint = f": did you mean {near[0]}?" if near else ""
        raise UserError(f"no model preset named {name!r}{hint} Known: {', '.join(PRESETS)}")
    return PRESETS[name]
