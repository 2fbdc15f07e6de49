"""RewardModule: learns to score answers from compared pairs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_llm.data.instructions import Split
from lit_llm.data.preferences import PreferenceDataModule
from lit_llm.errors import UserError
from lit_llm.lightning_internals import log_reduced
from lit_llm.models.hub.config_json import family_of
from lit_llm.models.hub.reward import padding_token, set_padding
from lit_llm.models.hub.sequence_classification import architecture
from lit_llm.models.kernels.device import exact_dtype
from lit_llm.models.kernels.quantized import Format
from lit_llm.models.lora_config import LoRAConfig, lora_from
from lit_llm.models.scorer import become_scorer, scores
from lit_llm.models.transformer import Transformer
from lit_llm.settings.checks import check_types
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.training.callbacks.optimizer_steps import first_or_last, is_step_end, logs_now
from lit_llm.training.finetuning.adapted import AdaptedModule
from lit_llm.training.metrics import LanguageModelMetrics
from lit_llm.training.optimizers import OptimizerName
from lit_llm.training.preferences.answers import Sums, wins
from lit_llm.training.preferences.losses import bradley_terry
from lit_llm.training.pretrain import forest_of
from lit_llm.training.schedules import Schedule

RANGES: dict[str, Range] = {"center": Range(0, 1e4)}
"""Ranges of the module's numbers."""
_NAMES = ("pairs", "chosen", "rejected", "wins", "longer", "longer_wins", "shorter", "shorter_wins")


class RewardModule(AdaptedModule):
    """Trains a `Transformer` with a head of one output to score chosen answers higher.

    The score of an answer is read at its last token. A batch is one of `PreferenceDataModule`; of
    another source it needs "input_ids", "answer_rows", "answer_ends" and, for ``margin``,
    "margin", see `AnswerRows`. Losses are sums over the pairs, divided by the pairs of the whole
    optimizer step.

    `AdaptedModule` says what ``lora`` and ``quantize`` do. With ``lora`` the head is trained whole.
    ``final/`` is a directory of transformers' ``...ForSequenceClassification`` with one label;
    there is no ``adapter/`` beside it.

    Logged: train_loss, margin (of the scores), chosen_reward, rejected_reward; in validation also
    val_accuracy (a tie is one half) with its 95% interval val_accuracy_low and val_accuracy_high
    (Wilson 1927), val_accuracy_longer and val_accuracy_shorter of the pairs whose chosen answer is
    the longer or the shorter one.

    Args:
        init_from, lora, quantize, freeze, patience, optimizer, schedule, warmup, validate_first: as
            in `AdaptedModule`.
        margin: subtract the row's ``margin`` from the difference of the scores; every row needs
            one.
        center: weight of the squared sum of both scores, which keeps scores near 0.
        settings: further arguments of `LanguageModule`. A learning_rate of None is 1e-5 for all
            weights and 1e-4 for LoRA.

    Raises:
        UserError: there is no such base, or transformers has no such class of its family.
    """

    unpaired = False

    def __init__(
        self,
        init_from: str,
        lora: LoRAConfig | None = None,
        quantize: Format | None = None,
        margin: bool = False,
        center: float = 0.01,
        freeze: list[str] | None = None,
        patience: int | None = 2,
        optimizer: OptimizerName = "adamw",
        schedule: Schedule = "linear",
        warmup: float = 0.1,
        validate_first: bool = True,
        **settings: Any,
    ):
        check_types("model", RewardModule.__init__, locals(), leave_out=["lora", "settings"])
        check_ranges(locals(), RANGES, "model.")
        lora = lora_from(lora)
        if lora is not None and "head" not in lora.train_modules:
            lora = dataclasses.replace(lora, train_modules=(*lora.train_modules, "head"))
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
        architecture(family_of(self.config))  # final/ must be writable
        self._margin, self._center = margin, center
        self._measured = Sums(_NAMES)
        self._evaluated = Sums(_NAMES)

    def prepare_base(self, model: Transformer) -> None:
        """Replace the head by one of zeros with one output."""
        become_scorer(model)

    def count(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of pairs (int64 scalar)."""
        return torch.tensor(len(batch["answer_ends"]) // 2, device=self.device)

    def scores(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores of the batch's answers, float32 (A,)."""
        model = self.network
        assert isinstance(model, Transformer)
        return scores(
            model,
            batch["input_ids"],
            batch["answer_rows"],
            batch["answer_ends"],
            batch.get("document_ids"),
            forest_of(batch),
        )

    def compute_loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss summed over the pairs: a scalar."""
        chosen, rejected = self.scores(batch).unflatten(0, (-1, 2)).unbind(1)
        margin = batch["margin"] if self._margin else None
        compared, centred = bradley_terry(chosen, rejected, margin, self._center)
        self._measure(batch, chosen, rejected)
        total = (compared + centred).sum()
        model = self.network
        assert isinstance(model, Transformer)
        router_loss = model.take_router_loss()
        return total if router_loss is None else total + router_loss * self.count(batch)

    def _measure(self, batch: dict[str, Tensor], chosen: Tensor, rejected: Tensor) -> None:
        sums = {"pairs": chosen.new_tensor(len(chosen)), "chosen": chosen.sum(),
                "rejected": rejected.sum(), "wins": wins(chosen, rejected)}  # fmt: skip
        if not self.training:
            ids = batch["answer_ids"]
            sizes = ids.new_zeros(2 * len(chosen)).index_add(
                0, ids[ids >= 0], torch.ones_like(ids[ids >= 0])
            )
            first, second = sizes.unflatten(0, (-1, 2)).unbind(1)
            for name, here in (("longer", first > second), ("shorter", first < second)):
                sums[name] = here.sum()
                sums[f"{name}_wins"] = wins(chosen[here], rejected[here])
        (self._measured if self.training else self._evaluated).update(sums)

    def rewards(self) -> dict[str, Tensor]:
        """Mean scores of the current step so far: chosen_reward, rejected_reward and margin."""
        return _means(self._measured.compute())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At a logged step, also log scores and accuracy."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if not is_step_end(self.trainer, batch_idx):
            return
        if logs_now(self.trainer) or first_or_last(self.trainer):
            log_reduced(self, _means(self._measured.compute()))
        self._measured.reset()

    def evaluate(self, batch: dict[str, Tensor], metrics: LanguageModelMetrics) -> None:
        """Add the loss of a batch to ``metrics``."""
        metrics.add_sum(self.compute_loss(batch), self.count(batch))

    def _start_evaluation(self, batches: list) -> None:
        super()._start_evaluation(batches)
        self._evaluated = Sums(_NAMES, exact_dtype(self.device)).to(self.device)

    def _finish_evaluation(self, stage: str) -> None:
        super()._finish_evaluation(stage)
        sums = self._evaluated.compute()
        values = _means(sums)
        low, high = wilson(float(sums["wins"]), float(sums["pairs"]))
        values |= {"accuracy_low": torch.tensor(low), "accuracy_high": torch.tensor(high)}
        for name in ("longer", "shorter"):
            if sums[name] > 0:
                values[f"accuracy_{name}"] = sums[f"{name}_wins"] / sums[name]
        log_reduced(self, {f"{stage}_{name}": value for name, value in values.items()})

    def setup(self, stage: str) -> None:
        """As in `LanguageModule`; refuse judged answers, and pairs without a margin."""
        super().setup(stage)
        data = self._datamodule
        if not isinstance(data, PreferenceDataModule):
            return
        if data.unpaired:
            raise UserError("data.unpaired=true: a reward model learns from pairs; leave it out")
        splits: tuple[Split, ...] = ("train", "validation")
        missing = sum(int(np.isnan(data.facts(split)["margin"]).sum()) for split in splits)
        if self._margin and missing:
            raise UserError(
                f"model.margin: {missing:,} pairs have no 'margin'; give each a number, or set "
                "model.margin=false"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a directory of sequence classification, padded with a token that ends no answer."""
        super().save_pretrained(folder)
        data = self._datamodule
        if self.global_rank == 0 and hasattr(data, "serving_tokenizer"):
            used = {*data.stop_ids, *data.encode_prompt("")}
            set_padding(Path(folder), *padding_token(data.serving_tokenizer, used))

    def save_adapter(self, folder: str | Path) -> None:
        """Write nothing: the head is no part of PEFT's files of language models."""

    @property
    def bytes_beside_base(self) -> int:
        """The head is a single row."""
        return 0

    def default_rate(self) -> tuple[float, str]:
        """The learning rate if the setting is None, and its reason."""
        if self.lora is None:
            return 1e-5, "all weights of a reward model"
        return 1e-4, "LoRA and the head of a reward model"


def _means(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs = sums["pairs"].clamp(min=1)
    chosen, rejected = sums["chosen"] / pairs, sums["rejected"] / pairs
    return {"chosen_reward": chosen, "rejected_reward": rejected, "margin": chosen - rejected,
            "accuracy": sums["wins"] / pairs}  # fmt: skip


def wilson(wins: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), at 95% by default; (0, 1) of nothing."""
    if not count:
        return 0.0, 1.0
    share = wins / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return middle - half, middle + half
