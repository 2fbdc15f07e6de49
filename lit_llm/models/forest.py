"""Forest: rows of token trees in depth-first order, the row layout of finetuning.

A row holds trees one after another. A tree is a prefix shared by several continuations, such as a
prompt and its answers; the shared tokens are stored and computed once. Packed documents are trees
without branches.

Shapes: B batch, T positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Forest(NamedTuple):
    """Which tokens of a row see each other: query i sees key j if and only if j <= i < until[j].

    In a layer with a window a query also sees only keys with position[i] - position[j] < window.
    """

    until: Tensor
    """Row position where the subtree of each token's node ends: integers (B, T), above the token's
    own position."""
    position: Tensor
    """Distance of each token from the root of its tree: integers (B, T)."""

    @classmethod
    def of_documents(cls, document_ids: Tensor) -> Forest:
        """The forest of packed documents. A document is a run of equal ids (B, T) in a row."""
        T = document_ids.shape[1]
        index = torch.arange(T, device=document_ids.device)
        begins = torch.ones_like(document_ids, dtype=torch.bool)
        begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        start = torch.where(begins, index, 0).cummax(-1).values
        # The end of a document is the next begin after it, found from the right.
        following = torch.where(begins, index, T).roll(-1, 1)
        following[:, -1] = T
        until = following.flip(1).cummin(1).values.flip(1)
        return cls(until, index - start)

    @classmethod
    def of_rows(cls, input_ids: Tensor) -> Forest:
        """The forest in which each row of ``input_ids`` (B, T) is one document."""
        B, T = input_ids.shape
        index = torch.arange(T, device=input_ids.device).expand(B, T)
        return cls(torch.full_like(index, T), index)

    def before(self) -> Tensor:
        """Row position of the token before each token on its path from the root: int64 (B, T).

        -1 for the first token of a tree. In depth-first order it is the last earlier token whose
        distance from the root is smaller by 1.
        """
        T = self.position.shape[1]
        # Sorted by distance, then by place, that token is the last one before the key of the token
        # itself with its distance made smaller by 1.
        key = self.position.long() * T + torch.arange(T, device=self.position.device)
        known = key.sort(-1).values
        found = torch.searchsorted(known, key - T) - 1
        return torch.where(self.position > 0, known.gather(1, found.clamp(min=0)) % T, -1)

    def visible(self, window: int | None = None) -> Tensor:
        """bool (B, 1, T, T): whether query i sees key j, at [:, :, i, j]."""
        index = torch.arange(self.until.shape[1], device=self.until.device)
        queries, keys = index[:, None], index[None]
        seen = (keys <= queries) & (queries < self.until[:, None, :])
        if window is not None:
            seen = seen & (self.position[:, :, None] - self.position[:, None, :] < window)
        return seen[:, None]
