"""Build a Transformer on the meta device: shapes without weights."""

from __future__ import annotations

import torch

from lit_llm.models.config import TransformerConfig
from lit_llm.models.parallel.draws import NoDraws
from lit_llm.models.transformer import Transformer


def meta_transformer(config: TransformerConfig) -> Transformer:
    """Return a `Transformer` on the meta device; `Transformer.assign_weights` fills it."""
    with torch.device("meta"), NoDraws():
        return Transformer(config)
