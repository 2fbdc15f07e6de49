"""FreezeGarbage: excludes long-lived objects from Python's garbage collection."""

from __future__ import annotations

import gc
from typing import Any

import lightning as L

from lit_llm.training.callbacks.optimizer_steps import is_step_end


class FreezeGarbage(L.Callback):
    """Collects garbage after the first optimizer step, and then freezes all objects alive.

    torch, Lightning and a compiled model have some hundred thousand objects, and a full collection
    visits all of them. It happens at a different time on each rank, while the other ranks wait.
    """

    def __init__(self) -> None:
        self._frozen = False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Freeze after the first optimizer step."""
        if not self._frozen and is_step_end(trainer, batch_idx):
            gc.collect()
            gc.freeze()
            self._frozen = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Unfreeze the objects."""
        self._unfreeze()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Unfreeze the objects."""
        self._unfreeze()

    def _unfreeze(self) -> None:
        if self._frozen:
            gc.unfreeze()
            self._frozen = False
