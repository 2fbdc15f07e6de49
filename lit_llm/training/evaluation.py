"""Validation, test and prediction, which all objectives of a `LanguageModule` share."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.lightning_internals import log_reduced, trainer_of
from lit_llm.models.generation.generate import generate, room_for
from lit_llm.models.generation.sampling import GREEDY
from lit_llm.models.transformer import Transformer
from lit_llm.training.metrics import LanguageModelMetrics, new_metrics, results


class EvaluatedModule(L.LightningModule):
    """Measures every source of the validation and test data, and continues prompts.

    A subclass defines what a batch adds to the metrics (``evaluate``), which network continues
    prompts (``network``), and what is logged with each validation (``position_of_run``).

    Attributes:
        evaluations: the metrics of each loader in the current evaluation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.evaluations: list[LanguageModelMetrics] = []

    def evaluate(self, batch: dict[str, Tensor], metrics: LanguageModelMetrics) -> None:
        """Add a batch to ``metrics``."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The network that continues prompts."""
        raise NotImplementedError

    def position_of_run(self) -> dict[str, Tensor]:
        """Metrics that say how far the validated weights were trained."""
        raise NotImplementedError

    @property
    def _datamodule(self) -> Any:
        return getattr(trainer_of(self), "datamodule", None)

    def _start_evaluation(self, batches: list) -> None:
        self.evaluations = [new_metrics(self.device) for _ in batches]

    def _evaluate(self, batch: dict[str, Tensor], dataloader_idx: int) -> None:
        # Compiled blocks are for training only, see `parallelize`.
        with torch.compiler.set_stance("force_eager"):
            self.evaluate(batch, self.evaluations[dataloader_idx])

    def _finish_evaluation(self, stage: str) -> None:
        names = getattr(self._datamodule, "validation_sources", None)
        values = results(self.evaluations, stage, names)
        if stage == "val" and not self.trainer.sanity_checking:
            values |= self.position_of_run()
        # `results` has already added the sums of all processes.
        log_reduced(self, values)
        self.evaluations = []

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation(self.trainer.num_val_batches)

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add a batch to its source's metrics."""
        self._evaluate(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation(self.trainer.num_test_batches)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same as `validation_step`."""
        self._evaluate(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def predict_step(self, batch: dict[str, list], batch_idx: int) -> list[dict[str, str]]:
        """Continue each prompt greedily for up to 64 tokens.

        Returns:
            One {"prompt", "text"} for each prompt.

        Raises:
            UserError: a prompt fills the context.
        """
        model, tokenizer = self.network, self._datamodule.tokenizer
        assert isinstance(model, Transformer)
        prompts = batch["input_ids"]
        lengths = room_for(model, prompts, 64)
        for text, ids, length in zip(batch["prompt"], prompts, lengths, strict=True):
            if length < 1:
                raise UserError(
                    f"the prompt {text[:30]!r} takes {len(ids)} tokens; the model's context has "
                    f"{model.config.max_seq_len}"
                )
        answers = generate(model, prompts, lengths, GREEDY, stop_ids=self._datamodule.stop_ids)
        return [
            {"prompt": prompt, "text": tokenizer.decode(ids)}
            for prompt, ids in zip(batch["prompt"], answers, strict=True)
        ]
