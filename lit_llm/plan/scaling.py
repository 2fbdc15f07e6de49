"""Scaling law: the best split of a FLOP budget between parameters and tokens.

The loss law is L(N, D) = E + A / N^alpha + B / D^beta (arXiv:2203.15556, approach 3), with the
constants of Epoch's refit (arXiv:2404.10102), which agrees with the paper's other two approaches.
"""

from __future__ import annotations

import math

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658


def loss(params: float, tokens: float) -> float:
    """Expected loss in nats per token, on the text and tokenizer of the paper.

    Use it to compare splits, not corpora.
    """
    return E + A / params**ALPHA + B / tokens**BETA


def optimal_params(tokens: float) -> float:
    """Compute-optimal parameters for ``tokens``: both terms fall equally fast with FLOPs."""
    return (ALPHA * A / (BETA * B) * tokens**BETA) ** (1 / ALPHA)


def optimal_tokens(params: float) -> float:
    """Compute-optimal tokens for ``params``, the inverse of `optimal_params`."""
    return (BETA * B / (ALPHA * A) * params**ALPHA) ** (1 / BETA)


def inference_aware(params: float, tokens: float, inference_tokens: float) -> tuple[float, float]:
    """Parameters and tokens that reach a given loss with the fewest FLOPs over training and use.

    The loss is that of (``params``, ``tokens``). Training costs 6 N D, use costs 2 N per token
    (arXiv:2401.00448, equation 3). More use gives a smaller model and a longer training.
    """
    wanted = loss(params, tokens)

    def total(n: float) -> float:
        return 6 * n * _tokens_for(wanted, n) + 2 * n * inference_tokens

    low, high = math.log(_least_params(wanted) * 1.0001), math.log(params * 10)
    for _ in range(200):  # the total is convex in log N
        third = (high - low) / 3
        if total(math.exp(low + third)) < total(math.exp(high - third)):
            high -= third
        else:
            low += third
    best = math.exp((low + high) / 2)
    return best, _tokens_for(wanted, best)


def _least_params(wanted: float) -> float:
    """Parameters at which the loss needs infinitely many tokens."""
    return (A / (wanted - E)) ** (1 / ALPHA)


def _tokens_for(wanted: float, params: float) -> float:
    return (B / (wanted - E - A / params**ALPHA)) ** (1 / BETA)


def usual_batch_tokens(flops: float) -> float:
    """Typical tokens per optimizer step for a compute budget.

    DeepSeek LLM's fit (arXiv:2401.02954, equation 1), limited to the 16M tokens of Llama 3's 405B
    model (arXiv:2407.21783).
    """
    return min(0.2920 * flops**0.3271, 16 * 2**20)
