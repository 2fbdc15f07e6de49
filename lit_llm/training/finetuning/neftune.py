"""NEFTune (arXiv:2310.05914): noise on the embeddings during finetuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingNoise:
    """Adds uniform noise to the output of an embedding, inside `on` only.

    The noise of a token has the bound ``alpha / sqrt(L * C)``, with L tokens in the token's own
    document and C columns. Packing and padding therefore do not change its size, as in the paper's
    code. (transformers takes the padded length of the row for L.)
    """

    def __init__(self, alpha: float, embedding: nn.Embedding):
        self.alpha = alpha
        self._lengths: Tensor | None = None  # of each token's document, (B, T)
        embedding.register_forward_hook(self._add)

    @contextmanager
    def on(self, batch: dict[str, Tensor]) -> Iterator[None]:
        """Add noise while the context is open, drawn from torch's global generator."""
        self._lengths = document_lengths(batch["input_ids"], batch.get("document_ids"))
        try:
            yield
        finally:
            self._lengths = None

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._lengths is None:
            return output
        bound = self.alpha / (self._lengths * output.shape[-1]).sqrt()
        noise = torch.rand_like(output, dtype=torch.float32) * 2 - 1
        return output + (noise * bound[..., None]).to(output.dtype)


def document_lengths(input_ids: Tensor, document_ids: Tensor | None) -> Tensor:
    """Return the number of tokens in each token's document: float32 (B, T).

    ``document_ids`` is int64 (B, T), at least -1 and below T + 1; None: every row is one document.
    """
    if document_ids is None:
        return torch.full(input_ids.shape, float(input_ids.shape[1]), device=input_ids.device)
    ids = document_ids + 1
    counts = torch.zeros(len(ids), ids.shape[1] + 2, device=ids.device)
    counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=counts.dtype))
    return counts.gather(1, ids)
