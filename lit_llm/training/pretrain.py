"""PretrainModule: trains a Transformer on next-token prediction with any Trainer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_llm.data.blocks import IGNORE
from lit_llm.errors import UserError
from lit_llm.models.forest import Forest
from lit_llm.models.transformer import Transformer
from lit_llm.training.language import LanguageModule
from lit_llm.training.metrics import LanguageModelMetrics


class PretrainModule(LanguageModule):
    """Trains a `Transformer` to predict the next token.

    A batch is a dict with "input_ids" and "labels", both int64 (batch, seq). Label i is the token
    after input i, or -100 for a position without supervision. "step_tokens" is optional: the number
    of supervised tokens in the whole optimizer step. "label_bytes" is optional in evaluation
    batches, and adds bits per byte to the metrics. "document_ids", or "until" and "position" of a
    `Forest`, are optional too: see `Transformer.hidden_states`. `PretrainDataModule` makes such
    batches; any other source of such batches works too.

    The gradient is that of (sum of losses) / (supervised tokens of the step over all processes),
    for any gradient accumulation and world size, see `LossScaling`.

    To change the objective, override ``compute_loss``. To change the network, override
    ``build_model``: ``net(input_ids) -> logits``. The arguments are those of `LanguageModule`.
    """

    skip_ignored_labels = False
    """Whether the head leaves out positions whose label is -100, see `LMHead.loss`."""

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss summed over the supervised tokens of the batch: a scalar.

        With "label_weights" in the batch each token's loss is multiplied by its weight. In a
        mixture of experts it includes the router loss. Override it for another objective.
        """
        weights = batch.get("label_weights")
        if not isinstance(self.network, Transformer):
            losses = self.token_losses(batch)
            return (losses if weights is None else losses * weights).sum()
        loss = self.network.loss(
            batch["input_ids"],
            batch["labels"],
            batch.get("document_ids"),
            skip_ignored_labels=self.skip_ignored_labels,
            forest=forest_of(batch),
            label_weights=weights,
        )
        # The router loss is per token: times the count it becomes a sum like ``loss``.
        router_loss = self.network.take_router_loss()
        return loss if router_loss is None else loss + router_loss * self.count(batch)

    def token_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of each position in nats, float32 (batch, seq); 0 for label -100."""
        if isinstance(self.network, Transformer):
            return self.network.token_losses(
                batch["input_ids"], batch["labels"], batch.get("document_ids"), forest_of(batch)
            )
        if "until" in batch:
            raise UserError(
                "data.share_prefixes: the batch holds token trees, which only lit_llm's "
                "Transformer reads; set it to false"
            )
        logits, labels = self.network(batch["input_ids"]), batch["labels"]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="none"
        ).view_as(labels)

    def evaluate(self, batch: dict[str, Tensor], metrics: LanguageModelMetrics) -> None:
        """Add the loss of each token and, if the batch has them, the bytes of each label."""
        supervised = batch["labels"] != IGNORE
        losses, weights = self.token_losses(batch), batch.get("label_weights")
        metrics.update(losses, supervised, batch.get("label_bytes"), weights)


def forest_of(batch: dict[str, Tensor]) -> Forest | None:
    """The token trees in the rows of a batch, if it has them."""
    return Forest(batch["until"], batch["position"]) if "until" in batch else None
