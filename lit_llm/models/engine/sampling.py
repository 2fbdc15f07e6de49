"""Choose the next token of several answers at once, each with settings of its own.

Every operation works on each row by itself, so a row's result does not depend on the others.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_llm.models.engine.requests import GeneratedToken, SamplingSettings
from lit_llm.models.generation.sampling import GREEDY_BELOW

MOST_LOGPROBS = 20
"""Largest number of alternatives that a token is reported with, as in OpenAI's API."""


@dataclass
class SamplingRow:
    """What the choice of one token depends on, beside the logits.

    Attributes:
        uniform: number in [0, 1) that the token is drawn with.
        prompt: tokens of the prompt, each once; the repetition penalty counts them.
        answer: how often each token of the answer so far occurs in it.
        mask: int32 (ceil(V / 32),), bits of the tokens that a grammar allows. None: all.
    """

    settings: SamplingSettings
    uniform: float
    prompt: frozenset[int] = frozenset()
    answer: Counter[int] = field(default_factory=Counter)
    top_logprobs: int | None = None
    mask: Tensor | None = None

    @property
    def is_greedy(self) -> bool:
        return self.settings.temperature < GREEDY_BELOW

    @property
    def is_filtered(self) -> bool:
        """Whether top-k, top-p or min-p leave tokens out."""
        s = self.settings
        return s.top_k > 0 or s.top_p < 1 or s.min_p > 0


def choose(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[GeneratedToken]:
    """Return the next token of each row of ``logits_RV``, float32 (R, V), which may be changed.

    The settings apply in the order of `SamplingSettings`, a grammar's mask before the temperature.
    """
    logprobs = _logprobs(logits_RV, rows)
    _penalize(logits_RV, rows)
    _mask(logits_RV, rows)
    tokens = logits_RV.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if not row.is_greedy]
    if drawn:
        some = [rows[i] for i in drawn]
        tokens[drawn] = _draw(logits_RV[drawn], some)
    chosen: list[int] = tokens.tolist()
    return [
        GeneratedToken(token) if report is None else report(token)
        for token, report in zip(chosen, logprobs, strict=True)
    ]


Report = Callable[[int], GeneratedToken]


def _logprobs(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[Report | None]:
    """Log-probabilities of the unmodified distribution, for the rows that ask for them."""
    reports: list[Report | None] = [None] * len(rows)
    asking = [i for i, row in enumerate(rows) if row.top_logprobs is not None]
    if not asking:
        return reports
    values_RV = logits_RV[asking].log_softmax(-1)
    # Always the same number: which of several equal values is taken may depend on it.
    best = values_RV.topk(min(MOST_LOGPROBS, values_RV.shape[1]), dim=-1)
    for place, i in enumerate(asking):
        count = rows[i].top_logprobs
        ids, values = (t[place, :count].tolist() for t in (best.indices, best.values))
        top = list(zip(ids, values, strict=True))

        def report(
            token: int, values_V: Tensor = values_RV[place], top: list[tuple[int, float]] = top
        ) -> GeneratedToken:
            return GeneratedToken(token, float(values_V[token]), top)

        reports[i] = report
    return reports


def _penalize(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Apply penalties and biases in place.

    The repetition penalty (arXiv:1909.05858) counts prompt and answer. The other two count the
    answer only, as OpenAI's API does.
    """
    for logits_V, row in zip(logits_RV, rows, strict=True):
        s = row.settings
        if s.repetition_penalty != 1:
            seen = _index(logits_V, sorted(row.prompt | row.answer.keys()))
            values = logits_V[seen]
            logits_V[seen] = torch.where(
                values < 0, values * s.repetition_penalty, values / s.repetition_penalty
            )
        if (s.presence_penalty or s.frequency_penalty) and row.answer:
            answered = sorted(row.answer)
            counts = logits_V.new_tensor([row.answer[token] for token in answered])
            logits_V[_index(logits_V, answered)] -= (
                s.presence_penalty + s.frequency_penalty * counts
            )
        if s.logit_bias:
            biased = sorted(s.logit_bias)
            values = logits_V.new_tensor([s.logit_bias[token] for token in biased])
            logits_V[_index(logits_V, biased)] += values


def _index(logits_V: Tensor, tokens: list[int]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.long, device=logits_V.device)


def _mask(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Leave only the tokens that each row's grammar allows, in place."""
    V, device = logits_RV.shape[1], logits_RV.device
    bits = torch.arange(32, dtype=torch.int32, device=device)
    for logits_V, row in zip(logits_RV, rows, strict=True):
        if row.mask is not None:
            allowed_V = ((row.mask.to(device)[:, None] >> bits) & 1).flatten()[:V].bool()
            logits_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
            logits_V[len(allowed_V) :] = -torch.inf  # rows of a padded embedding


def _draw(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Draw a token for each row by its uniform number: int64 (R,)."""
    temperatures = [row.settings.temperature for row in rows]
    logits_RV /= logits_RV.new_tensor(temperatures)[:, None]
    filtered = [i for i, row in enumerate(rows) if row.is_filtered]
    if filtered:
        logits_RV[filtered] = _filter(logits_RV[filtered], [rows[i].settings for i in filtered])
    cumulative_RV = logits_RV.softmax(-1).cumsum(-1, dtype=torch.float64)
    total_R1 = cumulative_RV[:, -1:]
    uniform_R1 = torch.tensor([[row.uniform] for row in rows], dtype=torch.float64).to(total_R1)
    # The first token whose cumulative probability is above the target. One of probability 0 never
    # is: it has the same sum as the token before it.
    target_R1 = (uniform_R1 * total_R1).minimum(total_R1.nextafter(torch.zeros_like(total_R1)))
    return torch.searchsorted(cumulative_RV, target_R1, right=True).squeeze(1)


def _filter(logits_RV: Tensor, settings: Sequence[SamplingSettings]) -> Tensor:
    """Set the logits of tokens that top-k, top-p or min-p leave out to -inf."""
    V = logits_RV.shape[1]
    ordered = logits_RV.sort(dim=-1, descending=True, stable=True)
    ranked_RV = ordered.values.clone()
    ranks = torch.arange(V, device=logits_RV.device)
    top_k_R1 = torch.tensor([[s.top_k or V] for s in settings], device=logits_RV.device)
    ranked_RV.masked_fill_(ranks >= top_k_R1, -torch.inf)
    probabilities_RV = ranked_RV.softmax(-1)
    top_p_R1 = probabilities_RV.new_tensor([[s.top_p] for s in settings])
    # A token goes if the tokens before it already reach p. The first one always stays.
    before_RV = probabilities_RV.cumsum(-1) - probabilities_RV
    left_out_RV = (before_RV >= top_p_R1) & (top_p_R1 < 1)
    left_out_RV[:, 0] = False
    ranked_RV.masked_fill_(left_out_RV, -torch.inf)
    min_p_R1 = probabilities_RV.new_tensor([[s.min_p] for s in settings])
    # The ratio to the most likely token does not change when others are left out.
    ranked_RV.masked_fill_(probabilities_RV < min_p_R1 * probabilities_RV[:, :1], -torch.inf)
    return torch.empty_like(logits_RV).scatter_(1, ordered.indices, ranked_RV)
