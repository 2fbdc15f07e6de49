"""The parts of a model that learn faster, as fields of TransformerConfig: for a model of our own
shape, and for the ablation."""

from __future__ import annotations

from typing import Any

NONE: dict[str, Any] = {
    "value_embeddings": None, "value_gate_channels": None, "smear_channels": None,
    "bigram_rows": None, "exclusive_attention": False,
    "embedding_mix": False, "backout_layer": None,
}  # fmt: skip
"""A model without any of them, whatever its preset says."""


def parts_of(num_layers: int) -> dict[str, dict[str, Any]]:
    """Each part's fields in a model of ``num_layers`` layers."""
    return {
        "value embeddings": {"value_embeddings": list(range(num_layers))},
        "smear": {"smear_channels": 24},
        "bigrams": {"bigram_rows": 65536},
        "exclusive attention": {"exclusive_attention": True},
        "embedding mix": {"embedding_mix": True},
        "back-out": {"backout_layer": (num_layers - 1) // 2},
    }


def whole(num_layers: int, without: str | None = None) -> dict[str, Any]:
    """The fields of all parts, except the part ``without``."""
    fields = dict(NONE)
    for name, part in parts_of(num_layers).items():
        fields |= {} if name == without else part
    return fields
