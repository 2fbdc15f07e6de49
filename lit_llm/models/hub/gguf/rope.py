"""RoPE scaling in GGUF files: keys for linear and yarn, a tensor of factors for llama3."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.rope import inverse_frequencies, llama3_frequencies

_KIND, _FACTOR, _TRAINED = (
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
)
# YaRN's default values. llama.cpp computes no others for the architectures that are written here.
_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_BETAS = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
# The values of every published Llama 3. A file holds the factors that result from these values, not
# the values.
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192


def read_scaling(
    config: TransformerConfig, given: dict[str, Any], factors: Tensor | None
) -> dict[str, Any] | None:
    """Return ``rope_scaling`` of a file.

    Args:
        config: of the file's model, so far without scaling.
        given: the file's keys without the architecture's name; used keys are removed.
        factors: the file's rope_freqs.weight, float32 (rotary_size / 2,), or None.

    Raises:
        UserError: the scaling cannot be computed exactly.
    """
    kind = given.pop(_KIND, "none")
    factor, trained = given.pop(_FACTOR, None), given.pop(_TRAINED, config.max_seq_len)
    betas = {ours: given.pop(key) for ours, key in _BETAS.items() if key in given}
    if factors is not None:
        if kind != "none":
            raise UserError(
                f"RoPE scaling of type {kind!r} together with rope_freqs.weight is not supported"
            )
        return _read_factors(config, factors, trained)
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or factor is None:
        raise UserError(
            f"RoPE scaling of type {kind!r} with factor {factor} is not supported; linear and "
            "yarn are"
        )
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": trained,
        **betas,
    }


def _read_factors(
    config: TransformerConfig, factors: Tensor, trained: int
) -> dict[str, Any] | None:
    if factors.shape != (config.rotary_size // 2,):
        raise UserError(
            f"tensor rope_freqs.weight has shape {tuple(factors.shape)}, not "
            f"{(config.rotary_size // 2,)}"
        )
    largest = float(factors.max())
    if torch.equal(factors, torch.ones_like(factors)):
        return None
    for context in dict.fromkeys((trained, _LLAMA3_CONTEXT)):
        scaling = {
            **_LLAMA3,
            "factor": round(largest, 4),
            "original_max_position_embeddings": context,
        }
        if torch.allclose(
            _factors(dataclasses.replace(config, rope_scaling=scaling)), factors, rtol=1e-5
        ):
            return scaling
    raise UserError(
        "tensor rope_freqs.weight does not hold the factors of Llama 3's RoPE scaling, nor all ones"
    )


def _factors(config: TransformerConfig) -> Tensor:
    """Return the divisor of each frequency: float32 (rotary_size / 2,)."""
    assert config.rope_scaling is not None
    frequencies, _ = llama3_frequencies(
        config, config.rope_scaling, torch.zeros(1, dtype=torch.int64)
    )
    return inverse_frequencies(config.rotary_size, config.rope_theta) / frequencies


def without_neutral_values(scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return ``scaling`` without None and without YaRN's default values."""
    if scaling is None:
        return None
    kept = {key: value for key, value in scaling.items() if value is not None}
    if kept["rope_type"] != "yarn":
        return kept
    if not (kept.get("mscale") and kept.get("mscale_all_dim")):  # only both together are used
        kept.pop("mscale", None)
        kept.pop("mscale_all_dim", None)
    sharpened = kept.get("attention_factor")
    usual = 1.0 if kept["factor"] <= 1 else 0.1 * math.log(kept["factor"]) + 1.0
    if sharpened is not None and math.isclose(sharpened, usual, rel_tol=1e-6):
        # If attention_factor is given, mscale is not used either.
        kept = {
            key: kept[key] for key in kept.keys() - {"attention_factor", "mscale", "mscale_all_dim"}
        }
    return {key: value for key, value in kept.items() if _YARN.get(key) != value}


def write_scaling(config: TransformerConfig) -> tuple[dict[str, Any], Tensor | None]:
    """Return the keys and rope_freqs.weight (or None) that express ``config.rope_scaling``.

    Raises:
        UserError: GGUF cannot express the scaling.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return {}, None
    kind = scaling["rope_type"]
    if kind == "linear":
        return {_KIND: "linear", _FACTOR: float(scaling["factor"])}, None
    trained = scaling.get("original_max_position_embeddings")
    if kind == "llama3":
        return {_TRAINED: trained}, _factors(config)
    if kind == "yarn":
        return {_KIND: "yarn", _FACTOR: float(scaling["factor"]), _TRAINED: trained}, None
    raise UserError(f"RoPE scaling of type {kind!r}")
