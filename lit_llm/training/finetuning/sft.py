"""SFTModule: supervised finetuning of a pretrained Transformer, of all weights or with LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.models.accounting import flops
from lit_llm.models.head import LMHead
from lit_llm.models.kernels.objective import Objective
from lit_llm.models.kernels.quantized import Format
from lit_llm.models.lora import without_updates
from lit_llm.models.lora_config import LoRAConfig, lora_from
from lit_llm.models.token_rows import add_token_rows
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.training.finetuning.adapted import AdaptedModule
from lit_llm.training.finetuning.neftune import EmbeddingNoise
from lit_llm.training.optimizers import OptimizerName
from lit_llm.training.schedules import Schedule

RANGES: dict[str, Range] = {
    "label_smoothing": Range(0, 1, below=True), "anchor": Range(0, 1e4), "neftune": Range(0, 1e4),
}  # fmt: skip
"""Ranges of the module's numbers."""


class SFTModule(AdaptedModule):
    """Trains a pretrained `Transformer` on the assistant's tokens.

    A batch is a batch of `PretrainModule`, with "document_ids" if several examples share a row.
    Labels are -100 for all tokens that are not the assistant's. `InstructionDataModule` makes such
    batches. Losses are sums divided by the supervised tokens of the whole optimizer step, so all
    tokens of all answers have the same weight.

    `AdaptedModule` says what ``lora`` and ``quantize`` do.

    Args:
        init_from, lora, quantize, freeze, patience, optimizer, schedule, warmup, validate_first: as
            in `AdaptedModule`.
        loss: what is summed over the supervised tokens. "nll": the cross-entropy. "dft": each
            token's nll times its probability, which counts as a constant (arXiv:2508.05629).
        label_smoothing: share of a label's weight that the whole vocabulary has in common; for nll.
        anchor: weight of KL(start || model) at every supervised token, which keeps the model near
            the base (arXiv:2509.23753). With LoRA the start is the model without its updates. With
            all weights it is a frozen copy.
        neftune: bound of the noise on the embeddings in training, see `EmbeddingNoise`; 5 in the
            paper. 0: no noise.
        settings: further arguments of `LanguageModule`. A learning_rate of None depends on method
            and data, see `default_rate`.

    Raises:
        UserError: there is no such base, or the settings do not fit the base.
    """

    def __init__(
        self,
        init_from: str,
        lora: LoRAConfig | None = None,
        quantize: Format | None = None,
        loss: Literal["nll", "dft"] = "nll",
        label_smoothing: float = 0.0,
        anchor: float = 0.0,
        neftune: float = 0.0,
        freeze: list[str] | None = None,
        patience: int | None = 2,
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.03,
        validate_first: bool = True,
        **settings: Any,
    ):
        check_types("model", SFTModule.__init__, locals(), leave_out=["lora", "settings"])
        check_ranges(locals(), RANGES, "model.")
        if loss == "dft" and label_smoothing:
            raise UserError("model.label_smoothing is for model.loss=nll; set it to 0 for dft")
        lora = lora_from(lora)  # a checkpoint holds plain values
        super().__init__(
            init_from=init_from,
            lora=lora,
            quantize=quantize,
            freeze=freeze,
            patience=patience,
            optimizer=optimizer,
            schedule=schedule,
            warmup=warmup,
            validate_first=validate_first,
            **settings,
        )
        self.objective = Objective(loss, label_smoothing, anchor)
        self._noise_on_embeddings: EmbeddingNoise | None = None
        self._reference: tuple[Transformer, ...] = ()  # inside a tuple it is no submodule
        if anchor and lora is not None and lora.train_modules:
            raise UserError(
                "model.anchor: what lora.train_modules trains has no copy of its start; leave one "
                "of them out"
            )

    def build_model(self) -> nn.Module:
        """Build the base as `AdaptedModule` does, with the objective and the noise."""
        model = super().build_model()
        assert isinstance(model, Transformer)
        if self.objective != Objective():
            model.lm_head.objective = self.objective
        if self.hparams["neftune"]:
            self._noise_on_embeddings = EmbeddingNoise(self.hparams["neftune"], model.embed)
        return model

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss summed over the supervised tokens of the batch: a scalar."""
        if self.objective.anchor:
            with torch.no_grad(), self._at_the_start() as head:
                super().compute_loss(batch)
            own = self.network
            assert isinstance(own, Transformer)
            own.lm_head.reference = head.reference
        if self._noise_on_embeddings is None:
            return super().compute_loss(batch)
        with self._noise_on_embeddings.on(batch):
            return super().compute_loss(batch)

    @contextmanager
    def _at_the_start(self) -> Iterator[LMHead]:
        """Let `compute_loss` run the model as it was before training; its head keeps its input."""
        own = self.network
        assert isinstance(own, Transformer)
        with ExitStack() as stack:
            if self.lora is not None:
                stack.enter_context(without_updates(own))
            model = self._reference[0] if self.lora is None else own
            self._modules["model"], model.lm_head.keeps_input = model, True
            try:
                yield model.lm_head
            finally:
                self._modules["model"], model.lm_head.keeps_input = own, False

    def on_fit_start(self) -> None:
        """Tell the settings, and load the frozen copy that ``anchor`` needs with all weights."""
        super().on_fit_start()
        if not self.objective.anchor or self.lora is not None:
            return
        if self.device_mesh is not None:
            raise UserError(
                "model.anchor: the frozen copy of all weights is not sharded; train with "
                "model.lora, or with trainer.strategy=ddp"
            )
        start = Transformer.from_pretrained(self.hparams["init_from"], self._compute_dtype())
        add_token_rows(start, self.added_tokens.values())
        size = sum(p.numel() * p.element_size() for p in start.parameters()) / 2**30
        rank_zero_info(f"model.anchor: a frozen copy of the start takes {size:.2f} GiB more")
        self._reference = (start.requires_grad_(False).eval().to(self.device),)

    def default_rate(self) -> tuple[float, str]:
        """The learning rate if the setting is None, and its reason.

        It is 2e-5 for all weights and 2e-4 for LoRA; for LoRA 1e-4 if the run has fewer than 500
        steps and the data no rehearsal.
        """
        if self.lora is None:
            return 2e-5, "all weights are trained; larger steps forget what the base knows"
        steps = self._horizon_steps()
        if steps < 500 and not getattr(self._datamodule, "rehearsal", 0.0):
            return 1e-4, (
                f"LoRA, {steps} steps without rehearsal; 2e-4 is for 500 and more, or with "
                "data.rehearsal, as narrow data alone makes the model forget"
            )
        return 2e-4, "LoRA's updates start at 0 and take ten times the rate of all weights"

    @property
    def flops_per_token(self) -> float:
        """As in `AdaptedModule`; ``anchor`` adds a forward pass."""
        passes = 1 if self.objective.anchor else 0
        return super().flops_per_token + passes * 2 * flops.matrix_parameters(self.config)

    @property
    def bytes_beside_base(self) -> int:
        """As in `AdaptedModule`, or the bytes of the frozen copy of ``anchor``."""
        if self.lora is not None or not self.objective.anchor:
            return super().bytes_beside_base
        return self._compute_dtype().itemsize * flops.num_parameters(self.config)
