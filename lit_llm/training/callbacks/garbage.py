"""FreezeGarbage: Python's collector looks no more at what is there after the first step."""

from __future__ import annotations

import gc
from typing import Any

import lightning as L

from lit_llm.training.callbacks.optimizer_steps import is_step_end


class FreezeGarbage(L.Callback):
    """Collects once after the first optimizer step, and has the collector leave everything that is
    then alive alone.

    Torch, Lightning and a compiled model are some hundred thousand objects, which a full collection
    walks through at any moment, on each of many ranks at another one, for the others to wait.
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
        """Freeze, the first time."""
        if not self._frozen and is_step_end(trainer, batch_idx):
            gc.collect()
            gc.freeze()
            self._frozen = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give what was frozen back to the collector."""
        self._thaw()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """As at the end."""
        self._thaw()

    def _thaw(self) -> None:
        if self._frozen:
            gc.unfreeze()
            self._frozen = False
