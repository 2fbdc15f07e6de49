"""Checks whether a module may continue from a checkpoint.

The table of what may change between runs is in docs/pretrain.md. The checks of the data are in
`lit_llm.data`.
"""

from __future__ import annotations

from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.checkpoint import settings_of


def check_checkpoint(checkpoint: dict[str, Any], optimizer: str | None) -> None:
    """Check that a run can continue from ``checkpoint``.

    Args:
        checkpoint: the loaded checkpoint.
        optimizer: name of the optimizer whose state the checkpoint must hold; None if nothing is
            trained.

    Raises:
        UserError: the checkpoint is not of a `LanguageModule`, is of another optimizer, or holds
            only weights.
    """
    settings = settings_of(checkpoint)
    if "transformer" not in settings:
        raise UserError("--ckpt_path: not a checkpoint of lit_llm.PretrainModule or SFTModule")
    if optimizer is None:
        return
    if (before := settings.get("optimizer")) != optimizer:
        raise UserError(
            f"model.optimizer was {before} when the checkpoint was written and is {optimizer} now: "
            "its state would not fit; restore it, or start a new run with model.init_from"
        )
    if "optimizer_states" not in checkpoint:
        raise UserError(
            "--ckpt_path: the checkpoint holds weights without the optimizer's state "
            "(save_weights_only): it can be evaluated, but training cannot continue from it"
        )


def check_architecture(checkpoint: dict[str, Any], config: TransformerConfig) -> None:
    """Raise a UserError with all differences between the checkpoint's architecture and ``config``.

    A checkpoint that names its architecture only by a preset is accepted.
    """
    saved, now = settings_of(checkpoint)["transformer"], config.to_dict()
    if not isinstance(saved, dict):
        return
    differs = [
        f"model.transformer.{k} was {v} when the checkpoint was written and is {now[k]} now"
        for k, v in saved.items()
        if k in now and now[k] != v
    ]
    if differs:
        raise UserError(f"{'; '.join(differs)}: the checkpoint is of another architecture")
