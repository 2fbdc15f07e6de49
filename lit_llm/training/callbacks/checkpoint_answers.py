"""What Lightning, its loggers and scripts ask a checkpoint callback: the last file, the best."""

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
    """A `ModelCheckpoint` in its answers, not in when and how it saves: subclasses replace every
    hook of it.

    ``best_model_path``, ``best_model_score``, ``last_model_path``, ``current_score``,
    ``best_k_models``, ``kth_value`` and the callback's state in a checkpoint are as with
    ``ModelCheckpoint(monitor=..., mode="min", save_top_k=1)``: "" and None before anything is
    saved. Without a monitor the newest checkpoint is the best. ``fit(ckpt_path="last")`` finds the
    newest whole checkpoint of the folder. A logger is told of every checkpoint once it is on disk.
    """

    def __init__(self, dirpath: str | None, monitor: str | None):
        super().__init__(dirpath=dirpath, monitor=monitor, save_last=True)
        self._given_dirpath = dirpath

    @property
    def state_key(self) -> str:
        """The class's name: there is one a run."""
        return type(self).__qualname__

    def folder_of(self, trainer: L.Trainer) -> Path:
        """Where ``trainer``'s checkpoints lie."""
        return Path(self._given_dirpath or Path(trainer.default_root_dir) / "checkpoints")

    def open_folder(self, trainer: L.Trainer) -> Path:
        """`folder_of`, which is then ``dirpath`` too."""
        folder = self.folder_of(trainer)
        self.use_folder(folder)
        return folder

    def saves_last(self, file: Path) -> None:
        """Note that ``file`` is the newest checkpoint."""
        self.last_model_path = os.path.realpath(file)
        if self.monitor is None:
            self.best_model_path = self.last_model_path

    def saves_best(self, file: Path, score: float) -> None:
        """Note that ``file`` is the best checkpoint, by the lowest ``score``."""
        path, value = os.path.realpath(file), torch.tensor(score)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = self.kth_value = self.current_score = value
        self.best_k_models = {path: value}

    def forget_best(self) -> None:
        """There is no best checkpoint any more."""
        self.best_model_path = self.kth_best_model_path = ""
        self.best_model_score = self.current_score = None
        self.best_k_models = {}

    def tell_loggers(self, loggers: list[Any]) -> None:
        """Some send checkpoints elsewhere."""
        for logger in loggers:
            logger.after_save_checkpoint(proxy(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the answers; ``best_score`` alone is what earlier versions saved."""
        self.forget_best()
        path, score = state_dict.get("best_model_path", ""), state_dict.get("best_score")
        if score is not None:
            here = Path(self.dirpath or "", "best.ckpt")  # the run folder may have been moved
            self.saves_best(here if here.exists() or not path else Path(path), score)
        else:
            self.best_model_path = path
        last = state_dict.get("last_model_path", "")
        self.last_model_path = last if Path(last).exists() else ""

    def find_last(self, trainer: L.Trainer) -> Path | None:
        """For ``ckpt_path="last"``."""
        found, _ = newest_whole(self.folder_of(trainer))
        return found
