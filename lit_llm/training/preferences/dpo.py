"""DPOModule: learns from compared or judged answers, by one of many losses or a mixture."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lit_llm.data.preferences import PreferenceDataModule
from lit_llm.errors import UserError
from lit_llm.lightning_internals import log_reduced
from lit_llm.models.kernels.device import exact_dtype
from lit_llm.models.kernels.quantized import Format
from lit_llm.models.lora import without_updates
from lit_llm.models.lora_config import LoRAConfig, lora_from
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.training.callbacks.optimizer_steps import first_or_last, is_step_end, logs_now
from lit_llm.training.finetuning.adapted import AdaptedModule
from lit_llm.training.metrics import LanguageModelMetrics
from lit_llm.training.optimizers import OptimizerName
from lit_llm.training.preferences.answers import (
    MEASURED,
    SIDES,
    Sums,
    answer_logps,
    measuring,
    side_means,
    side_sums,
    wins,
)
from lit_llm.training.preferences.losses import LOSSES, Answers, LossSettings, Mixture
from lit_llm.training.preferences.reference import START, References, reference_path
from lit_llm.training.schedules import Schedule

RANGES: dict[str, Range] = {
    "beta": positive(1e4), "label_smoothing": Range(0, 0.5), "gamma": Range(0, 1e4),
    "sft_weight": Range(0, 1e4), "desirable_weight": positive(1e4),
    "undesirable_weight": positive(1e4), "chosen_share": Range(0, 1),
}  # fmt: skip
"""Ranges of the module's numbers."""
_EXACT, _ROUNDED = 1e-4, 5e-2
"""Largest mean difference from the reference at step 0, in nats per token, in float32 and below.

The rows of the reference's pass are packed differently, so sums have another order.
"""


class DPOModule(AdaptedModule):
    """Trains a `Transformer` to prefer the chosen answers over the rejected ones.

    A batch is one of `PreferenceDataModule`. A batch of another source has "input_ids", "labels",
    "answer_ids", "answer_ends" (see `AnswerRows`), and for losses with a reference
    "reference_logps", float32 (A,); without these the reference of a LoRA run is the model without
    its updates. Losses are sums over the pairs, divided by the pairs of the whole optimizer step,
    and are the same for any gradient accumulation and number of processes. The chosen answers' nll
    is divided by the step's chosen tokens.

    `AdaptedModule` says what ``lora`` and ``quantize`` do.

    Logged, in validation with "val_" before the names: train_loss; "loss/NAME" of each loss;
    accuracy (a tie is one half); margin, chosen_reward and rejected_reward (beta times the
    log-ratio, without a reference times the log-probability per token); chosen_logp and
    rejected_logp (per token); chosen_log_ratio and rejected_log_ratio, log(model / reference) per
    token; chosen_length and rejected_length in tokens; kl, the estimate that kto subtracts.

    Args:
        init_from, lora, quantize, freeze, patience, optimizer, schedule, warmup, validate_first: as
            in `AdaptedModule`.
        loss: a name in `LOSSES`, or a mapping that gives several a weight.
        beta: scale of the losses. None: 0.1; 5 for sigmoid_norm, 2 for simpo.
        label_smoothing: probability that a pair is labelled the wrong way round.
        gamma: simpo's margin, as a share of beta.
        sft_weight: weight of the chosen answers' nll per token beside the losses.
        desirable_weight, undesirable_weight: weights of good and bad answers for kto and
            apo_zero_unpaired.
        reference: "start", the model that training starts from; "base", the model that
            ``init_from`` was finetuned from with LoRA, as its run folder says; or a path. Its
            log-probabilities are computed once, see `References`. With "start" they must be the
            model's own at step 0, else the run ends.
        chosen_share: warn if a validation finds the chosen answers' likelihood per token below this
            share of the first validation's. 0: never.
        settings: further arguments of `LanguageModule`. A learning_rate of None is that of the
            loss, see `LOSSES`.

    Raises:
        UserError: there is no such base, reference or loss, or the settings do not fit them.
    """

    def __init__(
        self,
        init_from: str,
        lora: LoRAConfig | None = None,
        quantize: Format | None = None,
        loss: str | dict[str, float] = "sigmoid",
        beta: float | None = None,
        label_smoothing: float = 0.0,
        gamma: float = 0.5,
        sft_weight: float = 0.0,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        reference: str = START,
        chosen_share: float = 0.5,
        freeze: list[str] | None = None,
        patience: int | None = 2,
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        validate_first: bool = True,
        **settings: Any,
    ):
        check_types("model", DPOModule.__init__, locals(), leave_out=["lora", "settings"])
        check_ranges(locals(), RANGES, "model.")
        lora = lora_from(lora)  # a checkpoint holds plain values
        numbers = LossSettings(
            label_smoothing=label_smoothing,
            gamma=gamma,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        self_mixture = Mixture({loss: 1.0} if isinstance(loss, str) else loss, beta,
                               sft_weight, numbers)  # fmt: skip
        if reference != START and not self_mixture.reference:
            raise UserError(
                f"model.reference={reference}: {', '.join(self_mixture.weights)} compares with no "
                "reference; leave it out"
            )
        path = reference_path(reference, init_from)
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
        self.mixture, self._reference_path = self_mixture, path
        self._references: References | None = None
        self._kl: Tensor | None = None  # of the current step
        self._checked = False  # whether the margins at step 0 are 0
        self._chosen_at_start: float | None = None
        self._names = (
            *(f"{side}_{name}" for side in SIDES for name in MEASURED),
            "wins", *(f"loss/{name}" for name in self.mixture.weights),
        )  # fmt: skip
        self._measured = Sums(self._names)
        self._evaluated = Sums(self._names)

    @property
    def unpaired(self) -> bool:
        """Whether the loss is one of judged answers."""
        return self.mixture.unpaired

    def setup(self, stage: str) -> None:
        """As in `LanguageModule`; refuse data of the other kind."""
        super().setup(stage)
        data = self._datamodule
        if not isinstance(data, PreferenceDataModule):
            return
        if data.unpaired != self.unpaired:
            raise UserError(
                f"data.unpaired={data.unpaired}: {', '.join(self.mixture.weights)} learns from "
                f"{'judged answers' if self.unpaired else 'pairs'}; leave it out"
            )
        if self.mixture.reference:
            self._references = References(self, data, self._reference_path)

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of pairs, or of judged answers (int64 scalar)."""
        answers = len(batch["answer_ends"])
        return torch.tensor(answers if self.unpaired else answers // 2, device=self.device)

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss summed over the pairs, or over the judged answers: a scalar."""
        model = self.network
        assert isinstance(model, Transformer)
        logps, tokens = answer_logps(model, batch)
        router_loss = model.take_router_loss()
        answers = Answers(logps, self._reference_logps(batch, logps), tokens)
        if self.unpaired:
            good = batch["good"] > 0.5
            sides = answers.take(good), answers.take(~good)
            kl = logps.new_zeros(()) if self._kl is None else self._kl
            losses = self.mixture.of_judged(answers, good, kl)
        else:
            sides = answers.take(slice(0, None, 2)), answers.take(slice(1, None, 2))
            losses = self.mixture.of_pairs(*sides)
        self._measure(sides, losses)
        weights = self.mixture.weights
        total = sum((weights[name] * one.sum() for name, one in losses.items()), 0 * logps.sum())
        if self.mixture.nll:
            total = total - self.mixture.nll * sides[0].logps.sum() * self._pairs_per_token(
                batch, sides[0].tokens
            )
        if router_loss is not None:
            total = total + router_loss * self.count(batch)
        return total

    def _pairs_per_token(self, batch: dict[str, Tensor], tokens: Tensor) -> Tensor | float:
        """Pairs over chosen tokens of the step, which makes a sum over tokens one over pairs."""
        if "step_chosen_tokens" in batch:
            tokens = torch.as_tensor(batch["step_chosen_tokens"]).clamp(min=1)
            return batch["step_tokens"] / tokens
        return len(tokens) / tokens.sum().clamp(min=1)

    def _reference_logps(self, batch: dict[str, Tensor], logps: Tensor) -> Tensor:
        """Log-probabilities of the reference, float32 (A,)."""
        if not self.mixture.reference:
            return torch.zeros_like(logps)
        if "reference_logps" in batch:
            return batch["reference_logps"]
        if self._references is not None:
            return self._references.of_answers(batch["example_ids"])
        model = self.network
        assert isinstance(model, Transformer)
        if self.lora is None or self._reference_path is not None:
            raise UserError(
                "the batch has no reference_logps: take PreferenceDataModule, which provides for "
                "them, or add them to your batches"
            )
        with measuring(model), without_updates(model):
            return answer_logps(model, batch)[0]

    def _measure(self, sides: tuple[Answers, Answers], losses: dict[str, Tensor]) -> None:
        scale = self.mixture.reward_scale()
        rewards = [
            scale * (side.ratio if self.mixture.reference else side.per_token) for side in sides
        ]
        sums = side_sums(
            [
                (side.logps, side.tokens, side.ratio, reward)
                for side, reward in zip(sides, rewards, strict=True)
            ]
        )
        if not self.unpaired:
            sums["wins"] = wins(*rewards)
        sums |= {f"loss/{name}": one.sum() for name, one in losses.items()}
        (self._measured if self.training else self._evaluated).update(sums)
        self._ratios = torch.cat([side.ratio.detach() / side.tokens for side in sides])

    # ---- training --------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """As in `LanguageModule`; estimate KTO's KL of the whole step before its first loss."""
        if self.mixture.kl and "mismatched" in batch:
            self._kl = self._estimate_kl(batch["mismatched"])
        loss = super().training_step(batch, batch_idx)
        if not self._checked and self.mixture.reference and len(self._ratios):
            self._check_start()
        return loss

    def _estimate_kl(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """Mean log-ratio of mismatched answers over all processes, at least 0: a scalar."""
        model = self.network
        assert isinstance(model, Transformer)
        total = torch.zeros(2, device=self.device)
        for batch in batches:
            with measuring(model):
                logps = answer_logps(model, batch)[0]
            if "reference_logps" in batch:
                reference = batch["reference_logps"]
            elif self._references is not None:
                reference = self._references.of_mismatched(batch["example_ids"])
            else:
                reference = self._reference_logps(batch, logps)
            total += torch.stack([(logps - reference).sum(), total.new_tensor(len(logps))])
        total = self.trainer.strategy.reduce(total, reduce_op="sum")  # type: ignore[assignment]
        return (total[0] / total[1].clamp(min=1)).clamp(min=0)

    def _check_start(self) -> None:
        """End the run if the model is not the reference at step 0.

        Raises:
            UserError: margins are not 0.
        """
        self._checked = True
        if self.trainer.global_step or self._reference_path is not None:
            return
        apart = float(self._ratios.abs().mean())
        bound = _EXACT if self._compute_dtype() == torch.float32 else _ROUNDED
        losses = self._measured.compute()
        pairs = losses["chosen_answers"]
        sigmoid = losses.get("loss/sigmoid")
        ln2 = sigmoid is None or abs(float(sigmoid / pairs) - math.log(2)) < bound * 100
        if apart <= bound and ln2:
            return
        raise UserError(
            f"model.reference={self.hparams['reference']}: at step 0 the model is {apart:.2g} nats "
            "a token away from it, so margins are not 0: the reference is another model than "
            "model.init_from; with a network of your own, add reference_logps to the batches"
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At a logged step, also log what is measured of the answers."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if not is_step_end(self.trainer, batch_idx):
            return
        if logs_now(self.trainer) or first_or_last(self.trainer):
            log_reduced(self, self._means(self._measured.compute()))
        self._measured.reset()

    def rewards(self) -> dict[str, Tensor]:
        """Mean rewards of the current step so far: chosen_reward, rejected_reward and margin."""
        means = side_means(self._measured.compute())
        return {name: means[name] for name in ("chosen_reward", "rejected_reward", "margin")}

    def _means(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged, of these sums."""
        means = side_means(sums)
        if not self.mixture.reference:
            means = {name: mean for name, mean in means.items() if "ratio" not in name}
        items = sums["chosen_answers"].clamp(min=1)
        if self.unpaired:
            items = (sums["chosen_answers"] + sums["rejected_answers"]).clamp(min=1)
        else:
            means["accuracy"] = sums["wins"] / items
        means |= {key: sums[key] / items for key in sums if key.startswith("loss/")}
        if self._kl is not None:
            means["kl"] = self._kl
        return means

    # ---- validation ------------------------------------------------------------------------------

    def evaluate(self, batch: dict[str, Tensor], metrics: LanguageModelMetrics) -> None:
        """Add the loss of a batch to ``metrics``."""
        metrics.add_sum(self.compute_loss(batch), self.count(batch))

    def _start_evaluation(self, batches: list) -> None:
        super()._start_evaluation(batches)
        self._evaluated = Sums(self._names, exact_dtype(self.device)).to(self.device)

    def _finish_evaluation(self, stage: str) -> None:
        super()._finish_evaluation(stage)
        means = self._means(self._evaluated.compute())
        log_reduced(self, {f"{stage}_{name}": mean for name, mean in means.items()})
        if stage == "val" and not self.trainer.sanity_checking:
            self._compare_chosen(float(means["chosen_logp"]))

    def _compare_chosen(self, logp: float) -> None:
        """Warn if the chosen answers have become much less likely."""
        if self._chosen_at_start is None:
            self._chosen_at_start = logp
        share = math.exp(min(logp - self._chosen_at_start, 0.0))
        if share < self.hparams["chosen_share"]:
            rank_zero_warn(
                f"step {self.trainer.global_step}: the chosen answers have {share:.0%} of the "
                "likelihood per token that they had at the start (model.chosen_share="
                f"{self.hparams['chosen_share']:g}): the model moves away from both answers; a "
                "larger model.beta, a smaller model.learning_rate or model.sft_weight hold it"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in `AdaptedModule`, with the likelihood at the start."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["chosen_at_start"] = self._chosen_at_start

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in `AdaptedModule`, with the likelihood at the start."""
        super().on_load_checkpoint(checkpoint)
        self._chosen_at_start = checkpoint.get("chosen_at_start")

    def default_rate(self) -> tuple[float, str]:
        """The learning rate if the setting is None, and its reason: the loss's, see `LOSSES`."""
        rates = [LOSSES[name].learning_rates for name in self.mixture.weights]
        of = 0 if self.lora is None else 1
        what = "all weights" if self.lora is None else "LoRA"
        return min(rate[of] for rate in rates), f"{what} under {', '.join(self.mixture.weights)}"
