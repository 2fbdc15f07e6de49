"""Builds the optimizer of a `LanguageModule` from the module's settings."""

from __future__ import annotations

import torch
from torch import nn

from lit_llm.errors import UserError
from lit_llm.training.eight_bit import CLASSES, build_eight_bit
from lit_llm.training.optimizers import MuonAdamW, OptimizerName, parameter_groups
from lit_llm.training.schedules import keep_settings


def build_optimizer(
    network: nn.Module,
    name: OptimizerName,
    lr: float,
    weight_decay: float,
    *,
    sharded: bool = False,
    scaled: bool = False,
) -> torch.optim.Optimizer:
    """Build one optimizer for all trainable parameters of ``network``.

    Args:
        lr: learning rate of the matrices; those of the other groups are derived from it, see
            `parameter_groups`.
        weight_decay: decoupled weight decay of the matrices.
        sharded: whether the parameters are divided among processes.
        scaled: whether the Trainer scales the loss, as it does in float16.

    Raises:
        UserError: the optimizer cannot train such parameters.
    """
    groups = parameter_groups(network, name, lr, weight_decay)
    if name in CLASSES:
        if sharded:
            raise UserError(
                f"model.optimizer={name} does not support sharded weights: set it to adamw"
            )
        return _keeping_settings(build_eight_bit(name, groups, lr))
    if any(p.dtype == torch.float16 for p in network.parameters() if p.requires_grad):
        raise UserError(
            "trainer.precision=16-true: float16 is too narrow for the optimizer's squared "
            "gradients, and the weights are lost; set 16-mixed or bf16-true"
        )
    if name == "muon_adamw":
        return _keeping_settings(MuonAdamW(groups))
    # Fused AdamW undoes float16's loss scaling inside its step, which is after gradient clipping.
    # It is therefore not used when the loss is scaled.
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=not scaled)
    return _keeping_settings(adamw)


def _keeping_settings(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    keep_settings(optimizer)
    return optimizer
