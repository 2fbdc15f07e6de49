"""Rows of embedding and head for added tokens, and layers that train such rows alone.

As in PEFT's ``TrainableTokensLayer`` (peft/tuners/trainable_tokens/layer.py) the trained rows take
the place of rows of the frozen weight. They are no difference to it, so that an adapter does not
depend on the values that its base has there.

Shapes: K trained rows, V vocabulary, C hidden width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.parallel.sharded import whole

if TYPE_CHECKING:
    from lit_llm.models.transformer import Transformer

ROWS = "added_rows"
"""Last part of the rows' name in a state dict."""


class TokenRows(nn.Module):
    """What `RowsEmbedding` and `RowsHead` have in common.

    Attributes:
        weight: frozen, (V, C).
        added_rows: trained rows, float32 (K, C). A tied head has those of the embedding.
        ids: the rows that they replace, in their order.
        start: these rows of the weight, as they were before training.
        merged: whether the weight is used as it is: it contains the rows, or they are left out.
    """

    weight: Any
    added_rows: nn.Parameter
    ids: tuple[int, ...]
    start: Tensor
    merged = False
    _index: Tensor | None = None  # kept, because a copy to a GPU makes the host wait

    def index(self, device: torch.device) -> Tensor:
        """Return ``ids`` as int64 (K,) on a device."""
        if self._index is None or self._index.device != device:
            self._index = torch.tensor(self.ids, device=device)
        return self._index

    def merged_weight(self) -> Tensor:
        """Return the weight with the trained rows in it, in the weight's dtype: (V, C).

        All processes of a sharded model must call it.
        """
        weight = whole(self.weight.detach())
        if self.merged:
            return weight
        rows = whole(self.added_rows.detach()).to(weight.dtype)
        return weight.index_copy(0, self.index(weight.device), rows)

    def merge(self) -> None:
        """Write the rows into the weight, in place."""
        self.weight.data, self.merged = self.merged_weight(), True

    def unmerge(self) -> None:
        """Give the weight the rows back that it had before training."""
        index, start = self.index(self.weight.device), self.start.to(self.weight)
        self.weight.data = self.weight.data.index_copy(0, index, start)
        self.merged = False

    def remove(self) -> None:
        """Turn back into a plain layer with the current weight."""
        del self.added_rows
        for name in ("ids", "start", "merged", "_index"):
            self.__dict__.pop(name, None)
        plain = nn.Embedding if isinstance(self, nn.Embedding) else nn.Linear
        self.__class__ = plain  # type: ignore[assignment]


class RowsEmbedding(TokenRows, nn.Embedding):
    """A frozen embedding of which some rows are trained: int64 (...) -> (..., C)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings, in the weight's dtype."""
        found = nn.Embedding.forward(self, input)
        if self.merged:
            return found
        same = input[..., None] == self.index(input.device)  # (..., K)
        rows = F.embedding(same.to(torch.uint8).argmax(-1), self.added_rows)
        return torch.where(same.any(-1, keepdim=True), rows.to(found.dtype), found)


class RowsHead(TokenRows, nn.Linear):
    """A frozen head of which some rows are trained: (..., C) -> (..., V)."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits."""
        logits = nn.Linear.forward(self, input)
        if self.merged:
            return logits
        rows = F.linear(input, self.added_rows.to(self.weight.dtype))
        return logits.index_copy(-1, self.index(logits.device), rows)


def add_token_rows(model: Transformer, ids: Iterable[int]) -> None:
    """Give the tokens ``ids`` rows of embedding and head, in place.

    Rows that a padded embedding already has are used. Where it has too few, it becomes as large as
    the largest id needs. Each row begins as the mean, in float32, of the rows before the smallest
    of ``ids``, which are those of the tokens that the model knows. A tied head stays tied. Value
    embeddings get rows in the same way; beside LoRA these stay as they are.
    """
    ids = sorted(ids)
    if not ids:
        return
    model.embed.weight = _with_rows(model.embed.weight, ids)
    tied = model.config.tie_embeddings
    model.head.weight = model.embed.weight if tied else _with_rows(model.head.weight, ids)
    for table in model.value_embeds.values():
        table.weight = _with_rows(cast(Tensor, table.weight), ids)
    _follow_weights(model)


@torch.no_grad()
def _with_rows(weight: Tensor, ids: list[int]) -> nn.Parameter:
    mean = weight[: ids[0]].float().mean(0).to(weight.dtype)
    rows = weight.new_empty(max(len(weight), ids[-1] + 1), weight.shape[1])
    rows[: len(weight)] = weight
    rows[len(weight) :] = mean  # ids without a token, if there are any
    rows[ids] = mean
    return nn.Parameter(rows, weight.requires_grad)


def cut_vocabulary(model: Transformer, size: int) -> None:
    """Leave the first ``size`` rows of embedding, value embeddings and head, in place."""
    for layer in (model.embed, *model.value_embeds.values(), model.head):
        weight = cast(Tensor, layer.weight)
        layer.weight = nn.Parameter(weight.detach()[:size].clone(), weight.requires_grad)
    if model.config.tie_embeddings:
        model.head.weight = model.embed.weight
    _follow_weights(model)


def _follow_weights(model: Transformer) -> None:
    size = len(model.embed.weight)
    model.embed.num_embeddings = model.head.out_features = size
    for table in model.value_embeds.values():
        table.num_embeddings = size  # type: ignore[assignment]
    model.config = dataclasses.replace(model.config, vocab_size=size)


def train_rows(layer: nn.Module, ids: Iterable[int]) -> TokenRows:
    """Turn an embedding or a head into a layer that trains the rows ``ids``, in place.

    The trained rows begin as those of the weight. Hooks and references to the layer stay valid.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    layer.__class__ = RowsEmbedding if isinstance(layer, nn.Embedding) else RowsHead
    assert isinstance(layer, TokenRows)
    layer.ids = tuple(ids)
    layer.start = weight.detach()[list(layer.ids)].clone()
    # float32, because optimizers lose small steps in half precision.
    layer.added_rows = nn.Parameter(layer.start.float().clone())
    return layer


def row_layers(model: nn.Module) -> list[TokenRows]:
    """Return the layers of ``model`` that train rows."""
    return [module for module in model.modules() if isinstance(module, TokenRows)]


def head_rows(head: Any) -> tuple[Tensor, Tensor] | None:
    """Return the trained rows of a head and their ids, for `linear_cross_entropy`; None without."""
    if not isinstance(head, RowsHead) or head.merged:
        return None
    return head.added_rows, head.index(head.weight.device)
