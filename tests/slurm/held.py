"""A callback for the runs of these tests, see `Held`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L


class Held(L.Callback):
    """Notes each optimizer step that ended in ``steps``, and each process in ``processes``.

    While there is no file ``go``, a step takes a quarter of a second: time to do something to the
    run. All three files are in the working directory.
    """

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Note this process: rank, id, processes of the run."""
        with open("processes", "a") as file:
            file.write(f"{trainer.global_rank} {os.getpid()} {trainer.world_size}\n")
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the step, on the first process."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if trainer.is_global_zero:
            with open("steps", "a") as file:
                file.write(f"{self.step}\n")
        if not Path("go").exists():
            time.sleep(0.25)
