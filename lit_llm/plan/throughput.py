"""GPU-hours of a training run: a model of two fitted numbers, its fit to published runs, and how
far off it is.

A run takes the time of its FLOPs at the best rate that the accelerator's products were ever
measured at, times an overhead, over the share of the time that failures leave:

    hours = FLOPs / attainable * (local / precision gain + outside * chip * network + traffic) /
    goodput

- ``local``, fitted: all that a GPU does besides products at full rate, on one machine.
- ``network``, fitted: communication that is not hidden. It grows with the chip's rate (links did
  not grow with it), with the share of the GPUs that lies outside a node of 8 (without direct links:
  of all others), and falls with the width: a layer of width d computes d^2 per token for d of
  communication.
- ``traffic``, not fitted: a layer stores 34 d bytes a token (arXiv:2205.05198, with
  FlashAttention), each moved about four times, for 72 d^2 FLOPs; the accelerator's FLOPs per byte
  say what that costs.

Nothing else is fitted: published runs scatter by a third around any formula (benchmarks/planner.py
    shows each).
"""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_llm.models.accounting.hardware import Accelerator, find_accelerator
from lit_llm.plan.goodput import goodput
from lit_llm.plan.shape import typical_shape

NODE = 8
"""GPUs that are linked directly."""
_REFERENCE = "a100-80gb"
"""``network`` is in units of this chip's peak rate and a width of 1000."""
_TRAFFIC = 34 * 4 / 72
_FP8_GAIN = 1.2
"""End-to-end gain of training in fp8: nanochat 1.17, llm-foundry 1.31 to 1.35, torchtitan 1.28
(reports of bfloat16 against fp8 in one code)."""
_FLOOR = 0.15
"""Residuals in log GPU-hours below this weigh alike in the robust fit: smaller than the rounding of
the reports."""


@dataclass(frozen=True)
class Job:
    """What a run's GPU-hours depend on."""

    active_params: float
    """Parameters that a token passes; the width is taken from them, as most reports name no
    other."""
    flops: float
    """Of the whole training."""
    accelerator: Accelerator
    gpus: float
    fp8: bool = False
    reliable: bool = False
    """Hours counted as time of steps, without failures and pauses."""


@dataclass(frozen=True)
class PublishedRun:
    """A row of ``published_runs.csv``."""

    name: str
    family: str
    job: Job
    gpu_hours: float


@dataclass(frozen=True)
class Throughput:
    """The fitted model."""

    local: float
    network: float
    spread: float
    """80% of published runs of families left out of the fit were within a factor of exp(spread)."""

    def gpu_hours(self, job: Job) -> float:
        """Point estimate (the median run), for the whole run."""
        local, network, traffic = _features(job)
        return _ideal_hours(job) * (self.local * local + self.network * network + traffic)

    def calibrated(
        self, mfu: float, active_params: float, accelerator: Accelerator, fp8: bool
    ) -> Throughput:
        """The model whose steps on one node have the MFU that was measured there."""
        local, _, traffic = _features(Job(active_params, 1.0, accelerator, NODE, fp8))
        wanted = accelerator.attainable_flops / (accelerator.peak_flops * mfu)
        return Throughput(max(0.0, wanted - traffic) / local, self.network, self.spread)

    def mfu(self, job: Job) -> float:
        """FLOPs over peak, failures and pauses included."""
        return job.flops / (self.gpu_hours(job) * 3600 * job.accelerator.peak_flops)


def usual_gpus(flops: float) -> int:
    """How many GPUs runs of this size have used, in whole nodes.

    One node up to 4e19 FLOPs, growing with the square root, 125,000 nodes at most.
    """
    return NODE * min(125_000, max(1, int(math.sqrt(flops / 1e19))))


@functools.cache
def published_runs() -> tuple[PublishedRun, ...]:
    """The runs the model is fitted to. Where a report names no number of GPUs, `usual_gpus` stands
    for it."""
    runs = []
    with open(Path(__file__).with_name("published_runs.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            params = float(row["active_params"])
            flops = typical_shape(params).training_flops(float(row["tokens"]), int(row["seq_len"]))
            job = Job(
                params, flops, find_accelerator(row["accelerator"]),
                float(row["count"] or usual_gpus(flops)), fp8=row["precision"] == "fp8",
                reliable=row["basis"] == "steps",
            )  # fmt: skip
            runs.append(PublishedRun(row["model"], row["family"], job, float(row["gpu_hours"])))
    return tuple(runs)


@functools.cache
def fitted(leave_out: str | None = None) -> Throughput:
    """The model fitted to all published runs but those of the family ``leave_out``.

    ``spread`` is what the same fit misses families by that are left out of it in turn, each family
    weighing alike.
    """
    runs = [run for run in published_runs() if run.family != leave_out]
    errors, weights = [], []
    for family in sorted({run.family for run in runs}):
        others = _fit([run for run in runs if run.family != family])
        members = [run for run in runs if run.family == family]
        errors += [abs(math.log(others.gpu_hours(run.job) / run.gpu_hours)) for run in members]
        weights += [1 / len(members)] * len(members)
    model = _fit(runs)
    return Throughput(model.local, model.network, _quantile(errors, weights, 0.8))


def _fit(runs: list[PublishedRun]) -> Throughput:
    """Least absolute error in log GPU-hours, by reweighted Gauss-Newton steps; a family of n runs
    weighs sqrt(n)."""
    features = np.array([_features(run.job) for run in runs])
    target = np.log([run.gpu_hours / _ideal_hours(run.job) for run in runs])
    size = {
        family: sum(run.family == family for run in runs) for family in {run.family for run in runs}
    }
    weight = np.array([size[run.family] ** -0.5 for run in runs])
    fitted = np.array([2.0, 1.0])
    for _ in range(60):
        predicted = features[:, :2] @ fitted + features[:, 2]
        error = target - np.log(predicted)
        rows = features[:, :2] / predicted[:, None]
        w = weight / np.maximum(np.abs(error), _FLOOR)
        step = np.linalg.lstsq(rows * np.sqrt(w)[:, None], error * np.sqrt(w), rcond=None)[0]
        fitted = np.maximum(fitted + 0.5 * step, 1e-3)
    return Throughput(float(fitted[0]), float(fitted[1]), math.nan)


def _features(job: Job) -> tuple[float, float, float]:
    """What ``local`` and ``network`` are multiplied by, and ``traffic``."""
    width = typical_shape(job.active_params).width
    chip = job.accelerator.peak_flops / find_accelerator(_REFERENCE).peak_flops
    outside = max(0.0, 1 - (NODE if job.accelerator.linked else 1) / job.gpus)
    return (
        1 / (_FP8_GAIN if job.fp8 else 1.0),
        outside * chip * 1000 / width,
        _TRAFFIC * job.accelerator.ridge / width,
    )


def _ideal_hours(job: Job) -> float:
    share = 1.0 if job.reliable else goodput(job.gpus).share
    return job.flops / (job.accelerator.attainable_flops * 3600) / share


def _quantile(values: list[float], weights: list[float], share: float) -> float:
    """The least value at or below which lies ``share`` of the weight."""
    order = np.argsort(values)
    below = np.cumsum(np.array(weights)[order]) / sum(weights)
    return float(np.array(values)[order][np.searchsorted(below, share - 1e-9)])
