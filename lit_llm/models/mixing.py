"""Parts that mix embeddings into the stream: smear, embedding mix, back-out and head gates.

They add almost no products and no matrices. Each is a field of `TransformerConfig`, which names its
source.

Shapes: B batch, T positions, C hidden width, K key/value heads, G channels that a gate reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.forest import Forest


class Smear(nn.Module):
    """x + scale * sigmoid(weight @ x's first G channels) * (embedding of the token before).

    It starts as the identity: scale is 0.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.scale = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the scale to 0 and the gate's weights to small positive numbers."""
        self.weight.uniform_(0.0, 0.02)
        self.scale.zero_()

    def forward(self, x_BTC: Tensor, before_BTC: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, C). ``before_BTC`` is zero where no token is before."""
        weight, scale = self.weight.to(x_BTC.dtype), self.scale.to(x_BTC.dtype)
        # A sum for each token, not a matrix product: the bits of a product depend on the number of
        # tokens, and the engine's answers must not.
        read_BTG = x_BTC[..., : len(weight)].float() * weight.float()
        gate_BT1 = scale * torch.sigmoid(read_BTG.sum(-1, keepdim=True)).to(x_BTC.dtype)
        return x_BTC + gate_BT1 * before_BTC


def embeddings_before(
    x_BTC: Tensor, forest: Forest | None = None, real_BT: Tensor | None = None
) -> Tensor:
    """Return for each token the embedding of the token before it, (B, T, C); zeros without one.

    The first token of a row, of a document and of a tree has no token before it. Neither has a
    token after padding: ``real_BT`` is False at padding. In a tree the token before is the one
    before it on the path from the root.
    """
    if forest is None:
        before_BTC = F.pad(x_BTC[:, :-1], (0, 0, 1, 0))
        if real_BT is None:
            return before_BTC
        return before_BTC * F.pad(real_BT[:, :-1], (1, 0))[..., None]
    index_BT = forest.before()
    rows_BTC = x_BTC.gather(1, index_BT.clamp(min=0)[..., None].expand_as(x_BTC))
    return rows_BTC.masked_fill((index_BT < 0)[..., None], 0.0)


def ids_before(
    ids_BT: Tensor, forest: Forest | None = None, real_BT: Tensor | None = None
) -> Tensor:
    """Return for each token the id of the token before it, int64 (B, T); -1 without one.

    Which token is before another is as in `embeddings_before`.
    """
    if forest is None:
        before_BT = F.pad(ids_BT[:, :-1], (1, 0), value=-1)
        if real_BT is None:
            return before_BT
        return before_BT.masked_fill(~F.pad(real_BT[:, :-1], (1, 0)), -1)
    index_BT = forest.before()
    return ids_BT.gather(1, index_BT.clamp(min=0)).masked_fill(index_BT < 0, -1)


class EmbeddingMix(nn.Module):
    """stream * residual + first embedding * first: two learned numbers of a layer.

    nanochat's starting values: the residual's factor falls from 1.15 in the first layer to 1.05 in
    the last, the embedding's from 0.2 to 0.05.
    """

    def __init__(self, layer: int, num_layers: int):
        super().__init__()
        self.depth = layer / max(num_layers - 1, 1)
        self.residual = nn.Parameter(torch.empty(1))
        self.first = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set both factors to their starting values."""
        self.residual.fill_(1.15 - 0.10 * self.depth)
        self.first.fill_(0.20 - 0.15 * self.depth)

    def forward(self, x_BTC: Tensor, first_BTC: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, C)."""
        return x_BTC * self.residual.to(x_BTC.dtype) + first_BTC * self.first.to(x_BTC.dtype)


class Backout(nn.Module):
    """x - scale * (output of an earlier layer), with one learned number that starts at 0.2."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the scale to its starting value."""
        self.scale.fill_(0.2)

    def forward(self, x_BTC: Tensor, earlier_BTC: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, C)."""
        return x_BTC - earlier_BTC * self.scale.to(x_BTC.dtype)


class HeadGate(nn.Linear):
    """A factor for each value head: 3 * sigmoid(weight @ first G channels), between 0 and 3.

    It is a class of its own, so that it is never quantised, adapted or cast to 8 bits.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__(channels, num_heads, bias=False)

    def reset_parameters(self) -> None:
        """Start near 1.5: the weights are small positive numbers."""
        nn.init.uniform_(self.weight, 0.0, 0.02)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, K)."""
        return 3 * torch.sigmoid(F.linear(x_BTC[..., : self.in_features], self.weight))
