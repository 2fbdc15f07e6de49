"""SFTModule: supervised finetuning of a pretrained Transformer, whole or through LoRA."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.lightning_internals import WEIGHT_KEYS, trainer_of, validate_now
from lit_llm.models.accounting import flops
from lit_llm.models.hub.adapters import save_adapter
from lit_llm.models.hub.checkpoint import settings_of
from lit_llm.models.lora import LoRAConfig, apply_lora, is_lora, lora_from, merged_weights
from lit_llm.models.parallel.sharded import whole_state_dict
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types
from lit_llm.training.callbacks.throughput import compute_dtype
from lit_llm.training.language import DEFAULT_TRANSFORMER
from lit_llm.training.optimizers import OptimizerName
from lit_llm.training.pretrain import PretrainModule
from lit_llm.training.schedules import Schedule


class SFTModule(PretrainModule):
    """Trains a pretrained `Transformer` on the tokens that the assistant speaks.

    A batch is as `PretrainModule` takes it, with "document_ids" where several examples share a row;
    labels are -100 wherever the assistant does not speak. `InstructionDataModule` makes such
    batches. Losses are sums divided by the supervised tokens of the whole optimizer step, so every
    answer's token weighs alike.

    With ``lora`` the base is frozen, in mixed precision held in the dtype of the products,
    checkpoints hold the updates and a digest of the base, and ``final/`` holds the merged model
    with ``adapter/`` (PEFT's format) beside it.

    Args:
        init_from: Hugging Face directory or GGUF file of the base; see `locate`.
        lora: what to adapt. None trains every weight.
        optimizer, schedule, warmup: as in `LanguageModule`, with other defaults.
        validate_first: validate once before the first step: the base's own loss, as step 0.
        settings: further arguments of `LanguageModule`; learning_rate None is 1e-4 for LoRA, 2e-5
            otherwise.

    Raises:
        UserError: no such base, or settings that do not fit it.
    """

    skip_ignored_labels = True

    def __init__(
        self,
        init_from: str,
        lora: LoRAConfig | None = None,
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        validate_first: bool = True,
        **settings: Any,
    ):
        check_types("model", SFTModule.__init__, locals(), leave_out=["lora", "settings"])
        lora = lora_from(lora)  # a checkpoint holds plain values
        if lora is not None and settings.get("float8"):
            raise UserError(
                "model.float8: LoRA's layers have no products in 8 bits; set it to false"
            )
        super().__init__(
            # Lightning's load_from_checkpoint gives it: the base's, which init_from decides.
            transformer=settings.pop("transformer", DEFAULT_TRANSFORMER),
            init_from=init_from,
            optimizer=optimizer,
            schedule=schedule,
            warmup=warmup,
            **settings,
        )
        self.lora = lora
        if self.lora is not None and optimizer == "muon_adamw":
            raise UserError(
                "model.optimizer: LoRA's factors are no weights of their own; train them with adamw"
            )
        # A dataclass in a checkpoint cannot be read with weights_only.
        self.hparams["lora"] = None if self.lora is None else asdict(self.lora)

    def build_model(self) -> nn.Module:
        """The base, with trainable updates if ``lora`` asks for them."""
        if self.lora is None:
            return super().build_model()
        # What is not trained loses nothing by it: products would round it each time, from twice the
        # memory.
        trainer = trainer_of(self)
        precision = "32-true" if trainer is None else str(trainer.precision)
        dtype = compute_dtype(precision) if precision.endswith("mixed") else torch.float32
        model = Transformer.from_pretrained(self.hparams["init_from"], dtype)
        self._base = digest(model.state_dict().items())
        apply_lora(model, self.lora)
        return model

    def default_learning_rate(self) -> float:
        """For when none is given."""
        return 2e-5 if self.lora is None else 1e-4

    @property
    def flops_per_token(self) -> float:
        """As `PretrainModule`; with LoRA less the gradients of the frozen weights, a third of the
        matrices' share."""
        total = super().flops_per_token
        return total if self.lora is None else total - 2 * flops.matrix_parameters(self.config)

    def on_train_start(self) -> None:
        """Validate the base, when training starts from it."""
        super().on_train_start()
        if (
            self.hparams["validate_first"]
            and self.trainer.global_step == 0
            and self.trainer.enable_validation
        ):
            validate_now(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the updates and the name of their base; without LoRA, as `PretrainModule`."""
        if self.lora is None:
            super().on_save_checkpoint(checkpoint)
            return
        self.save_settings(checkpoint)
        for key in WEIGHT_KEYS & checkpoint.keys():
            checkpoint[key] = {k: v for k, v in checkpoint[key].items() if is_lora(k)}
        checkpoint["base_digest"] = self._base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the base's weights back in. Raises UserError if it is another base, or LoRA is on in
        one of them only."""
        super().on_load_checkpoint(checkpoint)
        saved = settings_of(checkpoint).get("lora")
        if saved != self.hparams["lora"]:
            raise UserError(
                f"model.lora was {saved} when the checkpoint was written and is "
                f"{self.hparams['lora']} now"
            )
        if self.lora is None:
            return
        self.configure_model()
        if checkpoint.get("base_digest") != self._base:
            raise UserError(
                f"model.init_from={self.hparams['init_from']}: its weights are not those the "
                f"updates were"
            )
        frozen = {name: value for name, value in self.state_dict().items() if not is_lora(name)}
        for key in WEIGHT_KEYS & checkpoint.keys():
            checkpoint[key] = {**frozen, **checkpoint[key]}

    def final_weights(self) -> Iterable[tuple[str, Tensor]]:
        """As `PretrainModule`, updates merged."""
        model = self.network
        assert isinstance(model, Transformer)
        return super().final_weights() if self.lora is None else merged_weights(model)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the updates as PEFT does; nothing without ``lora``.

        All processes of a sharded model call it; the first one writes.
        """
        model = self.network
        assert isinstance(model, Transformer)
        if self.lora is None:
            return
        updates = (item for item in model.state_dict().items() if is_lora(item[0]))
        whole = whole_state_dict(updates, keep=self.global_rank == 0)
        if self.global_rank == 0:
            save_adapter(model, folder, base=str(self.hparams["init_from"]), state_dict=whole)
            self.save_tokenizer(folder)  # its template and stop tokens may not be the base's


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A name for weights, hex: sha256 over names, shapes and up to 4,096 evenly spaced values of
    each tensor.

    Values count as bfloat16, so that the dtype in which weights are held does not. Enough to tell
    two trained models apart in a moment; not proof against someone who edits single weights.
    """
    total = hashlib.sha256()
    for name, tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 4096)].bfloat16().float().cpu().contiguous()
        total.update(f"{name} {tuple(tensor.shape)} ".encode() + some.numpy().tobytes())
    return total.hexdigest()
