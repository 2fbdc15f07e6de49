"""PretrainModule: next-token training of a Transformer under any Trainer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_llm.data.blocks import IGNORE
from lit_llm.models.transformer import Transformer
from lit_llm.training.language import LanguageModule
from lit_llm.training.metrics import LanguageModelMetrics


class PretrainModule(LanguageModule):
    """Trains a `Transformer` to predict the next token.

    A batch is a dict with "input_ids" and "labels", int64 (batch, seq), label i being the token
    after input i and -100 where nothing is learnt; "step_tokens", if there, is the number of
    supervised tokens of the whole optimizer step. The gradient is that of sum / global tokens under
    any accumulation and world size, see `LossScaling`. "label_bytes" in evaluation batches gives
    bits per byte. `PretrainDataModule` makes such batches; any other source of them will do.

    Subclass by overriding ``compute_loss`` (another objective) or ``build_model`` (another network:
    ``net(input_ids) -> logits``). The arguments are those of `LanguageModule`.
    """

    skip_ignored_labels = False
    """Whether the head leaves out positions whose label is -100, see `LMHead.loss`."""

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss summed over the batch's supervised tokens, the routers' share of it in a model
        of experts: a scalar. Override for another objective."""
        if not isinstance(self.network, Transformer):
            return self.token_losses(batch).sum()
        loss = self.network.loss(
            batch["input_ids"],
            batch["labels"],
            batch.get("document_ids"),
            skip_ignored_labels=self.skip_ignored_labels,
        )
        router_loss = self.network.take_router_loss()
        return loss if router_loss is None else loss + router_loss * self.count(batch)

    def token_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of each position in nats, float32 (batch, seq); 0 where the label is
        -100."""
        if isinstance(self.network, Transformer):
            return self.network.token_losses(
                batch["input_ids"], batch["labels"], batch.get("document_ids")
            )
        logits, labels = self.network(batch["input_ids"]), batch["labels"]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="none"
        ).view_as(labels)

    def evaluate(self, batch: dict[str, Tensor], metrics: LanguageModelMetrics) -> None:
        """Add the loss of each token, and the bytes that it stands for, where the batch has
        them."""
        supervised = batch["labels"] != IGNORE
        metrics.update(self.token_losses(batch), supervised, batch.get("label_bytes"))
