"""Scores of requests: their log-likelihoods, and whether greedy decoding gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TextIO

import numpy as np
import torch

from lit_llm.evaluate.measuring import measuring
from lit_llm.evaluate.scoring.forward import ForwardPasses, TokenScores
from lit_llm.evaluate.scoring.kept import KeptParts
from lit_llm.evaluate.scoring.plain import LogitsModel, PlainPasses
from lit_llm.evaluate.scoring.sharing import progress, share
from lit_llm.evaluate.scoring.trees import Request, plan
from lit_llm.models.parallel.sharded import is_divided
from lit_llm.models.transformer import Transformer


class Score(NamedTuple):
    """Log-likelihood of a continuation in nats, and whether greedy decoding gives it."""

    logprob: float
    greedy: bool


def score(
    model: Transformer | LogitsModel,
    requests: Sequence[Request],
    capacity: int,
    bar_stream: TextIO | None = None,
    kept: KeptParts | None = None,
) -> list[Score]:
    """Score each request. All ranks call it together and get all scores.

    Args:
        model: on any device.
        requests: what to score, the same on every rank.
        capacity: most tokens in a forward pass, the same on every rank.
        bar_stream: where the first rank shows a progress bar. None: nowhere.
        kept: takes finished forward passes, and has those of an earlier run. With sharded weights
            it is not used, because ranks that find different passes would wait for each other.
    """
    passes: ForwardPasses | PlainPasses
    if isinstance(model, LogitsModel):
        passes = PlainPasses(model, requests, capacity)
    else:
        # Ranks with a part of the weights make the same number of forward passes, so none may fill
        # a cache for itself.
        found = plan(requests, capacity, with_prefixes=_takes_prefixes(model))
        passes = ForwardPasses(model, found, capacity)
        if is_divided(model):
            _gather_ends(model)
    order = passes.order()
    sizes = [passes.sizes[part] for part in order]
    bar = progress(bar_stream, sum(sizes), "scoring", "token")
    logprobs, greedy = [0.0] * len(requests), [True] * len(requests)

    def run(part: int) -> TokenScores:
        if kept is None or is_divided(model):
            return passes.run(part)
        key = passes.key(part)
        if (there := kept.get(key)) is not None:
            return TokenScores(passes.owners(part), np.array(there[0]), np.array(there[1], bool))
        scores = passes.run(part)
        kept.put(key, [scores.logprobs.tolist(), scores.greedy.tolist()])
        return scores

    for scores in share(order, run, sizes, bar):
        for owner, logprob, hit in zip(*(values.tolist() for values in scores), strict=True):
            logprobs[owner] += logprob
            greedy[owner] &= hit
    return [Score(logprob, hit) for logprob, hit in zip(logprobs, greedy, strict=True)]


def _gather_ends(model: Transformer) -> None:
    """Gather the weights outside the blocks; all ranks call it together.

    FSDP2 gathers them in ``forward`` only, and frees them in the next backward pass.
    """
    device = next(model.parameters()).device
    with measuring(model):
        model(torch.zeros(1, 1, dtype=torch.long, device=device), last_only=True)


def _takes_prefixes(model: Transformer) -> bool:
    # The cache does not hold the token before the first token of each branch.
    return not model.config.reads_token_before and not is_divided(model)
