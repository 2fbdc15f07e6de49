"""LanguageModule: the LightningModule base of all training objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lit_llm.data.base import TokenDataModule, data_rank_and_size
from lit_llm.data.blocks import IGNORE
from lit_llm.errors import UserError
from lit_llm.lightning_internals import (
    batch_of_run,
    count_steps,
    number_as_lightning_does,
    number_by_steps_done,
    trainer_of,
)
from lit_llm.models.accounting import flops
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.checkpoint import settings_of
from lit_llm.models.kernels.backends import Backend
from lit_llm.models.kernels.device import exact_dtype
from lit_llm.models.meta import meta_transformer
from lit_llm.models.parallel.sharded import clip_gradients, is_divided, whole_state_dict
from lit_llm.models.token_rows import add_token_rows
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types, plain_paths
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.settings.replaced_settings import check_replaced
from lit_llm.training.callbacks.optimizer_steps import (
    first_or_last,
    is_step_end,
    logs_now,
    planned_steps,
)
from lit_llm.training.evaluation import EvaluatedModule
from lit_llm.training.from_data import (
    fields_of,
    is_shape_of,
    take_from_checkpoint,
    take_from_data,
)
from lit_llm.training.metrics import LanguageModelMetrics
from lit_llm.training.noise import StepNoise
from lit_llm.training.optimization import build_optimizer
from lit_llm.training.optimizers import (
    OptimizerName,
    default_learning_rate,
    model_width,
)
from lit_llm.training.prepare import prepare
from lit_llm.training.resume_policy import check_architecture, check_checkpoint
from lit_llm.training.saved_settings import SavedSettings
from lit_llm.training.schedules import Schedule, StepSchedule, lr_multiplier
from lit_llm.training.step_loss import LossMean, LossScaling
from lit_llm.training.trainer_checks import check_reuse, refuse_early_callbacks

RANGES: dict[str, Range] = {
    "learning_rate": positive(1e3), "weight_decay": Range(0, 1e3), "warmup": Range(0, 1),
    "decay": Range(0, 1), "final_lr": Range(0, 1), "grad_clip": Range(0, 1e9),
    "activation_checkpointing": Range(0, 1), "recompute": Range(0, 1),
    "tokens": positive(1e18), "global_batch_tokens": Range(1, 1e12),
}  # fmt: skip
"""Ranges of the module's numbers."""


DEFAULT_TRANSFORMER = "nano-5m"


class LanguageModule(EvaluatedModule):
    """Builds a `Transformer`, prepares it for the machine, optimizes, logs, evaluates and saves it.

    An objective is a subclass with its own ``compute_loss``, which returns the summed loss of a
    batch. The gradient is that of (sum of losses) / (sum of ``count``) over the whole optimizer
    step, for any gradient accumulation and world size, see `LossScaling`.

    A batch is a dict. "labels" are -100 for positions without supervision. "label_weights" is
    optional: factors of the labels' losses, float32 of the labels' shape. "step_tokens" is
    optional: the sum of ``count`` over the whole optimizer step.

    Other methods to override: ``build_model`` (another network), ``count`` (the number of items
    that the loss sums over; by default supervised tokens), ``evaluate`` (what validation and test
    measure).

    Args:
        transformer: a preset's name, a dict with fields of `TransformerConfig`, or a
            `TransformerConfig`. The dict's field ``preset`` names a preset to start from.
            vocab_size and max_seq_len come from the data unless they are given; a
            `TransformerConfig` gives them.
        init_from: Hugging Face directory or GGUF file to start from instead of random weights. The
            model then has its config, and ``transformer`` must not be given. See `locate`.
        optimizer: "muon_adamw" (Muon for the matrices), "adamw", or bitsandbytes' "adamw_8bit" or
            "paged_adamw_8bit".
        learning_rate: learning rate of the matrices. None: derived from the width.
        weight_decay: decoupled weight decay of the matrices.
        schedule, warmup, decay, final_lr: see `lr_multiplier`; fractions of the horizon and of the
            learning rate.
        grad_clip: largest norm of the whole gradient; None never clips.
        compile: whether to compile the blocks. "auto": if a compiler is found and the run is long
            enough to be worth it.
        activation_checkpointing: share of the blocks, from 0 to 1, that the backward pass computes
            again to save memory. "auto": the share that `Preflight` finds necessary for the
            device's memory; 0 without `Preflight`.
        attention: attention kernels for training, see `Backends`; "auto": the fastest on this
            machine.
        float8: whether to train large linear layers in 8-bit floating point, see
            `convert_to_float8`. Needs bf16-mixed, which evaluation uses.
        tokens, global_batch_tokens: horizon and batch size for the schedule, if the data module is
            not one of lit_llm, whose data modules provide both.
        recompute: the former name of ``activation_checkpointing``, for one release.

    Raises:
        UserError: the configuration does not fit the data or the machine.
    """

    def __init__(
        self,
        transformer: str | dict[str, Any] | TransformerConfig = DEFAULT_TRANSFORMER,
        init_from: str | None = None,
        optimizer: OptimizerName = "muon_adamw",
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        schedule: Schedule = "wsd",
        warmup: float = 0.02,
        decay: float = 0.6,
        final_lr: float = 0.0,
        grad_clip: float | None = 1.0,
        compile: bool | Literal["auto"] = "auto",
        activation_checkpointing: float | Literal["auto"] = "auto",
        attention: Backend | Literal["auto"] = "auto",
        float8: bool = False,
        tokens: int | float | None = None,
        global_batch_tokens: int | None = None,
        recompute: float | Literal["auto"] | None = None,
    ):
        super().__init__()
        if recompute is not None:
            rank_zero_warn("model.recompute is called model.activation_checkpointing now")
            activation_checkpointing = recompute
        check_types("model", LanguageModule.__init__, locals())
        if init_from is None or not is_shape_of(transformer, init_from):
            check_replaced(LanguageModule.__init__, locals(), "model.")
        check_ranges(locals(), RANGES, "model.")
        # Horizon and batch size belong to the data: as hyperparameters of the module they would
        # conflict with those of a data module.
        self.save_hyperparameters(ignore=["tokens", "global_batch_tokens", "recompute"])
        # Checkpoints are read with weights_only, so all settings must be plain values.
        self.hparams.update(plain_paths(dict(self.hparams)))
        self._horizon: dict[str, Any] = {
            "tokens": tokens,
            "global_batch_tokens": global_batch_tokens,
        }
        self._saved_settings = SavedSettings(self)
        self.fields: dict[str, Any] = fields_of(transformer)
        if not isinstance(transformer, str):
            self.hparams["transformer"] = dict(self.fields)
        if init_from == "":
            raise UserError("model.init_from is empty text: give a folder, or leave it out")
        if init_from is not None:
            self.fields = TransformerConfig.from_pretrained(init_from).to_dict()
        # Raises an error for wrong fields now, before any data is prepared.
        TransformerConfig.from_dict(self.fields)
        self.model: nn.Module | None = None
        self.train_loss = LossMean()
        self.grad_norm: Tensor | None = None
        self._scheduled: tuple[float, int] | None = None  # learning rate and horizon
        self._prepared: str | None = None  # None, "evaluation" or "training"
        self._noise = StepNoise()
        self._scaling = LossScaling()
        self._evaluated_step: int | None = None  # step of the checkpoint that is evaluated

    # ---- what subclasses override ----------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Build the network to train. Override it for another one: ``net(input_ids) -> logits``.

        It is called once, on the device. A network that will be sharded is built on the CPU, with
        the same weights on all processes.
        """
        if self.hparams["init_from"] is not None:
            model = Transformer.from_pretrained(self.hparams["init_from"], dtype=torch.float32)
            add_token_rows(model, self.added_tokens.values())
            return model
        # No process holds a whole sharded network: `parallelize` fills the shards of a meta model.
        return (
            Transformer(self.config) if self.device_mesh is None else meta_transformer(self.config)
        )

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of the batch, summed over the items that `count` counts: a scalar.

        Every objective must define it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no compute_loss: the objective")

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of items that `compute_loss` sums over: supervised tokens (int64 scalar).

        With "label_weights" in the batch it is the sum of their weights (float32 scalar).
        """
        supervised = batch["labels"] != IGNORE
        if "label_weights" in batch:
            return batch["label_weights"].masked_fill(~supervised, 0).sum()
        return supervised.sum()

    def evaluate(self, batch: dict[str, Tensor], metrics: LanguageModelMetrics) -> None:
        """Add the loss of a batch to ``metrics``. Override it to measure more."""
        metrics.add_sum(self.compute_loss(batch), self.count(batch))

    # ---- the network, and the settings that the data decides -------------------------------------

    @property
    def network(self) -> nn.Module:
        """The built network."""
        if self.model is None:
            raise RuntimeError(
                "the model is built by the Trainer (configure_model); call configure_model() "
                "yourself first"
            )
        return self.model

    @property
    def config(self) -> TransformerConfig:
        """The network's configuration. `setup` adds the fields that the data decides."""
        return TransformerConfig.from_dict(self.fields)

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens that the data adds to those of ``init_from``, with their ids."""
        return getattr(self._datamodule, "added_tokens", {})

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token at the data's sequence length, see `flops.flops_per_token`."""
        seq_len = getattr(self._datamodule, "seq_len", None) or self.config.max_seq_len
        return flops.flops_per_token(self.config, seq_len)

    def setup(self, stage: str) -> None:
        """Take vocabulary size and context length from the data, and check the horizon."""
        self._evaluated_step = None
        if (trainer := trainer_of(self)) is not None:
            number_by_steps_done(trainer, self._steps_done, logs_too=first_or_last)
            if self.model is None:
                callbacks = trainer.callbacks  # type: ignore[attr-defined]
                refuse_early_callbacks(callbacks)
        self._check_horizon()
        # A network that is already built must fit the data; its fields are not changed.
        fields = self.fields if self.model is None else self.config.to_dict()
        take_from_data(fields, self._datamodule, self.hparams["init_from"])

    def teardown(self, stage: str) -> None:
        """Undo the changes to the Trainer, so that another module can use it."""
        if (trainer := trainer_of(self)) is not None:
            number_as_lightning_does(trainer)

    def on_fit_start(self) -> None:
        """Refuse a Trainer that has trained another module."""
        check_reuse(self.trainer, self)

    def configure_model(self) -> None:
        """Build the network once, and prepare it for training or evaluation, see `prepare`."""
        if self.model is None:
            # A callback may use the network before `setup`, for example Lightning's
            # WeightAveraging.
            take_from_data(self.fields, self._datamodule, self.hparams["init_from"])
            self.model, self._prepared = self.build_model(), None
        trainer = trainer_of(self)
        training = trainer is not None and bool(trainer.training)
        purpose = "training" if training else "evaluation"
        # A network that is prepared for training can also be evaluated.
        if self._prepared in ("training", purpose):
            return
        if self._prepared is not None and is_divided(self.model):
            rank_zero_warn(
                "the sharded model was prepared for evaluation: it trains as it is, without "
                "model.compile and model.activation_checkpointing; use another module to train"
            )
        else:
            prepare(self.model, self.hparams, trainer, self.device_mesh, self._horizon_steps)
        self._prepared = purpose

    def _check_horizon(self) -> None:
        """Raise a UserError if the module's horizon differs from that of the data module."""
        for name, value in self._horizon.items():
            of_data = getattr(self._datamodule, {"tokens": "num_tokens"}.get(name, name), None)
            if value is not None and of_data is not None and int(value) != of_data:
                raise UserError(
                    f"model.{name}={value} is not data.{name}={of_data}: leave it out, "
                    "the data module decides"
                )

    def _horizon_steps(self) -> int:
        """Optimizer steps of the learning-rate schedule."""
        steps: int | None = getattr(self._datamodule, "steps", None)
        if steps is not None:
            return steps
        tokens, batch = self._horizon["tokens"], self._horizon["global_batch_tokens"]
        if tokens is not None and batch is not None:
            return -(-int(tokens) // batch)
        if (steps := planned_steps(self.trainer)) is not None:
            return steps
        raise UserError(
            "give model.tokens and model.global_batch_tokens, or trainer.max_steps: the schedule "
            "needs a horizon, and the data has no length"
        )

    def default_learning_rate(self) -> float:
        """The learning rate of the matrices if the setting is None."""
        return default_learning_rate(self.hparams["optimizer"], model_width(self.network))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build one optimizer for all parameters, and its schedule by optimizer step."""
        hp, lr = self.hparams, self._learning_rate()
        optimizer = build_optimizer(
            self.network,
            hp["optimizer"],
            lr,
            hp["weight_decay"],
            sharded=self.device_mesh is not None,
            scaled=getattr(self.trainer.precision_plugin, "scaler", None) is not None,
        )
        self._scheduled = lr, self._horizon_steps()
        scheduler = StepSchedule(optimizer, self._multiplier(self._horizon_steps()))
        # The step is not 0 if this Trainer has already trained the module.
        scheduler.start_at(self.trainer.global_step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _learning_rate(self) -> float:
        given = self.hparams["learning_rate"]
        return self.default_learning_rate() if given is None else given

    def _multiplier(self, steps: int) -> Callable[[int], float]:
        hp = self.hparams
        return lr_multiplier(
            hp["schedule"], steps, warmup=hp["warmup"], decay=hp["decay"], final=hp["final_lr"]
        )

    def on_train_start(self) -> None:
        """Update the schedule if learning rate or batch size changed after the optimizer was built.

        Lightning's LearningRateFinder and BatchSizeFinder change them.
        """
        # None if a subclass builds its own optimizer.
        if self._scheduled is None:
            return
        now = self._learning_rate(), self._horizon_steps()
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, StepSchedule) and now != self._scheduled:
                factor = now[0] / self._scheduled[0]
                config.scheduler.change(factor, self._multiplier(now[1]))
                config.scheduler.start_at(self.trainer.global_step)
                self._scheduled = now

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of the whole gradient. The norm stays on the device until it is logged.

        The Trainer calls this with unscaled gradients in every precision. If the Trainer's own
        clipping is set, that is used instead.
        """
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        self.grad_norm = clip_gradients(
            self.network.parameters(), self.hparams["grad_clip"] or float("inf")
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the dropout noise depend only on seed, micro-batch and rank, as the samples do."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            count_steps(self.trainer)
            self._scaling.begin()
        rank, _ = data_rank_and_size(self.trainer.strategy)
        self._noise.start(self.device, batch_of_run(self.trainer), rank)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled for the gradient of the whole step, see `LossScaling`."""
        loss_sum = self.compute_loss(batch)
        if "step_tokens" in batch:
            loss = self._scaling.by_step_tokens(loss_sum, batch, self.trainer)
            self.train_loss.update(loss.detach())
        else:
            count = self.count(batch)
            loss = self._scaling.by_count(loss_sum, count, self.trainer)
            # The loss is the micro-batch's mean, so it is weighted by the number of its tokens.
            self.train_loss.update(loss.detach(), count)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass of the loss, weighted by its tokens if that is not done yet."""
        super().backward(self._scaling.for_backward(loss), *args, **kwargs)

    def on_after_backward(self) -> None:
        """Scale the gradient if the tokens of the step are known only now."""
        self._scaling.after_backward(self.parameters(), self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At a logged step, log loss, learning rate, gradient norm and tokens.

        At other steps nothing is read from the device.
        """
        self._noise.stop()
        if not is_step_end(self.trainer, batch_idx):
            return
        step = self.trainer.global_step
        if logs_now(self.trainer) or first_or_last(self.trainer):
            values: dict[str, Any] = {"train_loss": self.train_loss.compute(), "lr": self._lr}
            if self.grad_norm is not None:
                values["grad_norm"] = self.grad_norm
            self.log_dict({**values, **self._position(step)})
        self.train_loss.reset()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the learning rate of this step: at logging time the scheduler is one step on."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def _steps_done(self) -> int:
        """Optimizer steps for which the current weights were trained."""
        return self.trainer.global_step if self._evaluated_step is None else self._evaluated_step

    def position_of_run(self) -> dict[str, Tensor]:
        """Tokens on which the current weights were trained, as a metric."""
        return self._position(self._steps_done())

    def _position(self, step: int) -> dict[str, Tensor]:
        """Tokens after ``step`` steps, if the batch size is known; float64 keeps them exact."""
        batch = (
            getattr(self._datamodule, "global_batch_tokens", None)
            or self._horizon["global_batch_tokens"]
        )
        if batch is None:
            return {}
        return {"tokens": torch.tensor(step * batch, dtype=exact_dtype(self.device))}

    # ---- checkpoints and export ------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the settings, without init_from.

        The checkpoint holds the weights, and must load even if the directory of init_from no longer
        exists.
        """
        self.save_settings(checkpoint, init_from=None)

    def save_settings(self, checkpoint: dict[str, Any], **changed: Any) -> None:
        """Write the settings that build the network, updated with ``changed``, into ``checkpoint``.

        They include the fields that the data decided.
        """
        self._saved_settings.write(
            checkpoint,
            self.hparams,
            {"transformer": self.config.to_dict(), **self._horizon, **changed},
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the fields that neither settings nor data decide from the checkpoint.

        Weights of another architecture are refused here, before torch lists every tensor that does
        not fit.
        """
        trainer = trainer_of(self)
        fitting = trainer is not None and trainer.state.fn == "fit"
        check_checkpoint(checkpoint, self.hparams["optimizer"] if fitting else None)
        # If the checkpoint changes the configuration, an unsharded network is built again.
        before = self.config
        take_from_checkpoint(self.fields, settings_of(checkpoint)["transformer"])
        if self.model is not None and self.config != before and not is_divided(self.model):
            self.model = None
            self.configure_model()
        check_architecture(checkpoint, self.config)
        self._evaluated_step = None if fitting else checkpoint.get("global_step")
        data = self._datamodule
        name = type(data).__qualname__
        if fitting and isinstance(data, TokenDataModule) and name not in checkpoint:
            rank_zero_warn(
                f"--ckpt_path: it was not written with a {name}: training continues at the same "
                "step, but it is not known whether its samples continue"
            )
            data.take_position(checkpoint)

    def final_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and weights that `save_pretrained` writes."""
        return self.network.state_dict().items()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a Hugging Face directory, with the data module's tokenizer if any.

        All processes of a sharded model must call this; the first process writes.
        """
        model = self.network
        if not isinstance(model, Transformer):
            raise UserError(
                f"only a Transformer is written as a Hugging Face directory, not "
                f"{type(model).__name__}"
            )
        weights = whole_state_dict(self.final_weights(), keep=self.global_rank == 0)
        if self.global_rank == 0:
            model.save_pretrained(folder, state_dict=weights)
            self.save_tokenizer(folder)

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the data module's tokenizer, if it has one, to ``folder``."""
        data = self._datamodule
        tokenizer = getattr(data, "serving_tokenizer", getattr(data, "tokenizer", None))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder, model_max_length=self.config.max_seq_len)
