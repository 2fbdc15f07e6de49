"""Log-probabilities of the answers in a batch, and what is measured of them.

Shapes: A answers, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_llm.data.blocks import IGNORE
from lit_llm.models.transformer import Transformer
from lit_llm.training.metrics import KeepsDtype
from lit_llm.training.pretrain import forest_of


def answer_logps(model: Transformer, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability and learnt tokens of each answer: float32 (A,) and int64 (A,).

    Args:
        model: the network.
        batch: see `AnswerRows`; "answer_ids" says to which answer a label belongs.
    """
    labels = batch["labels"]
    losses = model.token_losses(
        batch["input_ids"], labels, batch.get("document_ids"), forest_of(batch)
    )
    count = len(batch["answer_ends"])
    # Prompts and padding have no label and no answer; what they would add goes to a last slot.
    slots = torch.where(batch["answer_ids"] < 0, count, batch["answer_ids"]).flatten()
    logps = losses.new_zeros(count + 1).index_add(0, slots, -losses.flatten())
    tokens = slots.new_zeros(count + 1).index_add(0, slots, (labels != IGNORE).long().flatten())
    return logps[:count], tokens[:count]


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Run ``model`` as in evaluation inside the context: eager, and without a gradient."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(training)


class Sums(KeepsDtype, Metric):
    """Named sums over answers, added over micro-batches and processes.

    Args:
        names: names of the sums.
        dtype: dtype of the sums.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, names: Sequence[str], dtype: torch.dtype = torch.float32):
        super().__init__()
        self.names = tuple(names)
        self.add_state("sums", torch.zeros(len(self.names), dtype=dtype), dist_reduce_fx="sum")

    def update(self, values: dict[str, Tensor]) -> None:
        """Add a scalar to each of the named sums."""
        for name, value in values.items():
            self.sums[self.names.index(name)] += value.detach().to(self.sums.dtype)

    def compute(self) -> dict[str, Tensor]:
        """All sums by their names."""
        return dict(zip(self.names, self.sums.unbind(), strict=True))


SIDES = ("chosen", "rejected")
"""The two kinds of answers; of judged answers the good and the bad ones."""
MEASURED = ("answers", "logp", "tokens", "log_ratio", "reward")
"""Sums of each kind of answers, see `side_sums`."""


def side_sums(
    sides: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
) -> dict[str, Tensor]:
    """Sums of both kinds of answers by name, such as "chosen_logp".

    Args:
        sides: (log-probabilities, tokens, log-ratios, rewards) of the chosen and of the rejected
            answers, each (A,).
    """
    found: dict[str, Tensor] = {}
    for side, (logps, tokens, ratios, rewards) in zip(SIDES, sides, strict=True):
        found[f"{side}_answers"] = logps.new_tensor(len(logps))
        for name, values in zip(MEASURED[1:], (logps, tokens, ratios, rewards), strict=True):
            found[f"{side}_{name}"] = values.sum()
    return found


def side_means(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logged means of `side_sums`: lengths, log-probabilities and log-ratios per token, margin."""
    means: dict[str, Tensor] = {}
    for side in SIDES:
        answers = sums[f"{side}_answers"].clamp(min=1)
        tokens = sums[f"{side}_tokens"].clamp(min=1)
        means[f"{side}_length"] = sums[f"{side}_tokens"] / answers
        means[f"{side}_logp"] = sums[f"{side}_logp"] / tokens
        means[f"{side}_log_ratio"] = sums[f"{side}_log_ratio"] / tokens
        means[f"{side}_reward"] = sums[f"{side}_reward"] / answers
    means["margin"] = means["chosen_reward"] - means["rejected_reward"]
    return means


def wins(chosen: Tensor, rejected: Tensor) -> Tensor:
    """How many pairs give the chosen answer the higher reward; a tie counts one half."""
    return (1 + torch.sign(chosen - rejected)).sum() / 2
