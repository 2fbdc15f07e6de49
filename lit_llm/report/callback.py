"""RunReport: callback that writes run.json during a fit and report.html at its end."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

import lit_llm
from lit_llm.io.atomic import write_text
from lit_llm.models.accounting.flops import peak_flops
from lit_llm.models.accounting.hardware import accelerator_of
from lit_llm.models.kernels.cpu_threads import usable_cores
from lit_llm.report.html import write_report
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.training.callbacks.throughput import compute_dtype

USD_PER_CPU_CORE_HOUR = 0.04


RANGES: dict[str, Range] = {
    "usd_per_hour": positive(1e6),
}  # fmt: skip
"""Ranges of the numbers of `RunReport`."""


class RunReport(L.Callback):
    """Writes ``run.json`` from the first step on, and ``report.html`` at the end.

    The report is also written when a run fails or is stopped. The callback works with any module.
    Facts that a module or data module does not provide are left out.

    Args:
        usd_per_hour: price of all devices together. None: typical rent of the device
            (models/accounting/hardware.csv), times their number; nothing where that has no price.
    """

    def __init__(self, usd_per_hour: float | None = None):
        check_ranges(locals(), RANGES, "report.")
        self.usd_per_hour = usd_per_hour

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collect the facts known before training, and the time spent before a resume."""
        self.folder = Path(trainer.default_root_dir)
        self._began = time.monotonic()
        earlier = self._earlier()
        self._seconds_before = float(earlier.get("seconds", 0.0)) if trainer.global_step else 0.0
        device = trainer.strategy.root_device
        peak, source = peak_flops(device, compute_dtype(str(trainer.precision)))
        data: Any = getattr(trainer, "datamodule", None)
        batch = getattr(data, "global_batch_tokens", None)
        steps = getattr(data, "steps", None)
        self._batch = batch or 0
        command = " ".join([Path(sys.argv[0]).name, *map(_quoted, sys.argv[1:])])
        resumed: list[dict[str, Any]] = []
        if trainer.global_step:
            before = earlier.get("resumed")
            resumed = before if isinstance(before, list) else []
            resumed = [*resumed, {"step": trainer.global_step, "command": command}]
        self.facts: dict[str, Any] = {
            "name": self.folder.name,
            "started": earlier.get("started")
            if trainer.global_step
            else datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": sum(p.numel() for p in pl_module.parameters()),
            "parameters_trained": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "flops_per_token": getattr(pl_module, "flops_per_token", None),
            "peak_flops": peak,
            "peak_flops_source": source,
            "device": _device_name(device),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "usd_per_hour": self.usd_per_hour
            if self.usd_per_hour is not None
            else _price(device, trainer.world_size),
            "tokens_planned": batch * steps if batch and steps else None,
            # The command of the first start. Commands of resumes are in "resumed".
            "command": earlier.get("command", command) if trainer.global_step else command,
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": L.__version__,
                "lit_llm": lit_llm.__version__,
                "os": platform.platform(),
                "cpu": _cpu_name(),
            },
            "git": _git_commit(),
            "resumed": resumed,
            "resumes": int(earlier.get("resumes", 0)) + 1 if trainer.global_step else 0,
        }
        if trainer.is_global_zero:
            card = getattr(data, "datacard_file", None)
            self.folder.mkdir(parents=True, exist_ok=True)
            if card is not None:
                shutil.copyfile(card, self.folder / "datacard.json")
        self._save(trainer, "running")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the elapsed time, so that the report of a killed run has it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer, "running")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write the report with the facts so far."""
        if hasattr(self, "facts"):
            # A full disk may have caused the exception. A second error must not hide it.
            with contextlib.suppress(OSError):
                self._save(trainer, "interrupted")
                self._write(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the report after the loggers wrote their last values."""
        if stage == "fit" and hasattr(self, "facts") and not trainer.interrupted:
            self._save(trainer, "finished")
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            rank_zero_info(f"wrote {write_report(self.folder)}")

    def _earlier(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _save(self, trainer: L.Trainer, status: str) -> None:
        if not trainer.is_global_zero:
            return
        self.facts |= {
            "status": status,
            "seconds": self._seconds_before + time.monotonic() - self._began,
            "tokens": trainer.global_step * self._batch,
        }
        write_text(self.folder / "run.json", json.dumps(self.facts, indent=2) + "\n")


def _quoted(word: str) -> str:
    """Quote a word of the command for a shell; of ``--option=value`` quote the value only."""
    option, equals, value = word.partition("=")
    if word.startswith("--") and equals and shlex.quote(option) == option:
        return f"{option}={shlex.quote(value)}"
    return shlex.quote(word)


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{usable_cores()} CPU cores"
    )


def _price(device: torch.device, world_size: int) -> float | None:
    if device.type != "cuda":
        return USD_PER_CPU_CORE_HOUR * usable_cores()
    # The planner's table: a run costs what its plan said.
    accelerator = accelerator_of(torch.cuda.get_device_name(device))
    if accelerator is None or accelerator.usd is None:
        return None
    return accelerator.usd * world_size


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the git checkout in the working directory; None if there is none."""
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
