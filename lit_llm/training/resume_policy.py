"""What a module takes from a checkpoint and what it refuses; docs/pretrain.md has the table, `data`
its own part."""

from __future__ import annotations

from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.checkpoint import settings_of


def check_checkpoint(checkpoint: dict[str, Any], optimizer: str | None) -> None:
    """See that ``checkpoint`` is one that can be gone on from.

    Args:
        optimizer: the name of the one whose state it must hold; None where there is no training.

    Raises:
        UserError: no checkpoint of a `LanguageModule`, another optimizer, or nothing but weights.
    """
    settings = settings_of(checkpoint)
    if "transformer" not in settings:
        raise UserError("--ckpt_path: not a checkpoint of a PretrainModule")
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
            "(save_weights_only): it can be "
            "evaluated, but no training goes on from it"
        )


def check_architecture(checkpoint: dict[str, Any], config: TransformerConfig) -> None:
    """Raise a UserError that names what differs where ``checkpoint`` is of another network than
    ``config``."""
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
