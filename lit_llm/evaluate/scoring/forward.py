"""Compute the scores of a plan's rows and prefixes on a Transformer.

Shapes: N scored positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_llm.evaluate.measuring import measuring
from lit_llm.evaluate.scoring.kept import digest
from lit_llm.evaluate.scoring.prefix_view import PrefixView
from lit_llm.evaluate.scoring.trees import Plan, Targets
from lit_llm.models.attention import KVCache
from lit_llm.models.forest import Forest
from lit_llm.models.kernels.limits import chunk_bytes
from lit_llm.models.transformer import Block, Transformer


class TokenScores(NamedTuple):
    """Scores of some targets, in their order.

    Attributes:
        owners: number of the request, int64 (n,).
        logprobs: log-probability in nats, float64 (n,).
        greedy: whether the token is the most likely one, bool (n,).
    """

    owners: np.ndarray
    logprobs: np.ndarray
    greedy: np.ndarray


class ForwardPasses:
    """Runs the parts of a plan: its prefixes, then its rows.

    The cache of the prefix used last is kept. Parts may be left out, so a rank computes its share
    alone; it then fills the caches that its rows need.
    """

    def __init__(self, model: Transformer, plan: Plan, capacity: int):
        self._model, self._plan, self._capacity = model, plan, capacity
        self._cached: int | None = None
        self._cache: KVCache | None = None

    @property
    def sizes(self) -> list[int]:
        """Tokens of each part."""
        return [*(len(p.ids) for p in self._plan.prefixes), *map(len, self._plan.rows)]

    def order(self) -> list[int]:
        """All parts, each prefix before its rows."""
        first = len(self._plan.prefixes)
        rows: dict[int | None, list[int]] = {}
        for number, row in enumerate(self._plan.rows):
            rows.setdefault(row.prefix, []).append(first + number)
        order = rows.get(None, [])
        for prefix in range(first):
            order += [prefix, *rows.get(prefix, [])]
        return order

    def key(self, part: int) -> str:
        """A digest of all that the scores of a part depend on, beside the model."""
        prefixes = self._plan.prefixes
        if part < len(prefixes):
            prefix = prefixes[part]
            return digest(self._capacity, prefix.ids, *vars(prefix.targets).values())
        row = self._plan.rows[part - len(prefixes)]
        before = None if row.prefix is None else prefixes[row.prefix].ids
        return digest(
            self._capacity, before, row.ids, row.until, *vars(row.targets).values()
        )  # fmt: skip

    def owners(self, part: int) -> np.ndarray:
        """The requests that the scores of a part belong to."""
        prefixes = self._plan.prefixes
        holder = prefixes[part] if part < len(prefixes) else self._plan.rows[part - len(prefixes)]
        return holder.targets.owners

    def run(self, part: int) -> TokenScores:
        """Compute a part."""
        with measuring(self._model):
            if part < len(self._plan.prefixes):
                return self._fill(part)
            row = self._plan.rows[part - len(self._plan.prefixes)]
            ids, until, position = map(self._tensor, (row.ids, row.until, row.position))
            if row.prefix is None:
                forest = Forest(until[None], position[None])
                x_1TC = self._model.hidden_states(ids[None], forest=forest)
            else:
                if self._cached != row.prefix:
                    self._fill(row.prefix)
                assert self._cache is not None
                view = PrefixView(self._cache, until, position)
                x_1TC = self._model.hidden_states(ids[None], cache=view)
            return self._scores(x_1TC[0], row.targets)

    def _fill(self, number: int) -> TokenScores:
        """Compute a prefix in pieces of at most the capacity, and keep its keys and values."""
        prefix = self._plan.prefixes[number]
        self._cache = self._cached = None  # free the memory before more is taken
        weight, block = self._model.embed.weight, self._model.layers[0]
        assert isinstance(block, Block)
        dtype = weight.dtype
        if torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
        cache = KVCache(
            self._model.config, 1, len(prefix.ids), weight.device, dtype,
            block.attention.num_kv_heads,
        )  # fmt: skip
        found = [
            self._model.hidden_states(self._tensor(ids)[None], cache=cache)[0]
            for ids in np.split(prefix.ids, range(self._capacity, len(prefix.ids), self._capacity))
        ]
        self._cached, self._cache = number, cache
        return self._scores(torch.cat(found), prefix.targets)

    def _scores(self, x_TC: Tensor, targets: Targets) -> TokenScores:
        model = self._model
        return score_targets(x_TC, targets, model.logits, model.config.vocab_size)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._model.embed.weight.device)


def score_targets(
    x_TC: Tensor, targets: Targets, head: Callable[[Tensor], Tensor], vocab_size: int
) -> TokenScores:
    """Score targets from the input of the head at their places.

    Each place passes through the head once, and the logits of all places are never in memory at
    once.

    Args:
        x_TC: the input of the head at each place of the row.
        targets: what to score.
        head: (n, C) -> logits (n, V), which may be overwritten.
        vocab_size: V.
    """
    if not len(targets.places):
        return TokenScores(targets.owners, np.empty(0), np.empty(0, bool))
    places, at = np.unique(targets.places, return_inverse=True)
    # Targets in the order of their places: each chunk of places then has a run of them.
    order = np.argsort(at, kind="stable")
    at = at[order]
    device = x_TC.device
    x_NC = x_TC[torch.from_numpy(places).to(device)]
    labels = torch.from_numpy(targets.labels[order]).to(device)
    size = max(1, chunk_bytes(device.type) // (4 * vocab_size))
    logprobs, greedy = np.empty(len(order)), np.empty(len(order), bool)
    for first in range(0, len(places), size):
        begin, end = np.searchsorted(at, (first, first + size))
        rows = torch.from_numpy(at[begin:end] - first).to(device)
        logits_nV = head(x_NC[first : first + size]).float()
        one, hit = _scored(logits_nV, rows, labels[begin:end])
        logprobs[order[begin:end]] = one.cpu().numpy()
        greedy[order[begin:end]] = hit.cpu().numpy()
    return TokenScores(targets.owners, logprobs, greedy)


def _scored(logits_nV: Tensor, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label in its row of ``logits_nV``, and whether it is the argmax."""
    on_cpu = logits_nV.device.type == "cpu"
    # torch's argmax takes 9 times as long as numpy's on a CPU.
    best_n = torch.from_numpy(logits_nV.numpy().argmax(-1)) if on_cpu else logits_nV.argmax(-1)
    largest_n = logits_nV.gather(1, best_n[:, None])[:, 0]
    chosen = logits_nV[rows, labels]
    # softmax is one pass over the logits, logsumexp takes several. The largest softmax value is
    # exp(largest) / sum(exp(logits)).
    out = logits_nV if on_cpu else None
    log_sum_n = -torch.softmax(logits_nV, -1, out=out).amax(-1).log()
    return chosen - largest_n[rows] - log_sum_n[rows], best_n[rows] == labels
