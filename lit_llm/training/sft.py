"""SFTModule: supervised finetuning of a pretrained Transformer, of all weights or with LoRA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.lightning_internals import WEIGHT_KEYS, trainer_of, validate_now
from lit_llm.models.accounting import flops
from lit_llm.models.hub.adapter_base import AdapterBase
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import settings_of
from lit_llm.models.hub.digest import digest
from lit_llm.models.hub.quantized import load_quantized
from lit_llm.models.kernels.quantized import Format
from lit_llm.models.lora import apply_lora, is_trained, merged_weights
from lit_llm.models.lora_config import LoRAConfig, lora_from
from lit_llm.models.parallel.sharded import whole_state_dict
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types
from lit_llm.training.callbacks.throughput import compute_dtype
from lit_llm.training.language import DEFAULT_TRANSFORMER
from lit_llm.training.optimizers import OptimizerName
from lit_llm.training.pretrain import PretrainModule
from lit_llm.training.quantized_base import refuse_quantized, said_of_layers
from lit_llm.training.schedules import Schedule


class SFTModule(PretrainModule):
    """Trains a pretrained `Transformer` on the assistant's tokens.

    A batch is a batch of `PretrainModule`, with "document_ids" if several examples share a row.
    Labels are -100 for all tokens that are not the assistant's. `InstructionDataModule` makes such
    batches. Losses are sums divided by the supervised tokens of the whole optimizer step, so all
    tokens of all answers have the same weight.

    With ``lora``:

    - the base is frozen; in mixed precision it has the dtype of the matrix products;
    - checkpoints hold the updates and a digest of the base;
    - ``final/`` holds the merged model, and ``adapter/`` beside it the updates in PEFT's format.

    With ``quantize`` beside it the base's linear layers have 4 or 8 bits, see
    `lit_llm.models.quantize`. ``final/`` holds the sum of the unpacked weights, beside which the
    updates were trained, and the updates.

    Args:
        init_from: Hugging Face directory or GGUF file of the base; see `locate`.
        lora: the layers to adapt and their settings. None trains all weights.
        quantize: form of the frozen base under ``lora``: "nf4" or "fp4" (4 bits), "int8"; None
            leaves it as it is. For one device and for DDP.
        optimizer, schedule, warmup: as in `LanguageModule`, with other defaults.
        validate_first: validate once before the first step. This logs the base's own loss as
            step 0.
        settings: further arguments of `LanguageModule`. A learning_rate of None is 1e-4 for LoRA,
            2e-5 otherwise.

    Raises:
        UserError: there is no such base, or the settings do not fit the base.
    """

    skip_ignored_labels = True

    def __init__(
        self,
        init_from: str,
        lora: LoRAConfig | None = None,
        quantize: Format | None = None,
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        validate_first: bool = True,
        **settings: Any,
    ):
        check_types("model", SFTModule.__init__, locals(), leave_out=["lora", "settings"])
        lora = lora_from(lora)  # a checkpoint holds plain values
        if quantize is not None and lora is None:
            raise UserError(
                f"model.quantize={quantize}: quantised weights are frozen; it needs model.lora"
            )
        if lora is not None and settings.get("float8"):
            raise UserError(
                "model.float8: LoRA's layers have no products in 8 bits; set it to false"
            )
        super().__init__(
            # Lightning's load_from_checkpoint passes it: the base's fields, as in init_from.
            transformer=settings.pop("transformer", DEFAULT_TRANSFORMER),
            init_from=init_from,
            optimizer=optimizer,
            schedule=schedule,
            warmup=warmup,
            **settings,
        )
        self.lora = lora
        self._packed: str | None = None  # digest of the quantised base
        if self.lora is not None and optimizer == "muon_adamw":
            raise UserError(
                "model.optimizer: Muon is not for LoRA's factors, which are not weights by "
                "themselves; train them with adamw"
            )
        # A checkpoint with a dataclass could not be read with weights_only.
        self.hparams["quantize"] = quantize
        self.hparams["lora"] = None if self.lora is None else asdict(self.lora)

    def build_model(self) -> nn.Module:
        """Build the base, with trainable LoRA updates if ``lora`` is given."""
        if self.lora is None:
            return super().build_model()
        # In mixed precision the frozen weights are stored in the dtype of the matrix products. This
        # loses nothing, because each product would round them anyway, and halves their memory.
        trainer = trainer_of(self)
        precision = "32-true" if trainer is None else str(trainer.precision)
        dtype = compute_dtype(precision) if precision.endswith("mixed") else torch.float32
        if self.lora.train_modules and precision in ("bf16-true", "16-true"):
            raise UserError(
                f"lora.train_modules: trainer.precision={precision} would hold them in half "
                "precision; set it to bf16-mixed, which holds the base in bfloat16 too"
            )
        init_from, quantize = self.hparams["init_from"], self.hparams["quantize"]
        if quantize is None:
            model = Transformer.from_pretrained(init_from, dtype)
            self._base = digest(model.state_dict().items())
        else:
            refuse_quantized(trainer, quantize)
            model, self._base = load_quantized(init_from, quantize, dtype)
            rank_zero_info(f"model.quantize={quantize}: {said_of_layers(model)}")
            self._packed = digest(model.state_dict().items())
        apply_lora(model, self.lora)
        return model

    def default_learning_rate(self) -> float:
        """The learning rate if the setting is None."""
        return 2e-5 if self.lora is None else 1e-4

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token, as in `PretrainModule`.

        With LoRA the gradients of the frozen weights are not computed, so a third of the matrices'
        share is subtracted.
        """
        total = super().flops_per_token
        return total if self.lora is None else total - 2 * flops.matrix_parameters(self.config)

    def on_train_start(self) -> None:
        """Validate the base before the first step, if ``validate_first`` is set."""
        super().on_train_start()
        if (
            self.hparams["validate_first"]
            and self.trainer.global_step == 0
            and self.trainer.enable_validation
        ):
            validate_now(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With LoRA, keep only the updates and the digest of the base."""
        if self.lora is None:
            super().on_save_checkpoint(checkpoint)
            return
        self.save_settings(checkpoint)
        for key in WEIGHT_KEYS & checkpoint.keys():
            checkpoint[key] = {k: v for k, v in checkpoint[key].items() if self._is_trained(k)}
        checkpoint["base_digest"] = self._base
        if self._packed is not None:
            checkpoint["quantized_digest"] = self._packed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check ``lora`` and the base; with LoRA, add the base's weights to ``checkpoint``.

        Raises:
            UserError: the checkpoint has another base, or other LoRA settings.
        """
        super().on_load_checkpoint(checkpoint)
        saved = lora_from(settings_of(checkpoint).get("lora"))
        if saved != self.lora:
            raise UserError(
                f"model.lora was {saved and asdict(saved)} when the checkpoint was written and is "
                f"{self.hparams['lora']} now"
            )
        form = settings_of(checkpoint).get("quantize")
        if form != self.hparams["quantize"]:
            raise UserError(
                f"model.quantize was {form} when the checkpoint was written and is "
                f"{self.hparams['quantize']} now"
            )
        if self.lora is None:
            return
        self.configure_model()
        if checkpoint.get("base_digest") != self._base:
            raise UserError(
                f"model.init_from={self.hparams['init_from']}: its weights are not those for which "
                "the updates were trained"
            )
        if checkpoint.get("quantized_digest") != self._packed:
            raise UserError(
                f"model.quantize={form}: quantised here, the base has other values than the one "
                "for which the updates were trained; take the same version of bitsandbytes"
            )
        frozen = {k: v for k, v in self.state_dict().items() if not self._is_trained(k)}
        for key in WEIGHT_KEYS & checkpoint.keys():
            checkpoint[key] = {**frozen, **checkpoint[key]}

    def _is_trained(self, name: str) -> bool:
        """Whether a name of the module's state dict belongs to what is trained beside the base."""
        model = self.network
        assert isinstance(model, Transformer)
        return is_trained(model, name.removeprefix("model."))

    def final_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and weights for `save_pretrained`; LoRA updates are merged into the weights."""
        model = self.network
        assert isinstance(model, Transformer)
        return super().final_weights() if self.lora is None else merged_weights(model)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the LoRA updates in PEFT's format; without ``lora`` do nothing.

        All processes of a sharded model must call this; the first process writes.
        """
        model = self.network
        assert isinstance(model, Transformer)
        if self.lora is None:
            return
        updates = (item for item in model.state_dict().items() if is_trained(model, item[0]))
        whole = whole_state_dict(updates, keep=self.global_rank == 0)
        if self.global_rank == 0:
            save_adapter(model, folder, base=str(self.hparams["init_from"]), state_dict=whole)
            # Template and stop tokens may differ from those of the base.
            self.save_tokenizer(folder)
            dtype = str(model.base_dtype).removeprefix("torch.")
            AdapterBase(
                str(self.hparams["init_from"]), self._base, dtype, self.hparams["quantize"]
            ).write(Path(folder))
