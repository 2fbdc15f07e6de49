"""Checks of the Trainer before a fit: reuse for another module, and unsupported callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, ref

import lightning as L
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_llm.errors import UserError

# The module that each Trainer trained last.
_last_module: WeakKeyDictionary[L.Trainer, ref[L.LightningModule]] = WeakKeyDictionary()


def check_reuse(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Check that the step count of ``trainer`` belongs to ``module``, and remember ``module``.

    Raises:
        UserError: the Trainer has trained another module, and no checkpoint gives the first step.
    """
    before = _last_module.get(trainer)
    if trainer.ckpt_path is None and trainer.global_step:
        if before is None or before() is not module:
            raise UserError(
                f"this Trainer has trained another module for {trainer.global_step} steps and "
                "would continue to count from there: make a new Trainer, or give fit a ckpt_path"
            )
        rank_zero_warn(
            f"this Trainer has trained the module for {trainer.global_step} steps: it goes on from "
            'there, but the optimizer has lost its momenta; fit(..., ckpt_path="last") keeps them'
        )
    _last_module[trainer] = ref(module)


def refuse_early_callbacks(callbacks: Iterable[Any]) -> None:
    """Raise a UserError for callbacks that read the weights before the network is built."""
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, StochasticWeightAveraging):
            raise UserError(
                f"{name} copies the module before the network is there, and would average "
                "nothing: take lightning's EMAWeightAveraging or WeightAveraging"
            )
        if isinstance(callback, (ModelPruning, BackboneFinetuning)):
            raise UserError(
                f"{name} looks for weights before the network is there, and finds none: remove "
                "the callback; to train only a few weights, use SFTModule with model.lora"
            )
