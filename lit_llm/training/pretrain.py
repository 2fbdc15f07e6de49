"""PretrainModule: next-token training of a Transformer under any Trainer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_llm.checks import check_types, plain_paths
from lit_llm.data.base import data_rank_and_size
from lit_llm.data.blocks import IGNORE
from lit_llm.errors import UserError
from lit_llm.models import flops
from lit_llm.models.backends import Backend
from lit_llm.models.config import TransformerConfig
from lit_llm.models.device import exact_dtype
from lit_llm.models.generate import generate
from lit_llm.models.meta import meta_transformer
from lit_llm.models.sampling import GREEDY
from lit_llm.models.sharded import clip_gradients, whole_state_dict
from lit_llm.models.transformer import Transformer
from lit_llm.training.callbacks.borders import at_border, logs_now
from lit_llm.training.eight_bit import CLASSES, build_eight_bit
from lit_llm.training.from_data import take_from_data
from lit_llm.training.metrics import LanguageModelMetrics, new_metrics, results
from lit_llm.training.optimizers import (
    MuonAdamW,
    OptimizerName,
    default_learning_rate,
    model_width,
    parameter_groups,
)
from lit_llm.training.prepare import prepare
from lit_llm.training.resume_policy import check_checkpoint, count_by_steps
from lit_llm.training.schedules import Schedule, StepSchedule, keep_settings, lr_multiplier


class PretrainModule(L.LightningModule):
    """Trains a `Transformer` to predict the next token.

    A batch is a dict with "input_ids" and "labels", int64 (batch, seq), label i being the token after input i and -100
    where nothing is learnt; "step_tokens", if there, is the number of supervised tokens of the whole optimizer step,
    and makes the gradient that of sum / global tokens under any accumulation and world size. "label_bytes" in
    evaluation batches gives bits per byte. `PretrainDataModule` makes such batches; any other source of them will do.

    Subclass by overriding ``compute_loss`` (another objective) or ``build_model`` (another network).

    Args:
        transformer: a preset's name, fields of `TransformerConfig` (``preset`` among them names one to start from), or
            a `TransformerConfig`. vocab_size and max_seq_len come from the data unless given; a `TransformerConfig`
            gives them.
        init_from: Hugging Face directory or GGUF file to start from instead of random weights; ``transformer`` is then
            its config. See `locate`.
        optimizer: "muon_adamw" (Muon for the matrices), "adamw", or bitsandbytes' "adamw_8bit" or "paged_adamw_8bit".
        learning_rate: of the matrices. None: derived from the width.
        weight_decay: decoupled, on matrices.
        schedule, warmup, decay, final_lr: see `lr_multiplier`; fractions of the horizon and of the learning rate.
        grad_clip: largest norm of the whole gradient; None never clips.
        compile: compile the blocks. "auto": where a compiler is found and the run is long enough to pay for it.
        recompute: share of the blocks, from 0 to 1, computed again in the backward pass to save memory. "auto": what
            `Preflight` finds that the device's memory asks for; none without it.
        attention: kernels of training attention, see `Backends`; "auto": the fastest this machine has.
        float8: train large linear layers in 8-bit floating point, see `convert_to_float8`; with bf16-mixed, in which
            evaluation stays.
        tokens, global_batch_tokens: horizon and batch for the schedule, where the data module is not ours; ours says
            so itself.

    Raises:
        UserError: a configuration that does not fit the data or the machine.
    """

    few_labels = False
    """Whether many labels are -100, so that the head had better leave them out, see `Transformer.loss`."""

    def __init__(
        self,
        transformer: str | dict[str, Any] | TransformerConfig = "nano-5m",
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
        recompute: float | Literal["auto"] = "auto",
        attention: Backend | Literal["auto"] = "auto",
        float8: bool = False,
        tokens: int | float | None = None,
        global_batch_tokens: int | None = None,
    ):
        super().__init__()
        check_types("model", PretrainModule.__init__, locals())
        if recompute != "auto" and not 0 <= recompute <= 1:
            raise UserError(f"model.recompute must be between 0 and 1, got {recompute}")
        self.save_hyperparameters()
        # A checkpoint holds plain values: others cannot be read with weights_only.
        self.hparams.update(plain_paths(dict(self.hparams)))
        self.fields: dict[str, Any] = _fields(transformer)
        if not isinstance(transformer, str):
            self.hparams["transformer"] = dict(self.fields)
        if init_from is not None:
            self.fields = TransformerConfig.from_pretrained(init_from).to_dict()
        TransformerConfig.from_dict(self.fields)  # a mistake is told now, before any data is made
        self.model: nn.Module | None = None
        self.step_loss = MeanMetric(
            nan_strategy="disable"
        )  # the default check for NaN synchronises the device
        self.evaluations: list[LanguageModelMetrics] = []
        self.grad_norm: Tensor | None = None

    # ---- what subclasses override -------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """The network to train; called once, on the device; to be sharded, on CPU with the same weights everywhere.

        Override for another: ``net(input_ids) -> logits``.
        """
        if self.hparams["init_from"] is not None:
            return Transformer.from_pretrained(self.hparams["init_from"], dtype=torch.float32)
        # Where it is to be sharded no process holds it whole: `parallelize` fills the shards.
        return (
            Transformer(self.config) if self.device_mesh is None else meta_transformer(self.config)
        )

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss summed over the batch's supervised tokens, the routers' share of it in a model of experts: a
        scalar. Override for another objective."""
        if not isinstance(self.network, Transformer):
            return self.token_losses(batch).sum()
        loss = self.network.loss(
            batch["input_ids"],
            batch["labels"],
            batch.get("document_ids"),
            few_labels=self.few_labels,
        )
        router_loss = self.network.take_router_loss()
        return (
            loss if router_loss is None else loss + router_loss * (batch["labels"] != IGNORE).sum()
        )

    # -------------------------------------------------------------------------------------------------------------

    def token_losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of each position in nats, float32 (batch, seq); 0 where the label is -100."""
        if isinstance(self.network, Transformer):
            return self.network.token_losses(
                batch["input_ids"], batch["labels"], batch.get("document_ids")
            )
        logits, labels = self.network(batch["input_ids"]), batch["labels"]
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), reduction="none"
        ).view_as(labels)

    @property
    def network(self) -> nn.Module:
        """The built network."""
        if self.model is None:
            raise RuntimeError(
                "the model is built by the Trainer (configure_model); call configure_model() yourself first"
            )
        return self.model

    @property
    def config(self) -> TransformerConfig:
        """The network's shape; what the data decides is filled in once the Trainer has set it up."""
        return TransformerConfig.from_dict(self.fields)

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs a token at the data's sequence length, by the project's one formula."""
        seq_len = getattr(self._datamodule, "seq_len", None) or self.config.max_seq_len
        return flops.flops_per_token(self.config, seq_len)

    @property
    def _datamodule(self) -> Any:
        return getattr(self._trainer, "datamodule", None) if self._trainer is not None else None

    def setup(self, stage: str) -> None:
        """Take vocabulary, context and horizon from the data, where they are known."""
        if self.model is not None:
            return
        take_from_data(self.fields, self._datamodule, self.hparams["init_from"])
        # The checkpoint must build the same network with no data at hand.
        self.hparams["transformer"] = self.config.to_dict()

    def configure_model(self) -> None:
        """Build the network once, and prepare it (see `parallelize`)."""
        if self.model is not None:
            return
        self.model = self.build_model()
        prepare(self.model, self.hparams, self._trainer, self.device_mesh, self._horizon_steps)

    def _horizon_steps(self) -> int:
        """Optimizer steps of the learning-rate schedule."""
        steps = getattr(self._datamodule, "steps", None)
        if steps is not None:
            return steps
        tokens, batch = self.hparams["tokens"], self.hparams["global_batch_tokens"]
        if tokens is not None and batch is not None:
            return -(-int(tokens) // batch)
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps
        raise UserError(
            "give model.tokens and model.global_batch_tokens, or trainer.max_steps: the schedule needs a horizon"
        )

    def default_learning_rate(self) -> float:
        """For when none is given."""
        return default_learning_rate(self.hparams["optimizer"], model_width(self.network))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer for everything, its schedule advanced by optimizer step."""
        hp = self.hparams
        lr = hp["learning_rate"] or self.default_learning_rate()
        groups = parameter_groups(self.network, hp["optimizer"], lr, hp["weight_decay"])
        optimizer: torch.optim.Optimizer
        if hp["optimizer"] == "muon_adamw":
            optimizer = MuonAdamW(groups)
        elif hp["optimizer"] in CLASSES:
            if self.device_mesh is not None:
                raise UserError(
                    f"model.optimizer={hp['optimizer']} does not take sharded weights: set it to adamw"
                )
            optimizer = build_eight_bit(hp["optimizer"], groups, lr)
        else:
            # Fused AdamW undoes float16's loss scaling inside its step, after our clipping: not there.
            scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
            optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=not scaled)
        multiplier = lr_multiplier(
            hp["schedule"],
            self._horizon_steps(),
            warmup=hp["warmup"],
            decay=hp["decay"],
            final=hp["final_lr"],
        )
        keep_settings(optimizer)
        scheduler = StepSchedule(optimizer, multiplier)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | int | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the whole gradient's norm, which is kept on the device for the log.

        The Trainer calls this with unscaled gradients in every precision. Its own clipping, if asked for, is left to
        it.
        """
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        self.grad_norm = clip_gradients(
            self.network.parameters(), self.hparams["grad_clip"] or float("inf")
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make the step's noise (dropout) a function of seed, micro-batch and rank, as its samples are.

        A generator's state would not do: loaders and validations draw from it too, at other times in a resumed run.
        """
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # what `seed_everything` was given
        rank, _ = data_rank_and_size(self.trainer.strategy)
        key = np.random.SeedSequence((seed, batch_idx, rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(key[0]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled so that what the Trainer makes of it is sum / global tokens."""
        loss_sum = self.compute_loss(batch)
        if "step_tokens" in batch:
            # Lightning divides by the accumulation, data parallelism averages over ranks: undo both.
            parts = (
                self.trainer.accumulate_grad_batches * data_rank_and_size(self.trainer.strategy)[1]
            )
            loss = loss_sum * (parts / batch["step_tokens"])
        else:
            loss = loss_sum / (batch["labels"] != IGNORE).sum().clamp(min=1)
        self.step_loss.update(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the optimizer step that just ended, if it is one to log; nothing touches the device in between."""
        if not at_border(self.trainer, batch_idx):
            return
        step = self.trainer.global_step
        if logs_now(self.trainer):
            values: dict[str, Any] = {"train_loss": self.step_loss.compute(), "lr": self._lr}
            if self.grad_norm is not None:
                values["grad_norm"] = self.grad_norm
            self.log_dict({**values, **self._position(step)})
        self.step_loss.reset()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the rate the matrices are updated with: when the step is logged, the scheduler has moved on."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def _position(self, step: int) -> dict[str, Tensor]:
        """step and tokens so far. "step" makes the Trainer file all of the step's metrics under it; float64 keeps it
        exact."""
        exact = exact_dtype(self.device)
        position = {"step": torch.tensor(step, dtype=exact)}
        batch = (
            getattr(self._datamodule, "global_batch_tokens", None)
            or self.hparams["global_batch_tokens"]
        )
        if batch is not None:
            position["tokens"] = torch.tensor(step * batch, dtype=exact)
        return position

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def _start_evaluation(self, batches: list) -> None:
        self.evaluations = [new_metrics(self.device) for _ in batches]

    def _evaluate(self, batch: dict[str, Tensor], dataloader_idx: int) -> None:
        supervised = batch["labels"] != IGNORE
        with torch.compiler.set_stance("force_eager"):  # see parallelize
            losses = self.token_losses(batch)
        self.evaluations[dataloader_idx].update(losses, supervised, batch.get("label_bytes"))

    def _finish_evaluation(self, stage: str) -> None:
        names = getattr(self._datamodule, "validation_sources", None)
        values = results(self.evaluations, stage, names)
        if stage == "val" and not self.trainer.sanity_checking:
            values |= self._position(self.trainer.global_step)
        self.log_dict(values)
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
        """As validation_step."""
        self._evaluate(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def predict_step(self, batch: dict[str, list], batch_idx: int) -> list[dict[str, str]]:
        """Continue each prompt greedily for up to 64 tokens: {"prompt", "text"} each."""
        model, tokenizer = self.network, self._datamodule.tokenizer
        assert isinstance(model, Transformer)
        answers = generate(
            model, batch["input_ids"], 64, GREEDY, stop_ids=self._datamodule.stop_ids
        )
        return [
            {"prompt": prompt, "text": tokenizer.decode(ids)}
            for prompt, ids in zip(batch["prompt"], answers, strict=True)
        ]

    # ---- in and out ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Forget init_from: the checkpoint holds the weights, and must open where that directory is gone."""
        checkpoint["hyper_parameters"]["init_from"] = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another architecture before torch lists every tensor that does not fit."""
        accumulation = getattr(self._datamodule, "accumulation", None)
        if accumulation is not None and "loops" in checkpoint:
            count_by_steps(checkpoint, accumulation)
        training = self._trainer is not None and self.trainer.training
        config = self.config if self.model is not None else None
        check_checkpoint(checkpoint, self.hparams["optimizer"] if training else None, config)

    def final_weights(self) -> Iterable[tuple[str, Tensor]]:
        """Names and weights that `save_pretrained` writes, one after the other."""
        return self.network.state_dict().items()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and, where the data module has one, tokenizer as a Hugging Face directory.

        All processes of a sharded model call it; the first one writes.
        """
        model = self.network
        if not isinstance(model, Transformer):
            raise UserError(
                f"only a Transformer is written as a Hugging Face directory, not {type(model).__name__}"
            )
        weights = whole_state_dict(self.final_weights(), keep=self.global_rank == 0)
        if self.global_rank == 0:
            model.save_pretrained(folder, state_dict=weights)
            self.save_tokenizer(folder)

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the data module's tokenizer, where it has one, beside the model."""
        tokenizer = getattr(self._datamodule, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder, model_max_length=self.config.max_seq_len)


def _fields(transformer: str | dict[str, Any] | TransformerConfig) -> dict[str, Any]:
    """As `TransformerConfig.from_dict` takes them; what is None in a config is left open for the data to decide."""
    if isinstance(transformer, TransformerConfig):
        return {key: value for key, value in transformer.to_dict().items() if value is not None}
    return {"preset": transformer} if isinstance(transformer, str) else dict(transformer)
