"""The attributes of `ModelCheckpoint` that Lightning, loggers and scripts read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from weakref import proxy

import lightning as L
import torch

from lit_llm.lightning_internals import FindsLastCheckpoint
from lit_llm.training.callbacks.checkpoint_folder import newest_whole


class CheckpointAnswers(FindsLastCheckpoint):
    """Has the attributes of a `ModelCheckpoint`. Subclasses replace all hooks, which do the saving.

    ``best_model_path``, ``best_model_score``, ``last_model_path``, ``current_score``,
    ``best_k_models``, ``kth_value`` and the callback's state in a checkpoint are those of
    ``ModelCheckpoint(monitor=..., mode=..., save_top_k=1)``. Before the first save they are ""
    and None. Without a monitor the newest checkpoint is the best. ``fit(ckpt_path="last")`` finds
    the newest whole checkpoint of the folder. Loggers are notified of each checkpoint when it is on
    disk.
    """

    def __init__(self, dirpath: str | None, monitor: str | None, mode: str = "min"):
        super().__init__(dirpath=dirpath, monitor=monitor, mode=mode, save_last=True)
        self._given_dirpath = dirpath

    @property
    def state_key(self) -> str:
        """The class's name, because a run has only one such callback."""
        return type(self).__qualname__

    def folder_of(self, trainer: L.Trainer) -> Path:
        """The folder of ``trainer``'s checkpoints."""
        return Path(self._given_dirpath or Path(trainer.default_root_dir) / "checkpoints")

    def open_folder(self, trainer: L.Trainer) -> Path:
        """Return `folder_of`, and set ``dirpath`` to it."""
        folder = self.folder_of(trainer)
        self.use_folder(folder)
        return folder

    def saves_last(self, file: Path) -> None:
        """Set ``file`` as the newest checkpoint."""
        self.last_model_path = os.path.realpath(file)
        if self.monitor is None:
            self.best_model_path = self.last_model_path

    def saves_best(self, file: Path, score: float) -> None:
        """Set ``file`` as the best checkpoint, with ``score``."""
        path, value = os.path.realpath(file), torch.tensor(score)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = self.kth_value = self.current_score = value
        self.best_k_models = {path: value}

    def forget_best(self) -> None:
        """Set that there is no best checkpoint."""
        self.best_model_path = self.kth_best_model_path = ""
        self.best_model_score = self.current_score = None
        self.best_k_models = {}

    def tell_loggers(self, loggers: list[Any]) -> None:
        """Notify the loggers of a checkpoint; some of them upload it."""
        for logger in loggers:
            logger.after_save_checkpoint(proxy(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the attributes; earlier versions saved only ``best_score``."""
        self.forget_best()
        path, score = state_dict.get("best_model_path", ""), state_dict.get("best_score")
        if score is not None:
            # The run folder may have been moved, so its own best.ckpt comes first.
            here = Path(self.dirpath or "", "best.ckpt")
            self.saves_best(here if here.exists() or not path else Path(path), score)
        else:
            self.best_model_path = path
        last = state_dict.get("last_model_path", "")
        self.last_model_path = last if Path(last).exists() else ""

    def find_last(self, trainer: L.Trainer) -> Path | None:
        """The newest whole checkpoint, for ``ckpt_path="last"``."""
        found, _ = newest_whole(self.folder_of(trainer))
        return found
