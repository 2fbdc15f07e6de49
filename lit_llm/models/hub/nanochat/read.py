"""Read the checkpoints that nanochat (https://github.com/karpathy/nanochat) writes.

``model_000050.pt`` holds the tensors and ``meta_000050.json`` beside it the shape. The formulas are
those of nanochat/gpt.py at commit 92d63d4 (July 2026).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.nanochat.tokenizer import read_tokenizer
from lit_llm.models.meta import meta_transformer
from lit_llm.models.transformer import Transformer

__all__ = ["read_config", "read_model", "read_tokenizer"]

_EPS = torch.finfo(torch.float32).eps
"""Added by ``F.rms_norm`` without an eps, for float32."""
_SHARPNESS = 1.2
"""Queries and keys are multiplied by it after their norm."""
_GATE, _SMEAR = 12, 24
"""Channels that the gates of value embeddings and smear read."""
_TILE = 128
"""Short windows are a quarter of the context, rounded up to this many tokens."""
_SHAPE = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
_IN_BLOCK = {
    "attention.q_proj": "attn.c_q",
    "attention.k_proj": "attn.c_k",
    "attention.v_proj": "attn.c_v",
    "attention.o_proj": "attn.c_proj",
    "attention.value_gate": "attn.ve_gate",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_OUTSIDE = {
    "embed.weight": "transformer.wte.weight",
    "head.weight": "lm_head.weight",
    "smear.weight": "smear_gate.weight",
    "smear.scale": "smear_lambda",
    "backout.scale": "backout_lambda",
}


def read_config(path: Path) -> TransformerConfig:
    """Return the shape in the meta JSON of the checkpoint at ``path``.

    Raises:
        UserError: the JSON is missing or broken, or lacks a key.
    """
    meta = path.with_name(path.name.replace("model_", "meta_", 1)).with_suffix(".json")
    try:
        shape = json.loads(meta.read_text(encoding="utf-8"))["model_config"]
        sequence, vocabulary, layers, heads, kv_heads, width = (shape[key] for key in _SHAPE)
        pattern = str(shape["window_pattern"]).upper()
    except FileNotFoundError:
        raise UserError(
            f"{meta}: no such file; nanochat writes it beside {path.name}, with the model's shape"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{meta}: not the meta file of a nanochat model ({error!r})") from None
    if not pattern or set(pattern) - set("SL"):
        raise UserError(f"{meta}: window_pattern={pattern!r} is not made of S and L")
    try:
        return TransformerConfig.from_dict(
            {
                "vocab_size": vocabulary, "hidden_size": width, "num_layers": layers,
                "num_heads": heads, "num_kv_heads": kv_heads, "intermediate_size": 4 * width,
                "max_seq_len": sequence, "norm_eps": _EPS, "norm_weight": False,
                "embedding_norm": True, "mlp": "relu2", "qk_norm": "after_rope",
                "rope_theta": 100_000.0,
                "attention_scale": _SHARPNESS**2 * (width // heads) ** -0.5,
                "logit_softcap": 15.0,
                "value_embeddings": [i for i in range(layers) if i % 2 == (layers - 1) % 2],
                "value_gate_channels": _GATE, "smear_channels": _SMEAR, "embedding_mix": True,
                "backout_layer": layers // 2, **_windows(pattern, layers, sequence),
            }
        )  # fmt: skip
    except (UserError, TypeError, ArithmeticError) as error:
        raise UserError(f"{meta}: {error}") from None


def _windows(pattern: str, layers: int, sequence: int) -> dict[str, Any]:
    """The pattern is repeated over the layers; the last layer always sees the whole context."""
    short = [i for i in range(layers - 1) if pattern[i % len(pattern)] == "S"]
    before = -(-(sequence // 4) // _TILE) * _TILE
    # nanochat counts the tokens before the query, we count the query too.
    return {"sliding_window": before + 1, "sliding_layers": short} if short else {}


def read_model(
    path: Path,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Transformer], None] | None = None,
    convert: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
) -> Transformer:
    """See `Transformer.from_pretrained`. Without ``dtype`` all weights are float32.

    nanochat trains its tables in bfloat16 and the rest in float32.

    Raises:
        UserError: as `read_config`; a tensor is missing, unknown or of another shape.
    """
    config = read_config(path)
    try:
        held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        held = {name.removeprefix("_orig_mod."): tensor for name, tensor in held.items()}
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, TypeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole nanochat model ({said})") from None
    model = meta_transformer(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if prepare is not None:
        prepare(model)
    loaded: dict[str, Tensor] = {}
    for ours, tensor in _tensors(path, config, held, shapes):
        value = tensor.to(dtype or torch.float32)
        loaded |= {ours: value} if convert is None else convert(ours, value)
    model.assign_weights(loaded)
    return model


def _tensors(
    path: Path, config: TransformerConfig, held: dict[str, Tensor], shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of ours from nanochat's tensors ``held``."""
    rest = dict(held)
    for ours, shape in shapes.items():
        *_, kind = parts = ours.split(".")
        if parts[0] == "layers" and parts[2] == "mix":
            theirs = "resid_lambdas" if kind == "residual" else "x0_lambdas"
        elif parts[0] == "layers":
            theirs = f"transformer.h.{parts[1]}.{_IN_BLOCK['.'.join(parts[2:4])]}.weight"
        else:
            theirs = _OUTSIDE.get(ours, ours)  # value embeddings have the same names
        if theirs not in held:
            raise UserError(
                f"{path}: tensor {theirs} is missing: written by another version of nanochat"
            )
        tensor = held[theirs]
        rest.pop(theirs, None)
        if parts[0] == "layers" and parts[2] == "mix":
            tensor = tensor[int(parts[1]) : int(parts[1]) + 1]
        elif ours == "smear.weight":
            tensor = tensor.flatten()
        elif "q_proj" in ours or "k_proj" in ours:
            tensor = _turned(tensor, config)
        elif shape[0] == config.vocab_size:
            tensor = tensor[: config.vocab_size]  # nanochat rounds the vocabulary up to 64
        if tensor.shape != shape:
            raise UserError(
                f"{path}: tensor {theirs} has shape {tuple(held[theirs].shape)}, which does not "
                "fit the meta file"
            )
        yield ours, tensor
    if rest:
        raise UserError(
            f"{path}: unknown tensors: {', '.join(sorted(rest)[:8])}: written by another version "
            "of nanochat"
        )


def _turned(tensor: Tensor, config: TransformerConfig) -> Tensor:
    """nanochat rotates pairs by -theta; with the halves of each head exchanged it is theta."""
    assert config.head_dim is not None
    halves = tensor.unflatten(0, (-1, 2, config.head_dim // 2))
    return halves.flip(1).reshape(tensor.shape)
