"""A callback for the runs of these tests, see `Held`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L


class Held(L.Callback):
    """Notes each step that ended in ``steps``; while there is no file ``go``, a step takes a quarter of a second.

    Both are in the working directory. A quarter of a second leaves time to do something to the run.
    """

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Note this process: rank and id."""
        with open("processes", "a") as file:
            file.write(f"{trainer.global_rank} {os.getpid()} {trainer.world_size}\n")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the step, on the first process."""
        if trainer.is_global_zero:
            with open("steps", "a") as file:
                file.write(f"{trainer.global_step}\n")
        if not Path("go").exists():
            time.sleep(0.25)
