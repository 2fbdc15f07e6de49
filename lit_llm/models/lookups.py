"""Lookup tables beside the embedding: rows for the values of some layers, and rows for pairs.

A row costs memory traffic but no products, so these are the cheapest parameters of a model
(docs/decisions.md, "What makes a model learn faster").

Shapes: B batch, T positions, C hidden width, E width of a layer's values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_llm.models.config import TransformerConfig


class ValueEmbeddings(nn.ModuleDict):
    """One table (vocab_size, E) for each layer in the config's ``value_embeddings``.

    The tables do not belong to the blocks. They are looked up outside of compiled graphs, and a
    sharded model gathers each table only for its lookup.
    """

    def __init__(self, config: TransformerConfig):
        assert config.num_kv_heads is not None and config.head_dim is not None
        width = config.num_kv_heads * config.head_dim
        layers = config.value_embeddings or []
        super().__init__({str(i): nn.Embedding(config.vocab_size, width) for i in layers})
        self.bound = (3 / config.hidden_size) ** 0.5

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as the values of an input of unit scale do: uniform, variance 1 / hidden_size."""
        for table in self.values():
            assert isinstance(table, nn.Embedding)
            nn.init.uniform_(table.weight, -self.bound, self.bound)

    def look_up(self, layer: int, input_ids: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the rows of ``layer``'s table in ``dtype``: (B, T) -> (B, T, E); None without one.

        A process of a model cut by tensor parallelism gets the channels of its heads.
        """
        name = str(layer)
        return self[name](input_ids).to(dtype) if name in self else None


class BigramEmbedding(nn.Module):
    """scale * (row of the pair of a token and the token before it), see the config's `bigram_rows`.

    The table starts with zeros. A token without one before it gets zeros.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        assert config.bigram_rows is not None
        self.table = nn.Embedding(config.bigram_rows, config.hidden_size)
        self.scale = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the rows to 0 and the scale to 0.1, as modded-nanogpt does."""
        nn.init.zeros_(self.table.weight)
        self.scale.fill_(0.1)

    def forward(self, input_ids: Tensor, before_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, T), (B, T) -> (B, T, C) in ``dtype``; ``before_BT`` is -1 if no token is before."""
        # The hash of modded-nanogpt.
        rows_BT = (before_BT * 36313 ^ input_ids * 27191) % self.table.num_embeddings
        found_BTC = self.table(rows_BT) * self.scale
        return found_BTC.masked_fill((before_BT < 0)[..., None], 0.0).to(dtype)
