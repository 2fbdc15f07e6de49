"""The model of a finished run as a Hugging Face directory, ``final/``, and an adapter beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.errors import UserError, is_of_the_disk, more_room
from lit_llm.training.strategy import is_sharded

_MODEL_STEP = "trainer_state.json"  # where transformers' Trainer writes it too


def write_final(trainer: L.Trainer, module: L.LightningModule, run: Path) -> None:
    """Write ``run/final``, if ``module`` has ``save_pretrained``, and ``run/adapter``, if it has
    ``save_adapter``; ``final`` is there whole or as it was. All processes call it.

    Raises:
        UserError: the disk is full, or may not be written to.
    """
    save_pretrained: Any = getattr(module, "save_pretrained", None)
    # Of a sharded model no process has the weights alone.
    if save_pretrained is None or not (trainer.is_global_zero or is_sharded(trainer)):
        return
    target = run / "final"
    part = target.with_name("final.part")
    if trainer.is_global_zero:
        shutil.rmtree(part, ignore_errors=True)
    save_adapter: Any = getattr(module, "save_adapter", None)
    try:
        save_pretrained(part)
        if trainer.is_global_zero:
            (part / _MODEL_STEP).write_text(json.dumps({"global_step": trainer.global_step}) + "\n")
        if save_adapter is not None:
            save_adapter(run / "adapter")
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        if not is_of_the_disk(error):
            raise
        raise UserError(
            f"{target}: could not be written ({error}); {more_room()} and run again "
            "with --ckpt_path last"
        ) from error
    if not trainer.is_global_zero:
        return
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    rank_zero_info(f"wrote {target}: a Hugging Face directory, for transformers and vLLM")


def use_averages(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Put the averages of Lightning's callbacks into ``module``, whose weights a checkpoint has
    just given back raw."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_train_end(trainer, module)


def step_of_final(trainer: L.Trainer, run: Path) -> int | None:
    """Which step's model ``run/final`` is, by the first process's judgement; None if it is not
    there or does not say. All processes call it."""
    try:
        step = json.loads((run / "final" / _MODEL_STEP).read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        step = None
    return trainer.strategy.broadcast(step)
