"""Exports the model of a finished run as Hugging Face directory ``final/``, and its adapter."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.errors import UserError, is_of_the_disk, more_room
from lit_llm.io.atomic import part_of
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub.config_json import readers_of
from lit_llm.models.parallel.sharded_checkpoint import put
from lit_llm.training.callbacks.final_card import write_card
from lit_llm.training.callbacks.final_weights import Origin
from lit_llm.training.strategy import is_sharded

_MODEL_STEP = "trainer_state.json"  # the file name of transformers' Trainer


def write_final(
    trainer: L.Trainer, module: L.LightningModule, run: Path, origin: Origin | None = None
) -> None:
    """Write ``run/final`` and ``run/adapter``. All processes must call this.

    ``final`` needs a module with ``save_pretrained``, ``adapter`` one with ``save_adapter``. An
    earlier ``final`` is removed only after the new one has its name. Its ``trainer_state.json``
    and its model card say of which step the weights are (``origin``; None: the Trainer's).

    Raises:
        UserError: the disk is full or not writable.
    """
    save_pretrained: Any = getattr(module, "save_pretrained", None)
    # No process has all weights of a sharded model, so all processes must continue.
    if save_pretrained is None or not (trainer.is_global_zero or is_sharded(trainer)):
        return
    target = run / "final"
    part = part_of(target)
    if trainer.is_global_zero:
        shutil.rmtree(part, ignore_errors=True)
    save_adapter: Any = getattr(module, "save_adapter", None)
    try:
        save_pretrained(part)
        if trainer.is_global_zero:
            step = trainer.global_step
            origin = origin or Origin(step, step)
            (part / _MODEL_STEP).write_text(json.dumps(asdict(origin)) + "\n")
            write_card(part, run.resolve().name, module, origin)
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
    put(part, target)
    config = getattr(module, "config", None)
    whom = "transformers and vLLM"
    if isinstance(config, TransformerConfig):
        whom = readers_of(config)
    rank_zero_info(f"wrote {target}: a Hugging Face directory, for {whom}")


def use_averages(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Copy the averaged weights of Lightning's callbacks into ``module``.

    The weights that were just restored from a checkpoint are not averaged.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_train_end(trainer, module)


def step_of_final(trainer: L.Trainer, run: Path) -> int | None:
    """The step of the model in ``run/final``; None if it is missing or has no step.

    All processes must call this. The answer is that of the first process.
    """
    try:
        step = json.loads((run / "final" / _MODEL_STEP).read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        step = None
    return trainer.strategy.broadcast(step)
