"""What a module takes from a checkpoint and what it refuses; docs/pretrain.md has the table, `data` its own part."""

from __future__ import annotations

from typing import Any

from lit_llm.errors import UserError
from lit_llm.models.config import TransformerConfig


def count_by_steps(checkpoint: dict[str, Any], accumulation: int) -> None:
    """Have the Trainer's counters in ``checkpoint`` say where the run is at ``accumulation`` micro-batches a step.

    Lightning counts micro-batches; our loader's position is the optimizer step, whatever accumulation was.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, checkpoint["global_step"] * accumulation))


def check_checkpoint(
    checkpoint: dict[str, Any], optimizer: str | None, config: TransformerConfig | None
) -> None:
    """See that ``checkpoint`` is one that can be gone on from.

    Args:
        optimizer: the name of the one whose state it must hold; None where there is no training.
        config: the built network's; None where the checkpoint's own will be built.

    Raises:
        UserError: no checkpoint of a `PretrainModule`, another optimizer, another architecture.
    """
    saved_settings = checkpoint.get("hyper_parameters")
    if not isinstance(saved_settings, dict) or "transformer" not in saved_settings:
        raise UserError("--ckpt_path: not a checkpoint of a PretrainModule")
    if optimizer is not None and (before := saved_settings.get("optimizer")) != optimizer:
        raise UserError(
            f"model.optimizer was {before} when the checkpoint was written and is {optimizer} now: "
            "its state would not fit; restore it, or start a new run with model.init_from"
        )
    saved = saved_settings["transformer"]
    if isinstance(saved, dict) and config is not None:
        now = config.to_dict()
        differs = [
            f"model.transformer.{k} was {v} when the checkpoint was written and is {now[k]} now"
            for k, v in saved.items()
            if k in now and now[k] != v
        ]
        if differs:
            raise UserError(f"{'; '.join(differs)}: the checkpoint is of another architecture")
