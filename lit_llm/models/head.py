"""The language-model head: from hidden states to logits, and to the cross-entropy of labels.

Shapes: N positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.limits import LARGE_LOGITS, chunk_bytes
from lit_llm.models.kernels.loss import IGNORE, linear_cross_entropy
from lit_llm.models.kernels.objective import Objective, linear_objective
from lit_llm.models.token_rows import head_rows


class LMHead(nn.Module):
    """The head after a Transformer's last norm.

    It is called as ``LMHead(config, projection)(x, labels) -> losses``. The head has no parameters
    of its own. The projection's parameters belong to the Transformer, under the name
    ``head.weight``.

    Args:
        config: gives the scale and the soft cap of the logits.
        projection: the layer from C to V. A layer that replaces it (LoRA, a packed layer) is used
            too.

    Attributes:
        objective: what `loss` sums instead of the cross-entropy; None is the cross-entropy.
        reference: input and weight of the head that ``objective.anchor`` compares with, for the
            positions of the next call of `loss`.
        keeps_input: whether `loss` only sets ``reference`` to its own input and weight.
    """

    def __init__(self, config: TransformerConfig, projection: nn.Linear) -> None:
        super().__init__()
        self.scale, self.softcap = config.logit_scale, config.logit_softcap
        self.compiled = False
        self.objective: Objective | None = None
        self.reference: tuple[Tensor, Tensor] | None = None
        self.keeps_input = False
        # Inside a tuple the layer is not registered as a submodule, so its weight has only one name
        # in the state dict.
        self._projection = (projection,)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the call, so that head and cross-entropy make one pass over the logits."""
        super().compile(*args, **kwargs)
        self.compiled = True

    def logits(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., V), scaled and soft-capped (in float32) if the config says so."""
        logits = self._projection[0](x)
        if self.scale is not None:
            logits = logits * self.scale
        cap = self.softcap
        return logits if cap is None else cap * torch.tanh(logits.float() / cap)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each position in nats: (..., C) and labels (...) -> float32 (...).

        The loss is 0 where the label is -100. Without a gradient, the positions are computed in
        chunks and the logits of all positions are never in memory at once.
        """
        x_NC, labels_N = x.flatten(0, -2), labels.flatten()
        rows = len(x_NC)
        if not torch.is_grad_enabled():
            vocab_size = self._projection[0].out_features
            rows = max(1, chunk_bytes(x_NC.device.type) // (4 * vocab_size))
        losses = [
            F.cross_entropy(self.logits(x).float(), labels, reduction="none")
            for x, labels in zip(x_NC.split(rows), labels_N.split(rows), strict=True)
        ]
        return torch.cat(losses).view(labels.shape)

    def labelled_losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """Compute the same losses as the call, with the head run on labelled positions only.

        This is never compiled: the number of labelled positions differs from batch to batch, and
        each new number would start a new compilation.
        """
        labelled = labels != IGNORE
        losses = self.forward(x[labelled], labels[labelled])
        return losses.new_zeros(labels.shape).masked_scatter(labelled, losses)

    def loss(
        self,
        x: Tensor,
        labels: Tensor,
        skip_ignored_labels: bool = False,
        label_weights: Tensor | None = None,
    ) -> Tensor:
        """The sum of the losses, or of ``objective``'s, for training: a float32 scalar.

        With a large vocabulary the logits are never all in memory at once, see
        `linear_cross_entropy`.

        Args:
            skip_ignored_labels: run the head on labelled positions only. The host then waits for
                the device to learn their number.
            label_weights: factor of each label's loss, float32 of the labels' shape. None: 1.
        """
        weights = None if label_weights is None else label_weights.flatten()
        if skip_ignored_labels:
            labelled = labels != IGNORE
            x, labels = x[labelled], labels[labelled]
            weights = None if label_weights is None else label_weights[labelled]
        projection = self._projection[0]
        if self.keeps_input:
            self.reference = x.flatten(0, -2).detach(), projection.weight.detach()
            return x.new_zeros((), dtype=torch.float32)
        flat, rows = (x.flatten(0, -2), projection.weight, labels.flatten()), head_rows(projection)
        if self.objective is not None:
            reference, self.reference = self.reference, None
            return linear_objective(
                *flat, self.objective, reference, self.scale, self.softcap, rows, weights
            )
        # Each new number of labelled positions would start a new compilation.
        compiled = self.compiled and not skip_ignored_labels
        small = 4 * labels.numel() * projection.out_features <= LARGE_LOGITS
        # On a CPU the chunked products are faster.
        if compiled and small and x.device.type != "cpu":
            losses = self(x, labels).flatten()
            return (losses if weights is None else losses * weights).sum()
        return linear_cross_entropy(*flat, self.scale, self.softcap, compiled, rows, weights)
