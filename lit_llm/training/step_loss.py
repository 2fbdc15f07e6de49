"""Loss scaling: the mean over the supervised tokens of an optimizer step, by their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_llm.data.base import data_rank_and_size
from lit_llm.errors import UserError
from lit_llm.lightning_internals import is_accumulating
from lit_llm.models.parallel.sharded import local
from lit_llm.training.metrics import KeepsDtype

_DIVISOR = 4096.0
"""Preliminary divisor of a summed loss while the token count of the step is not known.

It keeps gradients in the range of a mean loss's gradients. Any number works that is the same on all
processes.
"""


class LossMean(KeepsDtype, MeanMetric):
    """A weighted mean in float32 that does not look for NaN.

    It differs from torchmetrics' `MeanMetric` in three points. A search for NaN would wait for the
    device. With ``nan_strategy="disable"`` torchmetrics (1.9) sets every weight to 1. And it keeps
    its dtype: a bfloat16 mean would be off by up to 0.4%.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def _cast_and_nan_check_input(self, x: Any, weight: Any = None) -> tuple[Tensor, Tensor]:
        weight = torch.ones_like(x) if weight is None else weight
        return x.float(), weight.float()


class LossScaling:
    """Scales losses: the gradient of a step is that of (sum of losses) / (supervised tokens).

    Labels with weights of their own count as many tokens as they weigh. Both sums are over all
    micro-batches and processes of the optimizer step. If batches have "step_tokens", the number of
    tokens is known in advance. Otherwise the tokens are counted with each micro-batch, and the
    gradient is scaled when the step is complete. Callbacks and loggers then see the mean loss of
    each micro-batch.
    """

    def __init__(self) -> None:
        # For a step whose tokens are not known in advance:
        # supervised tokens so far,
        self._counted: Tensor | None = None
        # and the factor of the current micro-batch's mean loss in the backward pass.
        self._weight: Tensor | None = None

    def begin(self) -> None:
        """Start a step: forget the micro-batches of an interrupted one."""
        self._counted = self._weight = None

    def by_step_tokens(self, loss_sum: Tensor, batch: dict[str, Any], trainer: L.Trainer) -> Tensor:
        """The loss to return from ``training_step`` if the batch has "step_tokens".

        Args:
            loss_sum: the micro-batch's loss, summed over its tokens.
            batch: a batch with "step_tokens".
            trainer: the Trainer of the fit.

        Raises:
            UserError: the batch comes from the loader of a lit_llm data module, and the Trainer has
                another gradient accumulation than that data module.
        """
        # Lightning divides the loss by the accumulation, and data parallelism averages gradients
        # over processes. The factor ``parts`` undoes both.
        processes = data_rank_and_size(trainer.strategy)[1]
        parts = trainer.accumulate_grad_batches * processes
        expected = batch.get("step_micro_batches", parts)
        if expected != parts:
            raise UserError(
                f"the loader makes optimizer steps of {expected} micro-batches, the Trainer of "
                f"{parts}: set accumulate_grad_batches={expected // processes}, or pass the data "
                "module to fit instead of its loader"
            )
        # Float32, because with bf16-true a division by an integer tensor gives bfloat16.
        tokens = torch.as_tensor(batch["step_tokens"], dtype=torch.float32)
        return loss_sum * (parts / tokens)

    def by_count(self, loss_sum: Tensor, count: Tensor, trainer: L.Trainer) -> Tensor:
        """The loss to return from ``training_step`` if the tokens of the step are not known yet.

        It is the mean loss of the micro-batch. `for_backward` scales it for the gradient.
        """
        processes = data_rank_and_size(trainer.strategy)[1]
        if trainer.accumulate_grad_batches * processes > 1:
            self._counted = count if self._counted is None else self._counted + count
            self._weight = count * (trainer.accumulate_grad_batches / _DIVISOR)
        return loss_sum / torch.where(count > 0, count, 1)

    def for_backward(self, loss: Tensor) -> Tensor:
        """Scale the ``loss`` of `by_count` or `by_step_tokens` for the backward pass.

        After this the gradients of all micro-batches of a step have one scale and can be added.
        """
        weight, self._weight = self._weight, None
        return loss if weight is None else loss * weight

    def after_backward(self, parameters: Iterable[nn.Parameter], trainer: L.Trainer) -> None:
        """Scale the gradient at the end of a step whose tokens were counted during the step."""
        if self._counted is None or is_accumulating(trainer):
            return
        tokens, self._counted = self._counted.float(), None
        strategy = trainer.strategy
        # The gradient is already the mean over processes, so it is divided by the mean of tokens.
        if isinstance(strategy, ParallelStrategy):
            tokens = strategy.reduce(tokens, reduce_op="mean")
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, _DIVISOR / torch.where(tokens > 0, tokens, 1))
