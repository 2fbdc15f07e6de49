"""ProgressBar: optimizer steps with loss, tokens per second and time left, and no device synchronisation of its own."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as ProgressBarBase
from tqdm import tqdm

from lit_llm.training.callbacks.borders import at_border, logs_now


class ProgressBar(ProgressBarBase):
    """A bar on a terminal; elsewhere (a log file, a notebook export) a line at every logged step, at most one in
    ``seconds``.

    What it shows is what was logged last, so it costs the device nothing.
    """

    def __init__(self, seconds: float = 10.0):
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:
        """Called by the Trainer on every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step training starts from."""
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            steps = min(steps, trainer.max_steps)
        self._total = None if steps == float("inf") else int(steps)
        self._first, self._began, self._said = trainer.global_step, time.monotonic(), float("-inf")
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=self._total, initial=self._first, desc="fit", unit="step", dynamic_ncols=True, mininterval=0.5
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by whole optimizer steps."""
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            if logs_now(trainer):
                self._bar.set_postfix_str(_summary(trainer), refresh=False)
        elif self._enabled and at_border(trainer, batch_idx):
            now, step = time.monotonic(), trainer.global_step
            if logs_now(trainer) and now - self._said >= self.seconds:
                self._said = now
                left = ""
                if self._total:
                    pace = (now - self._began) / (step - self._first)
                    left = f"/{self._total}, {pace * (self._total - step):.0f} s left"
                print(f"step {step}{left} {_summary(trainer)}", file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say the validation's result on a line of its own."""
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            shown = {
                k: trainer.callback_metrics[k]
                for k in ("val_loss", "val_bits_per_byte")
                if k in trainer.callback_metrics
            }
            tqdm.write(
                f"step {trainer.global_step}: " + " ".join(f"{k}={float(v):.4f}" for k, v in shown.items()),
                file=sys.stderr,
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _summary(trainer: L.Trainer) -> str:
    """The last logged loss and rate: host numbers by then."""
    metrics = trainer.logged_metrics
    parts = []
    if "train_loss" in metrics:
        parts.append(f"loss={float(metrics['train_loss']):.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{float(metrics['tokens_per_second']):,.0f} tok/s")
    return " ".join(parts)
