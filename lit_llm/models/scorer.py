"""Scorers: a Transformer whose head gives one number instead of logits, as reward models do.

The number is read at the last token of a text, as in transformers' classes
``...ForSequenceClassification`` with one label.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.forest import Forest
from lit_llm.models.head import LMHead
from lit_llm.models.transformer import Transformer


def become_scorer(model: Transformer) -> None:
    """Replace the head by one of zeros with a single output, in place.

    All scores are 0 at first, so the first loss does not depend on a seed.
    """
    weight = model.embed.weight
    model.config = dataclasses.replace(model.config, tie_embeddings=False)
    model.head = nn.Linear(
        model.config.hidden_size, 1, bias=False, device=weight.device, dtype=weight.dtype
    )
    nn.init.zeros_(model.head.weight)
    model.lm_head = LMHead(model.config, model.head)


def is_scorer(model: nn.Module | None) -> bool:
    """Whether the model's head gives scores."""
    return isinstance(model, Transformer) and model.head.out_features == 1


def scores(
    model: Transformer,
    input_ids: Tensor,
    rows: Tensor,
    ends: Tensor,
    document_ids: Tensor | None = None,
    forest: Forest | None = None,
) -> Tensor:
    """Scores of texts, float32 (A,).

    The head computes in float32: bfloat16 would round scores to three digits.

    Args:
        model: a scorer.
        input_ids: int64 (B, T).
        rows, ends: row and place of each text's last token, int64 (A,).
        document_ids, forest: see `Transformer.hidden_states`.
    """
    hidden = model.hidden_states(input_ids, document_ids=document_ids, forest=forest)
    with torch.autocast(input_ids.device.type, enabled=False):
        return F.linear(hidden[rows, ends].float(), model.head.weight.float())[:, 0]


@torch.no_grad()
def score_texts(model: Transformer, texts: list[list[int]]) -> Tensor:
    """Scores of whole texts of token ids, float32 (texts,), on the model's device."""
    device = model.embed.weight.device
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
    rows = torch.arange(len(texts), device=device)
    ends = torch.tensor([len(text) - 1 for text in texts], device=device)
    return scores(model, ids.to(device), rows, ends)
