"""Convert config.json of a Hugging Face directory to TransformerConfig and back.

The conversion follows the table in `families`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lit_llm.errors import UserError
from lit_llm.models.config import RANGES, TransformerConfig
from lit_llm.models.hub.families import ACTIVATIONS, COMMON_FIELDS, FAMILIES, Family
from lit_llm.models.hub.remote_code import config_keys, not_computed


def family_of(config: TransformerConfig) -> str | None:
    """Return the Hugging Face ``model_type`` that expresses ``config`` exactly, or None.

    A type expresses ``config`` if its config.json, read back, gives ``config`` again. The config's
    own ``family`` is tried first.
    """
    names = list(FAMILIES) if config.family is None else [config.family, *FAMILIES]
    return next((name for name in names if name in FAMILIES and _expresses(name, config)), None)


def readers_of(config: TransformerConfig) -> str:
    """Name the programs that load a directory with a model of ``config``."""
    if family_of(config) is not None:
        return "transformers and vLLM"
    if missing := not_computed(config):
        return f"lit_llm alone (transformers has no such model; {', '.join(missing)})"
    return "lit_llm, and transformers with trust_remote_code=True"


def _expresses(name: str, config: TransformerConfig) -> bool:
    try:
        reread = config_from_hf(_config_as(name, config), name)
    except UserError:
        return False
    # Fields that only training uses are not part of the file. A family without keys for them must
    # not be refused.
    same: dict[str, Any] = {"family": None, "router_aux_loss": 0.0, "router_z_loss": 0.0}
    return dataclasses.replace(reread, **same) == dataclasses.replace(config, **same)


def config_from_hf(hf: dict[str, Any], origin: str) -> TransformerConfig:
    """Build a TransformerConfig from the contents of a config.json; errors name ``origin``.

    Raises:
        UserError: a model_type, RoPE scaling, activation or setting is not supported.
    """
    model_type = hf.get("model_type")
    if model_type == "lit_llm":
        if not isinstance(hf.get("transformer"), dict):
            raise UserError(f"{origin}: transformer is missing or no object")
        try:
            return TransformerConfig.from_dict(hf["transformer"])
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"{origin}: model_type {model_type!r} is not known; known are {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    hf = {**family.defaults, **hf}
    layers = hf[family.fields.get("num_layers") or "num_hidden_layers"]
    # Check the number before any list with one entry per layer is built.
    if type(layers) is not int or layers not in RANGES["num_layers"]:
        raise UserError(f"{origin}: {layers!r} layers: not a number of layers")
    for key, wanted in {**family.needs, "quantization_config": None}.items():
        if hf.get(key) is not None and hf[key] != wanted:
            raise UserError(f"{origin}: {key}={hf[key]!r} is not supported")
    values: dict[str, Any] = {**family.traits, "family": model_type}
    activation = hf.get(family.activation_key)
    if activation is not None:
        values["mlp"] = _mlp_kind(activation, values.get("mlp", TransformerConfig.mlp), origin)
    for ours, theirs in (COMMON_FIELDS | family.fields).items():
        if theirs in hf:
            values[ours] = hf[theirs]
    if isinstance(values.get("eos_token_id"), list):
        values["eos_token_id"] = next(iter(values["eos_token_id"]), None)
    try:
        values |= family.read(hf) | _read_rope(hf, family, origin)
        return TransformerConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{origin}: a value is missing or of the wrong kind ({error!r})") from None


def _mlp_kind(activation: Any, usual: str, origin: str) -> str:
    """Return lit_llm's MLP kind for ``activation``.

    The kind is gated if the family's ``usual`` kind is gated.
    """
    for kind in [usual, *ACTIVATIONS]:
        if kind.endswith("glu") == usual.endswith("glu") and activation in ACTIVATIONS[kind]:
            return kind
    raise UserError(f"{origin}: activation {activation!r} is not known in a model like this")


def _read_rope(hf: dict[str, Any], family: Family, origin: str) -> dict[str, Any]:
    """Read rope_parameters (transformers 5), or rope_theta and rope_scaling (before)."""
    if family.rope_keys is None:
        return {}
    theta_key, _ = family.rope_keys
    scaling = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    local: dict[str, Any] = {}
    if "full_attention" in scaling or "sliding_attention" in scaling:
        scaling, local = (
            dict(scaling.get("full_attention") or {}),
            dict(scaling.get("sliding_attention") or {}),
        )
    if (local.get("rope_type") or local.get("type") or "default") != "default":
        raise UserError("RoPE scaling in windowed layers is not supported")
    kinds = scaling.pop("rope_type", None), scaling.pop("type", None)
    stated_kind = kinds[0] or kinds[1]
    kind = stated_kind or "default"
    values = {
        "rope_theta": scaling.pop("rope_theta", None) or hf.get(theta_key, 10000.0),
        "rotary_fraction": _read_fraction(hf, scaling, local, family),
        "local_rope_theta": local.get("rope_theta") or hf.get("rope_local_base_freq"),
    }
    scaling = {key: value for key, value in scaling.items() if value is not None}
    # The type "default" has no settings, and transformers reads none. A scaling without a type is
    # refused, because its author meant some scaling.
    if stated_kind == "default" or not (stated_kind or scaling):
        return values
    if kind in ("llama3", "yarn"):
        # The places where transformers looks, in its order.
        trained = hf.get("original_max_position_embeddings") or scaling.get(
            "original_max_position_embeddings"
        )
        scaling["original_max_position_embeddings"] = trained or hf["max_position_embeddings"]
    else:
        # transformers does not read this key for the other types either.
        scaling.pop("original_max_position_embeddings", None)
    if kind == "yarn":
        # Keys of older files without effect: transformers reads neither.
        scaling.pop("finetuned", None)
        if scaling.get("attn_factor") == 1:
            del scaling["attn_factor"]
    if kind == "yarn" and "factor" not in scaling:
        scaling["factor"] = (
            hf["max_position_embeddings"] / scaling["original_max_position_embeddings"]
        )
    return values | {"rope_scaling": {"rope_type": kind, **scaling}}


def _read_fraction(
    hf: dict[str, Any], scaling: dict[str, Any], local: dict[str, Any], family: Family
) -> Any:
    """Return the rotated fraction of a head and remove it from ``scaling``; 1 by default.

    Raises:
        UserError: a fraction other than 1 in a family whose code in transformers does not read the
            key. Other engines read it there, so the file would mean two different models.
    """
    assert family.rope_keys is not None
    given = scaling.pop("partial_rotary_factor", None), hf.get(family.rope_keys[1])
    fractions = [fraction for fraction in given if fraction is not None]
    if not family.partial_rotary:
        for fraction in (*fractions, local.get("partial_rotary_factor")):
            if fraction not in (None, 1):
                raise UserError(
                    f"partial_rotary_factor={fraction!r} is not supported for "
                    f"{hf['model_type']}: transformers turns whole heads there, other engines "
                    "turn a part"
                )
    return fractions[0] if fractions else 1.0


def config_to_hf(config: TransformerConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the contents of a config.json for ``config``."""
    name = family_of(config)
    dtype_name = str(dtype).removeprefix("torch.")
    # transformers 4 and vLLM read torch_dtype.
    dtypes = {"dtype": dtype_name, "torch_dtype": dtype_name}
    if name is None:
        own = {} if not_computed(config) else config_keys(config)
        return {"model_type": "lit_llm", **own, **dtypes, "transformer": config.to_dict()}
    return _config_as(name, config) | dtypes


def _config_as(name: str, config: TransformerConfig) -> dict[str, Any]:
    """Return config.json of ``config`` as family ``name``, even if that loses some fields."""
    family = FAMILIES[name]
    fields = COMMON_FIELDS | family.fields
    hf = {theirs: getattr(config, ours) for ours, theirs in fields.items() if theirs is not None}
    hf |= {family.activation_key: ACTIVATIONS[config.mlp][0], "attention_dropout": 0.0}
    if family.rope_keys is not None:
        hf |= _write_rope(config, family)
    return {
        "architectures": [family.architecture],
        "model_type": name,
        **hf,
        **family.write(config),
    }


def _write_rope(config: TransformerConfig, family: Family) -> dict[str, Any]:
    """Write RoPE in both forms that `_read_rope` reads; other programs know only one of them."""
    assert family.rope_keys is not None
    theta_key, fraction_key = family.rope_keys
    parameters = {
        "rope_type": "default",
        **(config.rope_scaling or {}),
        "rope_theta": config.rope_theta,
    }
    hf = {
        theta_key: config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "rope_parameters": parameters,
    }
    # The code of other families would not read the key; `family_of` notices that the fraction is
    # lost.
    if family.partial_rotary and (config.rotary_fraction != 1.0 or fraction_key in family.defaults):
        hf[fraction_key] = parameters["partial_rotary_factor"] = config.rotary_fraction
    if "rope_local_base_freq" in family.defaults:
        local = config.local_rope_theta or config.rope_theta
        hf["rope_local_base_freq"] = local
        windowed = {"rope_type": "default", "rope_theta": local}
        hf["rope_parameters"] = {"full_attention": parameters, "sliding_attention": windowed}
    return hf
