"""Evaluation metrics of language models, as torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_llm.models.kernels.device import exact_dtype


class KeepsDtype(nn.Module):
    """A mixin of metrics whose sums keep their dtype.

    ``trainer.precision=bf16-true`` casts the module with its metrics, and bfloat16 has 8 bits.
    """

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        # Moves the tensors to another device, but keeps their dtypes.
        return super()._apply(lambda t: fn(t).to(t.dtype), exclude_state)  # type: ignore[arg-type]


class LanguageModelMetrics(Metric):
    """Mean loss per token in nats, weighted where labels have weights, and bits per byte of text.

    Bits per byte is the loss of the text's tokens divided by the text's length in bytes, so it can
    be compared between tokenizers with different vocabularies. Special tokens stand for no bytes:
    they count in the loss per token, but not in bits per byte. Sums are float64 (counts int64), so
    the result does not depend on how the set was batched or sharded, up to 1e-12.

    Args:
        dtype: dtype of the loss sums; another one than float64 is for devices without it (Apple's).
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    weight: Tensor
    text_nll: Tensor
    text_bytes: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name, kind in (
            ("nll", dtype),
            ("tokens", torch.int64),
            ("weight", dtype),
            ("text_nll", dtype),
            ("text_bytes", torch.int64),
        ):
            self.add_state(name, torch.zeros((), dtype=kind), dist_reduce_fx="sum")

    def update(
        self,
        nll: Tensor,
        supervised: Tensor,
        label_bytes: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add tokens. All arguments have the same shape.

        Args:
            nll: loss of each token in nats.
            supervised: whether each token counts (bool).
            label_bytes: bytes of text that each label stands for.
            weights: weight of each token in the mean loss (bits per byte has no weights). None: 1.
        """
        nll = nll.to(self.nll.dtype)
        if weights is None:
            self.nll += nll.masked_fill(~supervised, 0).sum()
            self.tokens += supervised.sum()
        else:
            weights = weights.to(self.nll.dtype).masked_fill(~supervised, 0)
            self.nll += (nll * weights).sum()
            self.weight += weights.sum()
        if label_bytes is not None:
            self.text_nll += nll.masked_fill(~supervised | (label_bytes == 0), 0).sum()
            self.text_bytes += label_bytes.masked_fill(~supervised, 0).sum()

    def add_sum(self, loss: Tensor, count: Tensor) -> None:
        """Add a loss summed over ``count`` items; both are scalars. Weights make count a float."""
        self.nll += loss.to(self.nll.dtype)
        if count.is_floating_point():
            self.weight += count.to(self.weight.dtype)
        else:
            self.tokens += count
        self._update_count += 1

    def add(self, other: LanguageModelMetrics) -> None:
        """Add the sums of ``other``."""
        for name in self._defaults:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._update_count += other._update_count

    def compute(self) -> dict[str, Tensor]:
        """{"loss": nats per token}, and "bits_per_byte" if label bytes were given."""
        result = {"loss": self.nll / (self.tokens + self.weight)}
        if self.text_bytes > 0:
            result["bits_per_byte"] = self.text_nll / math.log(2) / self.text_bytes
        return result


def new_metrics(device: torch.device) -> LanguageModelMetrics:
    """Metrics on ``device``, summed in the most exact dtype that the device has."""
    return LanguageModelMetrics(exact_dtype(device)).to(device)


def results(
    sources: Sequence[LanguageModelMetrics], stage: str, names: Sequence[str] | None
) -> dict[str, Tensor]:
    """``<stage>_loss`` and ``<stage>_bits_per_byte`` of all tokens.

    With several sources there is also ``.../<name>`` for each source. All processes must call this.
    """
    total = new_metrics(sources[0].device)
    values: dict[str, Tensor] = {}
    for name, metric in zip(names or map(str, range(len(sources))), sources, strict=True):
        if len(sources) > 1:
            values |= {f"{stage}_{key}/{name}": value for key, value in metric.compute().items()}
        total.add(metric)
    return values | {f"{stage}_{key}": value for key, value in total.compute().items()}
