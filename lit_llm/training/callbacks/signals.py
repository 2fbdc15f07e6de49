"""Handlers for signals that ask a run to stop after the current optimizer step."""

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
    """Handlers for SIGTERM and SIGINT during a fit. They only record the signal.

    A second SIGINT stops at once, because the first one restores the previous handler. If SIGINT is
    ignored, as in background jobs of a shell script, it stays ignored: Ctrl-C is meant for the
    foreground process. Outside of the main thread Python cannot set handlers, and no signal is
    caught.

    Attributes:
        asked: number of the last signal, 0 if there was none.
        requeues: number of the signal after which the run asks SLURM to requeue its job; None
            outside of SLURM.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.requeues: int | None = None
        self._slurm: SLURMEnvironment | None = None
        self._before: dict[int, Any] = {}
        self._trainer: L.Trainer | None = None  # its own handler of SIGTERM is off

    def catch(self, trainer: L.Trainer, number: int) -> None:
        """Record this signal from now on."""
        if threading.current_thread() is not threading.main_thread() or number in self._before:
            return
        if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
            return
        if number == signal.SIGTERM:
            self._trainer = trainer
            silence_sigterm(trainer)
        self._before[number] = signal.signal(number, self._record)

    def catch_requeue(self, trainer: L.Trainer) -> None:
        """In a SLURM job, record the signal at which Lightning saves and requeues (SIGUSR1).

        Lightning would save inside the handler, which runs at a different place in each process,
        and under a file name that ``--ckpt_path`` does not look for.
        """
        environment = requeueing_slurm(trainer)
        if environment is not None:
            assert environment.requeue_signal is not None
            environment.auto_requeue = False  # the Trainer then sets no handler
            self._slurm, self.requeues = environment, environment.requeue_signal
            self.catch(trainer, self.requeues)

    def give_back(self) -> None:
        """Restore the previous handlers of all signals."""
        if self._slurm is not None:
            self._slurm.auto_requeue, self._slurm = True, None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._trainer is not None and signal.SIGTERM in self._before:
            restore_sigterm(self._trainer, self._before)
        self._before = {}

    def _record(self, number: int, frame: Any) -> None:
        self.asked = number
        if number == signal.SIGINT:
            signal.signal(number, self._before.pop(number))
            rank_zero_info("stopping after this step; Ctrl-C again stops at once")


def requeue() -> str:
    """Ask SLURM to requeue this job, and return a message with the result.

    SLURM may end this process before the call returns.
    """
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{' '.join(command)}: {error.strerror}"
    return done.stderr.strip() if done.returncode else f"requeued job {command[-1]}"
