"""Choose the next token of several answers at once, each with settings of its own.

Every operation works on each row by itself, so a row's result does not depend on the others.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_llm.models.engine.requests import GeneratedToken, SamplingSettings

BLOCK = 256
"""Tokens of a block of the vocabulary in a draw."""
CANDIDATES = 1024
"""Tokens that top-k, top-p and min-p look at first."""
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
    def is_filtered(self) -> bool:
        """Whether top-k, top-p or min-p may leave tokens out."""
        s = self.settings
        return s.top_k is not None or s.top_p not in (None, 1) or bool(s.min_p)


def choose(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[GeneratedToken | None]:
    """Return the next token of each row of ``logits_RV``, float32 (R, V), which may be changed.

    Penalties and biases come first, then a grammar's mask, the temperature, top-k, top-p and min-p.
    None stands for a row in which no token can be chosen: all are excluded, or a logit is NaN.
    """
    logprobs = _logprobs(logits_RV, rows)
    _penalize(logits_RV, rows)
    _mask(logits_RV, rows)
    possible_R = logits_RV.amax(-1).isfinite()
    if not possible_R.all():
        logits_RV[~possible_R] = 0.0
    chosen = [0] * len(rows)
    for greedy in (True, False):
        some = [i for i, row in enumerate(rows) if row.settings.is_greedy == greedy]
        if some:
            values_RV = logits_RV if len(some) == len(rows) else logits_RV[some]
            best = _best(values_RV) if greedy else _draw(values_RV, [rows[i] for i in some])
            for i, token in zip(some, best, strict=True):
                chosen[i] = token
    found: list[GeneratedToken | None] = []
    for token, report, possible in zip(chosen, logprobs, possible_R.tolist(), strict=True):
        reported = GeneratedToken(token) if report is None else report(token)
        found.append(reported if possible else None)
    return found


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


def _best(logits_RV: Tensor) -> list[int]:
    """The most likely token of each row; of equals the one with the smallest id."""
    if logits_RV.device.type == "cpu":
        best: list[int] = logits_RV.numpy().argmax(-1).tolist()  # torch's takes 9 times as long
        return best
    return logits_RV.argmax(-1).tolist()


def _draw(logits_RV: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw a token for each row by its uniform number."""
    temperatures = [row.settings.temperature for row in rows]
    logits_RV /= logits_RV.new_tensor(temperatures)[:, None]
    filtered = [i for i, row in enumerate(rows) if row.is_filtered]
    if filtered:
        logits_RV[filtered] = _filter(logits_RV[filtered], [rows[i].settings for i in filtered])
    probabilities_RV = logits_RV.softmax(-1)
    # First a block of the vocabulary, then a token in it: one long running sum takes longer.
    V = probabilities_RV.shape[1]
    blocks_RNb = F.pad(probabilities_RV, (0, -V % BLOCK)).unflatten(1, (-1, BLOCK))
    uniform_R1 = torch.tensor([[row.uniform] for row in rows], dtype=torch.float64)
    uniform_R1 = uniform_R1.to(logits_RV.device)
    block_R1, inside_R1 = _pick(blocks_RNb.sum(-1), uniform_R1)
    block_Rb = blocks_RNb.take_along_dim(block_R1[..., None], 1).squeeze(1)
    token_R1, _ = _pick(block_Rb, inside_R1)
    tokens: list[int] = (block_R1 * BLOCK + token_R1).squeeze(1).tolist()
    return tokens


def _pick(weights_RN: Tensor, uniform_R1: Tensor) -> tuple[Tensor, Tensor]:
    """Choose an index by a number in [0, 1), in proportion to the weights.

    Returns the index (R, 1), and where in the index's share the number lies: again in [0, 1).
    """
    sums_RN = weights_RN.cumsum(-1, dtype=torch.float64)
    total_R1 = sums_RN[:, -1:]
    # The first index whose sum is above the target. One of weight 0 never is: it has the same sum
    # as the index before it.
    target_R1 = (uniform_R1 * total_R1).minimum(total_R1.nextafter(torch.zeros_like(total_R1)))
    index_R1 = torch.searchsorted(sums_RN, target_R1, right=True)
    end_R1 = sums_RN.gather(1, index_R1)
    weight_R1 = weights_RN.gather(1, index_R1).double()
    inside_R1 = 1 - (end_R1 - target_R1) / weight_R1
    return index_R1, inside_R1.clamp(0, 1 - 2**-53)


def _filter(logits_RV: Tensor, settings: Sequence[SamplingSettings]) -> Tensor:
    """Set the logits of tokens that top-k, top-p or min-p leave out to -inf.

    The `CANDIDATES` most likely tokens nearly always hold all that stay. Rows for which they do not
    are sorted as a whole, which takes 40 times as long.
    """
    kept_RV, whole_R = _filter_best(logits_RV, settings, min(CANDIDATES, logits_RV.shape[1]))
    again = (~whole_R).nonzero()[:, 0].tolist()
    if again:
        some = [settings[i] for i in again]
        kept_RV[again] = _filter_best(logits_RV[again], some, logits_RV.shape[1])[0]
    return kept_RV


def _filter_best(
    logits_RV: Tensor, settings: Sequence[SamplingSettings], count: int
) -> tuple[Tensor, Tensor]:
    """Keep tokens among the ``count`` most likely ones.

    Returns the logits (R, V), and bool (R,): whether none that should stay is outside of these.
    """
    V, device = logits_RV.shape[1], logits_RV.device
    best_RN, ids_RN = logits_RV.topk(count, dim=-1)
    top_k_R1 = torch.tensor([[s.top_k or V] for s in settings], device=device)
    top_p_R1 = torch.tensor([[s.top_p or 1.0] for s in settings], device=device)
    min_p_R1 = torch.tensor([[s.min_p or 0.0] for s in settings], device=device)
    gone_RN = torch.arange(count, device=device) >= top_k_R1
    # Probabilities among the tokens that top-k keeps. Both kernels compute each row by itself.
    probabilities_RN = torch.where(
        top_k_R1 <= count,
        best_RN.masked_fill(gone_RN, -torch.inf).softmax(-1),
        logits_RV.softmax(-1).gather(1, ids_RN),
    )
    # A token goes if the tokens before it already reach p. The first one always stays.
    before_RN = probabilities_RN.cumsum(-1) - probabilities_RN
    beyond_RN = (before_RN >= top_p_R1) & (top_p_R1 < 1)
    beyond_RN[:, 0] = False
    # The ratio to the most likely token does not change when others are left out.
    gone_RN = gone_RN | beyond_RN | (probabilities_RN < min_p_R1 * probabilities_RN[:, :1])
    whole_R = gone_RN[:, -1] | (top_k_R1[:, 0] <= count) | (count == V)
    kept_RV = torch.full_like(logits_RV, -torch.inf)
    return kept_RV.scatter_(1, ids_RN, best_RN.masked_fill(gone_RN, -torch.inf)), whole_R
