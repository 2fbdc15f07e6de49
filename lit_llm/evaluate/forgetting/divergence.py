"""Kullback-Leibler divergence per token from a base to the model that it became.

The base's distributions are measured once, at the start of a run, because no copy of it is held
when all weights are trained. Of each distribution the likeliest tokens are kept, and all others
count as one. That lowers the divergence a little: it never grows when outcomes are merged (the log
sum inequality; Cover and Thomas, Elements of Information Theory, 2nd edition, theorem 2.7.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_llm.evaluate.measuring import measuring
from lit_llm.models.transformer import Transformer

Row = tuple[list[int], list[int]]
"""A prompt and an answer, as token ids."""
Likeliest = tuple[Tensor, Tensor]
"""Token ids int32 (answer, k) and their log-probabilities float32 (answer, k)."""

KEPT = 256
"""Number of tokens that are kept of a distribution, k."""
_BATCH = 8  # rows of a forward pass


def likeliest(model: Transformer, rows: Sequence[Row]) -> list[Likeliest]:
    """The likeliest tokens at every place of each row's answer, after its context."""
    kept = []
    for logs_NV in _log_probabilities(model, rows):
        values, ids = logs_NV.topk(min(KEPT, logs_NV.shape[-1]))
        kept.append((ids.int(), values.float()))
    return kept


def divergence(
    model: Transformer, rows: Sequence[Row], base: Sequence[Likeliest]
) -> tuple[float, int]:
    """Mean KL(base || model) in nats per token of the answers, and the number of these tokens.

    Args:
        model: the model now.
        rows: those for which ``base`` was measured.
        base: `likeliest` of the base.
    """
    total, tokens = 0.0, 0
    for logs_NV, (ids, values) in zip(_log_probabilities(model, rows), base, strict=True):
        before_NK, after_NK = values.double(), logs_NV.gather(-1, ids.long())
        total += float((before_NK.exp() * (before_NK - after_NK)).sum())
        if ids.shape[-1] < logs_NV.shape[-1]:
            rest, rest_now = (_rest(part) for part in (before_NK, after_NK))
            total += float((rest * (rest / rest_now).log()).sum())
        tokens += len(ids)
    return (max(0.0, total / tokens) if tokens else 0.0), tokens


def _rest(logs_NK: Tensor) -> Tensor:
    """Probability of all other tokens; never 0, which rounding could make it."""
    return (1 - logs_NK.exp().sum(-1)).clamp(min=1e-9)


def _log_probabilities(model: Transformer, rows: Sequence[Row]) -> Iterator[Tensor]:
    """Yield float64 (answer, V) on the CPU for each row: its next-token log-probabilities."""
    device = model.embed.weight.device
    for begin in range(0, len(rows), _BATCH):
        some = rows[begin : begin + _BATCH]
        # Padding is on the right, so no causal position attends to it.
        ids_BT = torch.zeros(len(some), max(len(p) + len(a) for p, a in some), dtype=torch.long)
        for row, (prompt, answer) in enumerate(some):
            ids_BT[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        with measuring(model):
            x_BTC = model.hidden_states(ids_BT.to(device))
            found = [
                model.logits(x_BTC[row, len(prompt) - 1 :][: len(answer)]).float().cpu()
                for row, (prompt, answer) in enumerate(some)
            ]
        yield from (logits_NV.double().log_softmax(-1) for logits_NV in found)
