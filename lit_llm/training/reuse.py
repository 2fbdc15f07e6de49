"""A Trainer that is used again: its counters are those of the module it has trained."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_llm.errors import UserError


def check_reuse(trainer: L.Trainer, trained_steps: int) -> None:
    """See that ``trainer``, about to train, counts the steps of this module.

    Args:
        trained_steps: how many the module was trained for by its last Trainer.

    Raises:
        UserError: the Trainer has trained another module, and no checkpoint says where to begin.
    """
    if trainer.ckpt_path is not None or not trainer.global_step:
        return
    if trainer.global_step != trained_steps:
        raise UserError(
            f"this Trainer has trained another module for {trainer.global_step} steps and would "
            "count on from there: make a new Trainer, or give fit a ckpt_path"
        )
    rank_zero_warn(
        f"this Trainer has trained the module for {trainer.global_step} steps: it goes on from "
        'there, but the optimizer has lost its momenta; fit(..., ckpt_path="last") keeps them'
    )
