"""GPU-hours of a training run: a formula with two fitted numbers, and its uncertainty.

The ideal time of a run is its FLOPs divided by the best measured rate of matrix products on the
accelerator. This time is multiplied by an overhead, and divided by the share of time that failures
leave:

    hours = FLOPs / attainable * (local / precision gain + outside * chip * network + traffic) /
    goodput

- ``local``, fitted: all work of a GPU on one machine except products at full rate.
- ``network``, fitted: communication that does not overlap with computation. It grows with the
  chip's rate (links did not grow with it), and with the share of the GPUs outside a node of 8
  (without direct links: of all other GPUs). It falls with the width: a layer of width d computes
  d^2 per token for d of communication.
- ``traffic``, not fitted: a layer stores 34 d bytes per token (arXiv:2205.05198, with
  FlashAttention), each moved about four times, for 72 d^2 FLOPs. The accelerator's ratio of FLOPs
  to bytes gives the time.

In float32 products are slower (`Accelerator.fp32_share`), and activations and what is communicated
have twice the bytes.

More fitted numbers would not help: published runs scatter by a third around any formula
(benchmarks/planner.py shows each).
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
from lit_llm.plan.memory import Precision
from lit_llm.plan.shape import typical_shape

NODE = 8
"""GPUs with direct links between them."""
_REFERENCE = "a100-80gb"
"""``network`` is in units of this chip's peak rate and a width of 1000."""
_TRAFFIC = 34 * 4 / 72
_FP8_GAIN = 1.2
"""End-to-end gain of training in fp8.

nanochat 1.17, llm-foundry 1.31 to 1.35, torchtitan 1.28 (reports of bfloat16 against fp8 in one
code).
"""
_FLOOR = 0.15
"""Residuals in log GPU-hours below this have equal weight in the robust fit.

Smaller residuals are below the rounding of the reports.
"""


@dataclass(frozen=True)
class Job:
    """Facts that a run's GPU-hours depend on."""

    active_params: float
    """Parameters that a token uses. The width is derived from it: most reports give no width."""
    flops: float
    """FLOPs of the whole training."""
    accelerator: Accelerator
    gpus: float
    precision: Precision = "bf16"
    reliable: bool = False
    """Hours count steps only, without failures and pauses."""


@dataclass(frozen=True)
class PublishedRun:
    """A row of ``published_runs.csv``."""

    name: str
    family: str
    job: Job
    gpu_hours: float


@dataclass(frozen=True)
class Throughput:
    """The fitted formula."""

    local: float
    network: float
    spread: float
    """80% of published runs were within a factor of exp(spread), each with its family left out."""

    def gpu_hours(self, job: Job) -> float:
        """Point estimate (the median run) of the whole run's GPU-hours."""
        local, network, traffic = _features(job)
        return _ideal_hours(job) * (self.local * local + self.network * network + traffic)

    def calibrated(
        self, mfu: float, active_params: float, accelerator: Accelerator, precision: Precision
    ) -> Throughput:
        """Replace ``local`` so that one node reaches the MFU that was measured there."""
        local, _, traffic = _features(Job(active_params, 1.0, accelerator, NODE, precision))
        wanted = accelerator.attainable_flops / (accelerator.peak_flops * mfu)
        return Throughput(max(0.0, wanted - traffic) / local, self.network, self.spread)

    def mfu(self, job: Job) -> float:
        """FLOPs divided by peak FLOPs, including failures and pauses."""
        return job.flops / (self.gpu_hours(job) * 3600 * job.accelerator.peak_flops)


def usual_gpus(flops: float) -> int:
    """Typical number of GPUs for a run of this size, in whole nodes.

    One node up to 4e19 FLOPs, then growing with the square root, at most 125,000 nodes.
    """
    return NODE * min(125_000, max(1, int(math.sqrt(flops / 1e19))))


@functools.cache
def published_runs() -> tuple[PublishedRun, ...]:
    """The runs that the formula is fitted to.

    If a report gives no number of GPUs, `usual_gpus` replaces it.
    """
    runs = []
    with open(Path(__file__).with_name("published_runs.csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            params = float(row["active_params"])
            flops = typical_shape(params).training_flops(float(row["tokens"]), int(row["seq_len"]))
            job = Job(
                params, flops, find_accelerator(row["accelerator"]),
                float(row["count"] or usual_gpus(flops)),
                precision="fp8" if row["precision"] == "fp8" else "bf16",  # bf16 is as fast as fp16
                reliable=row["basis"] == "steps",
            )  # fmt: skip
            runs.append(PublishedRun(row["model"], row["family"], job, float(row["gpu_hours"])))
    return tuple(runs)


@functools.cache
def fitted(leave_out: str | None = None) -> Throughput:
    """Fit the formula to all published runs except those of the family ``leave_out``.

    ``spread`` comes from cross-validation: each family is left out in turn, and the error of the
    fit on this family is taken. Each family has equal weight.
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
    """Minimize the absolute error in log GPU-hours by reweighted Gauss-Newton steps.

    A family of n runs has the weight sqrt(n).
    """
    features = np.array([_features(run.job) for run in runs])
    target = np.log([run.gpu_hours / _ideal_hours(run.job) for run in runs])
    size = {
        family: sum(run.family == family for run in runs) for family in {run.family for run in runs}
    }
    weight = np.array([size[run.family] ** -0.5 for run in runs])
    fitted = np.array([2.0, 1.0])
    # Each step solves a weighted least-squares problem in the log of the predicted hours. Weights
    # 1/|error| turn squared errors into absolute ones. Half steps keep the iteration stable.
    for _ in range(60):
        predicted = features[:, :2] @ fitted + features[:, 2]
        error = target - np.log(predicted)
        rows = features[:, :2] / predicted[:, None]
        w = weight / np.maximum(np.abs(error), _FLOOR)
        step = np.linalg.lstsq(rows * np.sqrt(w)[:, None], error * np.sqrt(w), rcond=None)[0]
        fitted = np.maximum(fitted + 0.5 * step, 1e-3)
    return Throughput(float(fitted[0]), float(fitted[1]), math.nan)


def _features(job: Job) -> tuple[float, float, float]:
    """The factors of ``local`` and ``network``, and ``traffic``."""
    width = typical_shape(job.active_params).width
    chip = job.accelerator.peak_flops / find_accelerator(_REFERENCE).peak_flops
    outside = max(0.0, 1 - (NODE if job.accelerator.linked else 1) / job.gpus)
    gain = {"bf16": 1.0, "fp8": _FP8_GAIN, "fp32": job.accelerator.fp32_share}[job.precision]
    moved = 2.0 if job.precision == "fp32" else 1.0  # bytes, in units of those of 16 bits
    return (
        1 / gain,
        moved * outside * chip * 1000 / width,
        moved * _TRAFFIC * job.accelerator.ridge / width,
    )


def _ideal_hours(job: Job) -> float:
    share = 1.0 if job.reliable else goodput(job.gpus).share
    return job.flops / (job.accelerator.attainable_flops * 3600) / share


def _quantile(values: list[float], weights: list[float], share: float) -> float:
    """The smallest value such that values up to it have ``share`` of the weight."""
    order = np.argsort(values)
    below = np.cumsum(np.array(weights)[order]) / sum(weights)
    return float(np.array(values)[order][np.searchsorted(below, share - 1e-9)])
