"""AdaptedModule: a pretrained Transformer with trained weights or LoRA, for any objective."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
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
from lit_llm.models.token_rows import add_token_rows
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_expression, check_types
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.training.callbacks.throughput import compute_dtype
from lit_llm.training.finetuning.added_tokens import check_same_tokens, check_train_tokens
from lit_llm.training.finetuning.early_stopping import early_stopping, tell_of_stop
from lit_llm.training.finetuning.freezing import freeze
from lit_llm.training.finetuning.quantized_base import refuse_quantized, said_of_layers
from lit_llm.training.language import DEFAULT_TRANSFORMER
from lit_llm.training.optimizers import OptimizerName
from lit_llm.training.pretrain import PretrainModule
from lit_llm.training.schedules import Schedule

RANGES: dict[str, Range] = {"patience": Range(1, 1e6)}
"""Ranges of the module's numbers."""


class AdaptedModule(PretrainModule):
    """Trains a pretrained `Transformer`: all weights, or LoRA updates beside frozen ones.

    It is the base of `SFTModule`, `DPOModule` and `RewardModule`, which say what is minimised.

    With ``lora``:

    - the base is frozen; in mixed precision it has the dtype of the matrix products;
    - checkpoints hold the updates and a digest of the base;
    - ``final/`` holds the merged model, and ``adapter/`` beside it the updates in PEFT's format;
    - of tokens that the data adds (``data.add_tokens``), the rows of embedding and head are
      trained, see `LoRAConfig.train_tokens`.

    With ``quantize`` beside it the base's linear layers have 4 or 8 bits, see
    `lit_llm.models.quantize`. ``final/`` holds the sum of the unpacked weights, beside which the
    updates were trained, and the updates.

    Args:
        init_from: Hugging Face directory or GGUF file of the base; see `locate`.
        lora: the layers to adapt and their settings. None trains all weights.
        quantize: form of the frozen base under ``lora``: "nf4" or "fp4" (4 bits), "int8"; None
            leaves it as it is. For one device and for DDP.
        freeze: regular expressions; weights whose names begin with a match are not trained.
        patience: validations in a row without a better ``checkpoint.monitor`` (val_loss) that end
            a run of more than one pass over the data (``data.epochs``). None: the run is never
            ended. A Trainer with an EarlyStopping of its own keeps that one.
        optimizer, schedule, warmup: as in `LanguageModule`, with other defaults.
        validate_first: validate once before the first step. This logs the base's own loss as
            step 0.
        settings: further arguments of `LanguageModule`.

    Raises:
        UserError: there is no such base, or the settings do not fit the base.
    """

    skip_ignored_labels = True

    def __init__(
        self,
        init_from: str,
        lora: LoRAConfig | None = None,
        quantize: Format | None = None,
        freeze: list[str] | None = None,
        patience: int | None = 2,
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.03,
        validate_first: bool = True,
        **settings: Any,
    ):
        check_types("model", AdaptedModule.__init__, locals(), leave_out=["lora", "settings"])
        check_ranges(locals(), RANGES, "model.")
        for pattern in freeze or ():
            check_expression(pattern, "model.freeze")
        lora = lora_from(lora)  # a checkpoint holds plain values
        if quantize is not None and lora is None:
            raise UserError(
                f"model.quantize={quantize}: quantised weights are frozen; it needs model.lora"
            )
        if lora is not None and settings.get("float8"):
            raise UserError(
                "model.float8: LoRA's layers have no products in 8 bits; set it to false"
            )
        # A checkpoint names the tokens for which it has rows.
        self._added_tokens: dict[str, int] = settings.pop("added_tokens", {})
        super().__init__(
            # Lightning's load_from_checkpoint passes it: the base's fields, as in init_from.
            transformer=settings.pop("transformer", DEFAULT_TRANSFORMER),
            init_from=init_from,
            optimizer=optimizer,
            schedule=schedule,
            warmup=warmup,
            **settings,
        )
        if self._added_tokens:
            largest = max(self._added_tokens.values())
            self.fields["vocab_size"] = max(self.fields["vocab_size"], largest + 1)
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

    def configure_callbacks(self) -> list[L.Callback]:
        """Stop a run of several passes when the monitored metric no longer becomes better."""
        epochs = getattr(self._datamodule, "epochs", 1.0)
        return [*early_stopping(self.trainer, self.hparams["patience"], epochs)]

    def on_train_end(self) -> None:
        """Tell that the run was ended early."""
        super().on_train_end()
        tell_of_stop(self.trainer)

    def build_model(self) -> nn.Module:
        """Build the base, with trainable LoRA updates if ``lora`` is given."""
        if self.lora is None:
            model = super().build_model()
            assert isinstance(model, Transformer)
            self.prepare_base(model)
        else:
            model = self._adapted_model(self.lora)
        freeze(model, self.hparams["freeze"] or ())
        return model

    def prepare_base(self, model: Transformer) -> None:
        """Change the loaded base in place before it is adapted or trained. Override it."""

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens that the data, or the checkpoint that was loaded, adds to those of the base."""
        return super().added_tokens or self._added_tokens

    def _adapted_model(self, lora: LoRAConfig) -> Transformer:
        # In mixed precision the frozen weights are stored in the dtype of the matrix products. This
        # loses nothing, because each product would round them anyway, and halves their memory.
        trainer = trainer_of(self)
        precision = "32-true" if trainer is None else str(trainer.precision)
        dtype = self._compute_dtype() if precision.endswith("mixed") else torch.float32
        ids = self.added_tokens.values()
        check_train_tokens(lora, self.added_tokens, precision)
        init_from, quantize = self.hparams["init_from"], self.hparams["quantize"]
        if quantize is None:
            model = Transformer.from_pretrained(init_from, dtype)
            self._base = digest(model.state_dict().items())
        else:
            refuse_quantized(trainer, quantize)
            model, self._base = load_quantized(init_from, quantize, dtype)
            rank_zero_info(f"model.quantize={quantize}: {said_of_layers(model)}")
            self._packed = digest(model.state_dict().items())
        add_token_rows(model, ids)
        self.prepare_base(model)
        apply_lora(model, lora, ids)
        return model

    def on_fit_start(self) -> None:
        """Tell the settings."""
        super().on_fit_start()
        self._tell_defaults()

    def default_rate(self) -> tuple[float, str]:
        """The learning rate if the setting is None, and its reason."""
        raise NotImplementedError(f"{type(self).__name__} has no default_rate: the objective")

    def default_learning_rate(self) -> float:
        """The learning rate if the setting is None, see `default_rate`."""
        return self.default_rate()[0]

    def _tell_defaults(self) -> None:
        hp, why = self.hparams, ""
        if hp["learning_rate"] is None:
            why = f" ({self.default_rate()[1]})"
        rank_zero_info(
            f"finetuning: model.learning_rate={self._learning_rate():g}{why}, "
            f"schedule={hp['schedule']} after warmup={hp['warmup']:g}, "
            f"weight_decay={hp['weight_decay']:g}, grad_clip={hp['grad_clip']}"
        )

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token, as in `PretrainModule`.

        With LoRA the gradients of the frozen weights are not computed, so a third of the matrices'
        share is subtracted.
        """
        passes = 0 if self.lora is None else 1
        return super().flops_per_token - passes * 2 * flops.matrix_parameters(self.config)

    @property
    def bytes_beside_base(self) -> int:
        """Bytes that a step of these settings needs beside those of a plain step, for `Preflight`.

        They are weights, gradients and AdamW's states of embedding and head if LoRA trains them
        whole.
        """
        if self.lora is None:
            return 0
        shape = self.config
        tables = {"embed", "head"} & set(self.lora.train_modules)
        table = shape.vocab_size * shape.hidden_size
        return 16 * table * min(len(tables), 1 if shape.tie_embeddings else 2)

    def _compute_dtype(self) -> torch.dtype:
        """The dtype of the matrix products; float32 without a Trainer."""
        trainer = trainer_of(self)
        return torch.float32 if trainer is None else compute_dtype(str(trainer.precision))

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

    def save_settings(self, checkpoint: dict[str, Any], **changed: Any) -> None:
        """As in `LanguageModule`, with the added tokens if there are any."""
        tokens = {"added_tokens": dict(self.added_tokens)} if self.added_tokens else {}
        super().save_settings(checkpoint, **tokens, **changed)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check ``lora`` and the base; with LoRA, add the base's weights to ``checkpoint``.

        Raises:
            UserError: the checkpoint has another base, other added tokens, or other LoRA settings.
        """
        if "transformer" in settings_of(checkpoint):
            check_same_tokens(settings_of(checkpoint).get("added_tokens", {}), self.added_tokens)
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
        if (trainer := trainer_of(self)) is not None and trainer.state.fn == "fit":
            self._compare(settings_of(checkpoint))
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

    def _compare(self, saved: dict[str, Any]) -> None:
        """Refuse to go on with other frozen weights, and tell of another schedule."""
        now = self.hparams
        if (saved.get("freeze") or []) != (now["freeze"] or []):
            raise UserError(
                f"model.freeze was {saved.get('freeze')} when the checkpoint was written and is "
                f"{now['freeze']} now"
            )
        for name in ("schedule", "warmup"):
            if saved.get(name, now[name]) != now[name]:
                rank_zero_warn(
                    f"model.{name} was {saved[name]} when the checkpoint was written and is "
                    f"{now[name]} now: the learning rate is another one from here on"
                )

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
