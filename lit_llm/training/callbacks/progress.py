"""ProgressBar: shows optimizer steps, loss, tokens per second and time left.

It causes no device synchronisation.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as ProgressBarBase
from tqdm import tqdm

from lit_llm.io.streams import is_terminal
from lit_llm.training.callbacks.optimizer_steps import is_step_end, logs_now, planned_steps


class ProgressBar(ProgressBarBase):
    """Progress bars on a terminal; otherwise, for example in a log file or a notebook, lines.

    A line is printed at a logged step, at most one every ``seconds``. The values are those that
    were logged last, so reading them does not wait for the device.
    """

    def __init__(self, seconds: float = 10.0):
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._bar: tqdm | None = None
        self._validation_bar: tqdm | None = None

    def disable(self) -> None:
        """Show nothing. The Trainer calls this on all ranks except the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the size of the run, and open the bar at the step from which training starts."""
        self._total = planned_steps(trainer)
        self._first = self._reference_step = trainer.global_step
        self._reference_time = self._last_line_time = float("-inf")
        if not self._enabled:
            return
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        parameters = sum(size for size, _ in sizes)
        trained = sum(size for size, trains in sizes if trains)
        share = "" if trained == parameters else f"{trained:,} of "
        tokens = (
            getattr(getattr(trainer, "datamodule", None), "global_batch_tokens", None) or 0
        ) * (self._total or 0)
        end = self._total or "the end"
        said = f"training {share}{parameters:,} parameters, step {self._first} to {end}"
        self._print(said + (f" ({tokens:,} tokens)" if tokens else "") + f", {trainer.precision}")
        if is_terminal(sys.stderr):
            self._bar = tqdm(
                total=self._total,
                initial=self._first,
                desc="fit",
                unit="step",
                dynamic_ncols=True,
                mininterval=0.5,
            )

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance by whole optimizer steps."""
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if logs_now(trainer):
                self._bar.set_postfix_str(_summary(trainer), refresh=False)
        elif self._enabled and is_step_end(trainer, batch_idx) and logs_now(trainer):
            now = time.monotonic()
            if now - self._last_line_time >= self.seconds:
                left = self._time_left(step, now)
                self._last_line_time = now
                self._print(
                    f"step {step}{f'/{self._total}' if self._total else ''}{left} "
                    f"{_summary(trainer)}"
                )

    def _time_left(self, step: int, now: float) -> str:
        """Time left, from the pace since the first line.

        Steps before the first line are not representative: they also compile and allocate memory.
        """
        if self._reference_time == float("-inf"):
            self._reference_step, self._reference_time = step, now
            return ""
        if self._total is None:
            return ""
        pace = (now - self._reference_time) / (step - self._reference_step)
        return f", {pace * (self._total - step):.0f} s left"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a bar for the validation."""
        if self._enabled and is_terminal(sys.stderr) and not trainer.sanity_checking:
            total = sum(n for n in trainer.num_val_batches if n != float("inf"))
            self._validation_bar = tqdm(
                total=int(total), desc="validate", unit="batch", leave=False
            )

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Advance the bar of the validation."""
        if self._validation_bar is not None:
            self._validation_bar.update()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the result on a separate line."""
        if self._validation_bar is not None:
            self._validation_bar.close()
            self._validation_bar = None
        if self._enabled and trainer.state.fn == "fit" and not trainer.sanity_checking:
            known = trainer.callback_metrics
            shown = [
                f"{k}={float(known[k]):.4f}"
                for k in ("val_loss", "val_bits_per_byte")
                if k in known
            ]
            self._print(f"step {trainer.global_step}: validation {' '.join(shown)}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bars, so that the error message is on a separate line."""
        self._close()

    def _print(self, line: str) -> None:
        try:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()
        except OSError:
            # The reader of stderr is gone. Training continues without output.
            self._enabled = False

    def _close(self) -> None:
        for bar in (self._bar, self._validation_bar):
            if bar is not None:
                bar.close()
        self._bar = self._validation_bar = None


def _summary(trainer: L.Trainer) -> str:
    """The last logged loss and tokens per second, which are already numbers on the host."""
    metrics = trainer.logged_metrics
    parts = []
    if "train_loss" in metrics:
        parts.append(f"loss={float(metrics['train_loss']):.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{float(metrics['tokens_per_second']):,.0f} tok/s")
    return " ".join(parts)
