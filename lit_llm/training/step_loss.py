"""What one micro-batch's loss is divided by, so that every supervised token of an optimizer step
weighs alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

_DIVISOR = 4096.0
"""Of a summed loss whose step's tokens are not known yet: keeps gradients in the range of a mean's;
any number will do, if it is the same on all processes."""


class LossMean(MeanMetric):
    """A mean in float32 that neither looks for NaN, which would wait for the device, nor forgets
    the weights.

    torchmetrics (1.9) sets every weight to 1 under ``nan_strategy="disable"``. And
    ``trainer.precision=bf16-true`` casts the module and all it holds; a bfloat16 mean is off by up
    to 0.4%.
    """

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def _cast_and_nan_check_input(self, x: Any, weight: Any = None) -> tuple[Tensor, Tensor]:
        weight = torch.ones_like(x) if weight is None else weight
        return x.float(), weight.float()

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        return super()._apply(lambda t: fn(t).to(t.dtype), exclude_state)


class LossScaling:
    """Scales losses so that an optimizer step's gradient is that of sum / supervised tokens, over
    all micro-batches and processes.

    A batch's "step_tokens" says the number beforehand. Where batches do not have it, the tokens are
    counted as the micro-batches come, and the gradient is scaled when the step is complete. What
    callbacks and loggers see of such a micro-batch is its own mean loss.
    """

    def __init__(self) -> None:
        # Of a step that nobody counted beforehand: supervised tokens so far, and what the mean of
        # the micro-batch at hand is multiplied by for its gradient.
        self._counted: Tensor | None = None
        self._weight: Tensor | None = None

    def begin(self) -> None:
        """Forget the micro-batches of a step that was interrupted."""
        self._counted = self._weight = None

    def by_step_tokens(self, loss_sum: Tensor, batch: dict[str, Any], trainer: L.Trainer) -> Tensor:
        """What ``training_step`` returns for a micro-batch that knows the tokens of its whole step.

        Args:
            loss_sum: the micro-batch's loss, summed.
            batch: with "step_tokens".

        Raises:
            UserError: a loader of a data module of ours, under another accumulation than its own.
        """
        # Lightning divides by the accumulation, data parallelism averages over processes: undo
        # both.
        processes = data_rank_and_size(trainer.strategy)[1]
        parts = trainer.accumulate_grad_batches * processes
        expected = batch.get("step_micro_batches", parts)
        if expected != parts:
            raise UserError(
                f"the loader makes optimizer steps of {expected} micro-batches, the Trainer of "
                f"{parts}: set "
                f"accumulate_grad_batches={expected // processes}, or give fit the data module, "
                f"not its loader"
            )
        # Under bf16-true a division by a tensor of integers gives bfloat16.
        tokens = torch.as_tensor(batch["step_tokens"], dtype=torch.float32)
        return loss_sum * (parts / tokens)

    def by_count(self, loss_sum: Tensor, count: Tensor, trainer: L.Trainer) -> Tensor:
        """What ``training_step`` returns for a micro-batch of a step whose count nobody knows yet:
        the micro-batch's own mean, see `for_backward`."""
        processes = data_rank_and_size(trainer.strategy)[1]
        if trainer.accumulate_grad_batches * processes > 1:
            self._counted = count if self._counted is None else self._counted + count
            self._weight = count * (trainer.accumulate_grad_batches / _DIVISOR)
        return loss_sum / count.clamp(min=1)

    def for_backward(self, loss: Tensor) -> Tensor:
        """``loss``, as `by_count` or `by_step_tokens` gave it, so that the gradients of all
        micro-batches add up to one scale."""
        weight, self._weight = self._weight, None
        return loss if weight is None else loss * weight

    def after_backward(self, parameters: Iterable[nn.Parameter], trainer: L.Trainer) -> None:
        """Scale the gradient of a step that is complete, if its tokens were counted on the way."""
        if self._counted is None or is_accumulating(trainer):
            return
        tokens, self._counted = self._counted.float(), None
        strategy = trainer.strategy
        if isinstance(strategy, ParallelStrategy):  # the gradient is the mean over processes
            tokens = strategy.reduce(tokens, reduce_op="mean")
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, _DIVISOR / tokens.clamp(min=1 / trainer.world_size))
