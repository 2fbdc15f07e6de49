"""Choose the next token from the logits: temperature, top-k, top-p, min-p and penalties.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_llm.settings.ranges import SAMPLING, check_ranges

_GREEDY_BELOW = 1e-5
"""Below this temperature the most likely token is taken, as in vLLM.

Logits divided by a smaller temperature could overflow.
"""


@dataclass(frozen=True)
class Sampling:
    """Settings of the draw of the next token; they apply in the listed order, as in transformers.

    Raises:
        UserError: a setting is out of range.
    """

    repetition_penalty: float = 1.0
    """Makes tokens of the prompt and the answer less likely (above 1) or more likely (below 1).

    Positive logits are divided by it, negative logits multiplied (arXiv:1909.05858). 1 changes
    nothing.
    """
    temperature: float = 1.0
    """Divides the logits. Below 1e-5 the most likely token is always taken."""
    top_k: int | None = None
    """Keeps the k most likely tokens."""
    top_p: float | None = None
    """Keeps the smallest set of most likely tokens whose probabilities reach p.

    Also called nucleus sampling (arXiv:1904.09751).
    """
    min_p: float | None = None
    """Keeps tokens at least min_p times as likely as the most likely one (arXiv:2407.01082)."""

    def __post_init__(self) -> None:
        check_ranges(vars(self), SAMPLING)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _GREEDY_BELOW


GREEDY = Sampling(temperature=0.0)


class Sampler:
    """Draws the next token for each row of a batch, with its own random stream.

    Args:
        sampling: the settings.
        seed: of the random stream.
        prompts: the prompts of the rows; the repetition penalty counts their tokens.
        vocab_size, device: of the logits.
    """

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device,
    ):
        self._sampling = sampling
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._seen_BV: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen_BV = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                self._seen_BV[row, torch.tensor(prompt)] = True
            self._seen_BV = self._seen_BV.to(device)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """One token per row of ``logits_BV`` (B, V): int64 (B,)."""
        if self._seen_BV is None:
            return draw(logits_BV, self._sampling, self._generator)
        logits_BV = penalize(logits_BV, self._seen_BV, self._sampling.repetition_penalty)
        token_B = draw(logits_BV, self._sampling, self._generator)
        self._seen_BV.scatter_(1, token_B[:, None], True)
        return token_B


def penalize(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Apply a repetition penalty to the logits of tokens in ``seen_BV`` (bool); returns float32."""
    logits_BV = logits_BV.float()
    moved_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, moved_BV, logits_BV)


def draw(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token per row of ``logits_BV`` (B, V), penalties included: int64 (B,)."""
    if sampling.is_greedy:
        return logits_BV.argmax(-1)
    return torch.multinomial(probabilities(logits_BV, sampling), 1, generator=generator).squeeze(-1)


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities that `draw` draws from: float32 (B, V), each row sums to 1.

    ``sampling.temperature`` must not be 0.
    """
    logits_BV = logits_BV.float() / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[-1]:
        kth = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        sorted_logits, order = logits_BV.sort(dim=-1, descending=True)
        sorted_probabilities = sorted_logits.softmax(-1)
        # Drop a token if the tokens before it already reach p. The first token always stays.
        drop = (sorted_probabilities.cumsum(-1) - sorted_probabilities) >= sampling.top_p
        logits_BV = logits_BV.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    probabilities_BV = logits_BV.softmax(-1)
    if sampling.min_p:
        least = sampling.min_p * probabilities_BV.amax(-1, keepdim=True)
        probabilities_BV = probabilities_BV.masked_fill(probabilities_BV < least, 0.0)
        probabilities_BV = probabilities_BV / probabilities_BV.sum(-1, keepdim=True)
    return probabilities_BV
