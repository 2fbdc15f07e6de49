"""Signals that ask a run to stop: noted when they come, acted on where an optimizer step ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import Any

import lightning as L
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_llm.lightning_internals import requeueing_slurm, restore_sigterm, silence_sigterm


class StopSignals:
    """Handlers for SIGTERM and SIGINT during a fit.

    A second SIGINT stops at once: the first one gives it back. One that is ignored, as a script's
        shell has its
    background jobs do, stays so: Ctrl-C is for whatever runs in the foreground. Outside of the main
        thread, where
    Python sets no handlers, nothing is caught.

    Attributes:
        asked: number of the signal that came last, 0 if none did.
        requeues: number of the signal after which the run itself asks SLURM to requeue its job;
            None outside of SLURM.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.requeues: int | None = None
        self._slurm: SLURMEnvironment | None = None
        self._before: dict[int, Any] = {}
        self._trainer: L.Trainer | None = None  # whose answer to SIGTERM is silenced

    def catch(self, trainer: L.Trainer, number: int) -> None:
        """Note this signal from now on."""
        if threading.current_thread() is not threading.main_thread() or number in self._before:
            return
        if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            return
        if number == signal.SIGTERM:
            self._trainer = trainer
            silence_sigterm(trainer)
        self._before[number] = signal.signal(number, self._note)

    def catch_requeue(self, trainer: L.Trainer) -> None:
        """In a job of SLURM, note the signal that has Lightning save and requeue the job (SIGUSR1).

        Lightning would save within the handler, at another place in each process, and under a name
        that ``--ckpt_path`` does not look for.
        """
        environment = requeueing_slurm(trainer)
        if environment is not None:
            assert environment.requeue_signal is not None
            environment.auto_requeue = False  # the Trainer then sets no handler
            self._slurm, self.requeues = environment, environment.requeue_signal
            self.catch(trainer, self.requeues)

    def give_back(self) -> None:
        """Give all signals back to whoever had them."""
        if self._slurm is not None:
            self._slurm.auto_requeue, self._slurm = True, None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._trainer is not None and signal.SIGTERM in self._before:
            restore_sigterm(self._trainer, self._before)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        self.asked = number
        if number == signal.SIGINT:
            signal.signal(number, self._before.pop(number))
            rank_zero_info("stopping after this step; Ctrl-C again stops at once")


def requeue() -> str:
    """Ask SLURM to requeue this job; returns what became of it.

    SLURM may end this process before the call returns.
    """
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{' '.join(command)}: {error.strerror}"
    return done.stderr.strip() if done.returncode else f"requeued job {command[-1]}"
