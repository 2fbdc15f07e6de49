"""Scores from a model that gives logits and nothing else: padded rows, one request each."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_llm.evaluate.measuring import measuring
from lit_llm.evaluate.scoring.forward import TokenScores, score_targets
from lit_llm.evaluate.scoring.kept import digest
from lit_llm.evaluate.scoring.trees import Request, Targets


class LogitsModel(nn.Module):
    """A module with ``logits(input_ids)``, with what `HarnessLM` asks a model for.

    Args:
        module: its ``logits`` takes int64 (B, T), padded on the right, and returns (B, T, V). A
            position may depend on earlier ones only.
        max_seq_len: most positions that it takes.
    """

    def __init__(self, module: nn.Module, max_seq_len: int):
        super().__init__()
        self.module = module
        self.config = SimpleNamespace(max_seq_len=max_seq_len, eos_token_id=None)
        self.generation_config: dict[str, Any] = {}

    def logits(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V)."""
        found: Tensor = self.module.logits(input_ids)  # type: ignore[operator]
        return found


class PlainPasses:
    """The counterpart of `ForwardPasses` for a `LogitsModel`.

    Requests with the same input share a row.

    Args:
        model: the model.
        requests: what to score.
        capacity: most tokens in a batch, including padding. A longer request runs alone.
    """

    def __init__(self, model: LogitsModel, requests: Sequence[Request], capacity: int):
        self._model, self._requests = model, requests
        numbers: dict[tuple[int, ...], list[int]] = {}
        for number, request in enumerate(requests):
            numbers.setdefault(tuple(request.ids[:-1]), []).append(number)
        self._batches: list[list[tuple[tuple[int, ...], list[int]]]] = []
        # The longest first: rows of a batch then have similar lengths.
        for item in sorted(numbers.items(), key=lambda item: -len(item[0])):
            longest = len(self._batches[-1][0][0]) if self._batches else 0
            if not self._batches or (len(self._batches[-1]) + 1) * longest > capacity:
                self._batches.append([])
            self._batches[-1].append(item)

    @property
    def sizes(self) -> list[int]:
        """Tokens of each batch, without padding."""
        return [sum(len(ids) for ids, _ in batch) for batch in self._batches]

    def order(self) -> list[int]:
        """All batches."""
        return list(range(len(self._batches)))

    def key(self, part: int) -> str:
        """A digest of all that the scores of a batch depend on, beside the model."""
        targets = self._targets(part)
        rows = [ids for ids, _ in self._batches[part]]
        return digest(rows, *vars(targets).values())

    def owners(self, part: int) -> np.ndarray:
        """The requests that the scores of a batch belong to."""
        return self._targets(part).owners

    def run(self, part: int) -> TokenScores:
        """Compute a batch."""
        batch = self._batches[part]
        ids_BT = torch.zeros(len(batch), len(batch[0][0]), dtype=torch.long)
        for row, (ids, _) in zip(ids_BT, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with measuring(self._model):
            device = next(self._model.parameters()).device
            logits_NV = self._model.logits(ids_BT.to(device)).flatten(0, 1)
            return score_targets(
                logits_NV, self._targets(part), lambda logits: logits, logits_NV.shape[-1]
            )

    def _targets(self, part: int) -> Targets:
        batch = self._batches[part]
        longest = len(batch[0][0])
        places, labels, owners = [], [], []
        for row, (ids, numbers) in enumerate(batch):
            end = row * longest + len(ids)
            for number in numbers:
                scored = self._requests[number].scored
                places.append(np.arange(end - scored, end))
                labels.append(np.array(self._requests[number].ids[-scored:], np.int64))
                owners.append(np.full(scored, number))
        return Targets(*map(np.concatenate, (places, labels, owners)))
