"""`plan`: computes a run's missing quantities from the given ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lit_llm.errors import UserError
from lit_llm.models.accounting.hardware import accelerators, find_accelerator
from lit_llm.plan import scaling
from lit_llm.plan.cost import token_bytes
from lit_llm.plan.goodput import goodput
from lit_llm.plan.memory import Optimizer, Precision, Quantization, Setup
from lit_llm.plan.parallelism import Parallelism, check_fits, fewest_gpus
from lit_llm.plan.shape import ModelShape, shape_of, typical_shape
from lit_llm.plan.throughput import NODE, Job, Throughput, fitted, usual_gpus
from lit_llm.settings.ranges import Range, check_ranges, positive

if TYPE_CHECKING:
    from lit_llm.models.config import TransformerConfig

MOST_GPUS = 1_000_000
RANGES: dict[str, Range] = {
    "params": positive(1e15), "total_params": positive(1e16), "tokens": positive(1e18),
    "seq_len": Range(1, 1e9), "gpus": Range(1, MOST_GPUS), "days": positive(1e5),
    "budget": positive(1e13), "gpu_hours": positive(1e12), "usd_per_hour": positive(1e6),
    "batch_tokens": positive(1e12), "tokens_per_param": positive(1e6),
    "inference_tokens": positive(1e20), "mfu": positive(1.0),
}  # fmt: skip
"""Ranges of the numbers that `plan` takes."""


@dataclass(frozen=True)
class Plan:
    """A planned run and its cost. Low and high values are 80% intervals."""

    params: float
    total_params: float
    tokens: float
    seq_len: int
    batch_tokens: float
    flops: float
    expected_loss: float
    """By the scaling law, in nats per token of its paper's text; for comparing plans."""
    gpu: str
    gpus: int
    gpu_hours: float
    gpu_hours_low: float
    gpu_hours_high: float
    days: float
    days_low: float
    days_high: float
    usd: float | None
    usd_low: float | None
    usd_high: float | None
    usd_per_hour: float | None
    usd_spot: float | None
    """At the lowest known price per hour."""
    price_source: str
    mfu: float
    """Over the whole run, including failures and pauses."""
    tokens_per_second: float
    memory_gb: float
    gpu_memory_gb: float
    parallelism: str
    parallelism_reason: str
    micro_batch_size: int
    accumulation: int
    goodput: float
    hours_between_failures: float
    checkpoint_minutes: float
    checkpoint_gb: float
    corpus_gb: float
    data_mb_per_second: float
    solved_for: str


def plan(
    *,
    params: float | None = None,
    total_params: float | None = None,
    config: TransformerConfig | None = None,
    tokens: float | None = None,
    seq_len: int = 4096,
    gpu: str = "h100",
    gpus: int | None = None,
    days: float | None = None,
    budget: float | None = None,
    gpu_hours: float | None = None,
    usd_per_hour: float | None = None,
    precision: Precision = "bf16",
    optimizer: Optimizer = "adamw",
    batch_tokens: float | None = None,
    tokens_per_param: float | None = None,
    inference_tokens: float | None = None,
    lora: bool = False,
    quantize: Quantization | None = None,
    mfu: float | None = None,
    leave_out: str | None = None,
) -> Plan:
    """Plan a run: its cost, or the model and tokens that given means pay for.

    The inputs are the model, the tokens, and the means (``gpus``, ``days``, ``budget``,
    ``gpu_hours``). Give two or three of them:

    - Model and tokens are given: the means are computed. ``days``, ``budget`` and ``gpu_hours`` are
      limits that must hold.
    - One or none of model and tokens is given, with limits: the rest is as large as the tightest
      limit allows. If both are open, the scaling law (`scaling`) or ``tokens_per_param`` decides
      the split.
    - One of model and tokens is given, without limits: the other one is compute-optimal.

    Args:
        params: parameters that a token uses.
        total_params: parameters with all experts.
        config: config of a known model, instead of ``params``.
        tokens: training tokens, repetitions included.
        seq_len: length of the training sequences in tokens.
        gpu: a name in hardware.csv.
        gpus: number of GPUs. None: the number that ``days`` requires, or a typical number for the
            size of the run.
        days, budget, gpu_hours: limits; budget in dollars.
        usd_per_hour: price of one GPU. None: the typical price in hardware.csv.
        precision, optimizer, lora, quantize: of the training, see `Setup`.
        batch_tokens: tokens per optimizer step. None: `scaling.usual_batch_tokens`.
        tokens_per_param: training tokens per parameter, instead of the scaling law.
        inference_tokens: tokens that the model will process in use. The split then has the fewest
            FLOPs over training and use (`scaling.inference_aware`).
        mfu: MFU measured on one node, which replaces the fitted one. The interval then covers the
            uncertainty of communication only.
        leave_out: a family of published runs to leave out of the fit.

    Raises:
        UserError: too little is given, or the given quantities contradict each other, or the run
            does not fit.
    """
    check_ranges(locals(), RANGES)
    accelerator = find_accelerator(gpu)
    rate = usd_per_hour or accelerator.usd
    if budget is not None and rate is None:
        raise UserError(f"budget: no price of {accelerator.name} is known; give usd_per_hour")
    if precision == "fp8" and accelerator.fp8_flops is None:
        raise UserError(f"precision=fp8: {accelerator.name} has no fp8 products; use bf16")
    if quantize is not None and not lora:
        raise UserError(f"quantize={quantize}: quantised weights are frozen; it needs lora")
    if total_params is not None and (params is None or total_params < params):
        raise UserError(
            "total_params counts all experts: give params, the active ones, too, and no more of "
            "them than total_params"
        )
    if config is not None and params is not None:
        raise UserError("params: the config says how many the model has; give one of the two")
    known = shape_of(config, seq_len) if config is not None else None
    if known is not None:
        params = known.active_params
    model = fitted(leave_out)
    if leave_out is not None and model == fitted():
        raise UserError(f"leave_out={leave_out}: no such family among the published runs")

    def shape_with(n: float) -> ModelShape:
        return known or typical_shape(n, total_params)

    def job(n: float, d: float, count: float) -> Job:
        flops = shape_with(n).training_flops(d, seq_len, lora)
        return Job(n, flops, accelerator, count, precision)

    if mfu is not None:
        model = model.calibrated(mfu, params or 1e9, accelerator, precision)
    means = _Means(
        model, job, rate, gpus, days, budget, gpu_hours, params is None or tokens is None
    )
    n, d, solved = _model_and_tokens(params, tokens, tokens_per_param, inference_tokens, means)
    shape = shape_with(n)
    batch = max(float(seq_len), batch_tokens or scaling.usual_batch_tokens(job(n, d, 1).flops))
    setup = Setup(
        seq_len=seq_len, precision=precision, optimizer=optimizer, lora=lora, quantize=quantize
    )
    count = means.count(n, d)
    if gpus is None:
        count = max(count, fewest_gpus(shape, accelerator, batch, setup) or 1)
        solved = f"{solved}, gpus" if solved else "gpus"
    layout = check_fits(shape, accelerator, count, batch, setup)
    means.check(n, d, count)
    return _describe(
        model, job(n, d, count), shape, d, batch, layout, rate, solved, measured=mfu is not None
    )


_TYPICAL_MFU = 0.3
"""Converts GPU-hours to FLOPs for `usual_gpus`: about the median MFU of published runs."""


@dataclass(frozen=True)
class _Means:
    """The means of a run and the limits that they set."""

    model: Throughput
    job: Callable[[float, float, float], Job]
    rate: float | None
    gpus: int | None
    days: float | None
    budget: float | None
    gpu_hours: float | None
    open: bool
    """Model or tokens are unknown and use up all means."""

    def hours(self, n: float, d: float, count: float) -> float:
        return self.model.gpu_hours(self.job(n, d, count))

    def count(self, n: float, d: float) -> int:
        """Number of GPUs for this model and these tokens."""
        if self.gpus is not None:
            return self.gpus
        fixed = self.fixed_hours
        if self.open and fixed is not None:
            # The number depends on the hours only. If it grew with the model, affordability would
            # not be monotonic.
            if self.days is not None:
                return self._in_time(fixed)
            return usual_gpus(
                _TYPICAL_MFU * self.job(n, d, 1).accelerator.peak_flops * 3600 * fixed
            )
        if self.days is None:
            return usual_gpus(self.job(n, d, 1).flops)
        # Increase the number of nodes by 1/16 until the run ends in time.
        nodes = 1
        while self.hours(n, d, nodes * NODE) > 24 * self.days * nodes * NODE:
            nodes += max(1, nodes // 16)
            if nodes * NODE > MOST_GPUS:
                raise UserError(
                    f"days={self.days:g}: no number of GPUs is fast enough; allow more, or train "
                    f"on less"
                )
        return nodes * NODE

    def _in_time(self, hours: float) -> int:
        """GPUs (whole nodes from 8 on) that spend ``hours`` GPU-hours within ``days``."""
        assert self.days is not None
        count = math.ceil(hours / (24 * self.days))
        if count > MOST_GPUS:
            raise UserError(
                f"days={self.days:g}: to spend {hours:,.0f} GPU-hours in them takes {count:,} "
                f"GPUs; allow more days (at most {MOST_GPUS:,} GPUs are planned)"
            )
        return count if count < NODE else -(-count // NODE) * NODE

    @property
    def fixed_hours(self) -> float | None:
        """GPU-hours that the limits allow, independent of the number of GPUs."""
        limits = [self.gpu_hours, self.budget / self.rate if self.budget and self.rate else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def affords(self, n: float, d: float) -> bool:
        """Whether the limits allow this model and these tokens."""
        count = self.count(n, d)
        limits = [self.fixed_hours, 24 * self.days * count if self.days is not None else None]
        return self.hours(n, d, count) <= min(limit for limit in limits if limit is not None)

    @property
    def limited(self) -> bool:
        return any(limit is not None for limit in (self.days, self.budget, self.gpu_hours))

    def check(self, n: float, d: float, count: int) -> None:
        """Raise UserError if a limit does not hold."""
        hours = self.hours(n, d, count) * (1 - 1e-6)
        if self.days is not None and hours > 24 * self.days * count:
            raise UserError(
                f"days={self.days:g}: the run takes {hours / 24 / count:.3g} days on {count} "
                "GPUs; allow that, or leave out gpus to have their number found"
            )
        if self.gpu_hours is not None and hours > self.gpu_hours:
            raise UserError(
                f"gpu_hours={self.gpu_hours:g}: the run takes {hours:,.0f}; allow that or leave "
                f"out tokens"
            )
        if self.budget is not None and self.rate is not None and hours * self.rate > self.budget:
            raise UserError(
                f"budget={self.budget:g}: the run costs ${hours * self.rate:,.0f} at "
                f"${self.rate:g} a GPU-hour; allow that, find GPUs at "
                f"${self.budget / hours:.3g}, or leave out tokens to have their number found"
            )


def _model_and_tokens(
    params: float | None,
    tokens: float | None,
    ratio: float | None,
    inference: float | None,
    means: _Means,
) -> tuple[float, float, str]:
    """Parameters, tokens, and the names of the solved quantities."""
    if params is not None and tokens is not None:
        if ratio is not None:
            raise UserError(
                "tokens_per_param: params and tokens determine it; leave one of the three out"
            )
        return params, tokens, ""

    def pair(x: float) -> tuple[float, float]:
        """Parameters and tokens as increasing functions of x."""
        if params is not None:
            return params, x
        if tokens is not None:
            return x, tokens
        n, d = x, ratio * x if ratio else scaling.optimal_tokens(x)
        return scaling.inference_aware(n, d, inference) if inference and not ratio else (n, d)

    solved = (
        "tokens" if params is not None else "params" if tokens is not None else "params, tokens"
    )
    if not means.limited:
        if params is not None:
            return params, ratio * params if ratio else scaling.optimal_tokens(params), solved
        if tokens is not None:
            return tokens / ratio if ratio else scaling.optimal_params(tokens), tokens, solved
        raise UserError(
            "nothing to plan: give params (or a model) or tokens, or what there is: "
            "budget, gpu_hours or days with gpus"
        )
    if means.gpus is None and means.fixed_hours is None:
        raise UserError(
            "days: the GPU-hours in them depend on gpus; give gpus, budget or gpu_hours too"
        )
    # Bisect the logarithm of the free quantity: cost grows with it, so find the largest one that
    # the limits allow.
    low, high = math.log(1e6), math.log(1e16)
    if not means.affords(*pair(math.exp(low))):
        raise UserError("the limits do not pay for any training; raise budget, gpu_hours or days")
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if means.affords(*pair(math.exp(middle))) else (low, middle)
    return *pair(math.exp(low)), solved


def _describe(
    model: Throughput, job: Job, shape: ModelShape, tokens: float, batch: float,
    layout: Parallelism, rate: float | None, solved: str, measured: bool,
) -> Plan:  # fmt: skip
    count = int(job.gpus)
    hours = model.gpu_hours(job)
    if measured:
        low, high = (
            replace(model, network=model.network * math.exp(side * model.spread)).gpu_hours(job)
            for side in (-1, 1)
        )
    else:
        low, high = hours * math.exp(-model.spread), hours * math.exp(model.spread)
    run = goodput(count)
    accelerator, setup = job.accelerator, layout.setup
    rates = tokens / (hours * 3600 / count)
    # Size of a checkpoint. A LoRA checkpoint has no frozen weights and is too small to count.
    states = 0.0 if setup.lora else layout.memory.states * setup.fsdp * setup.tensor_parallel
    return Plan(
        params=job.active_params, total_params=shape.params, tokens=tokens, seq_len=setup.seq_len,
        batch_tokens=batch, flops=job.flops, expected_loss=scaling.loss(job.active_params, tokens),
        gpu=accelerator.name, gpus=count, gpu_hours=hours, gpu_hours_low=low, gpu_hours_high=high,
        days=hours / 24 / count, days_low=low / 24 / count, days_high=high / 24 / count,
        usd=_times(hours, rate), usd_low=_times(low, rate), usd_high=_times(high, rate),
        usd_per_hour=rate, usd_spot=_times(hours, accelerator.usd_low),
        price_source=accelerator.price_source, mfu=model.mfu(job), tokens_per_second=rates,
        memory_gb=layout.memory.peak / 1e9, gpu_memory_gb=accelerator.memory_bytes / 1e9,
        parallelism=layout.description, parallelism_reason=layout.reason,
        micro_batch_size=setup.micro_batch_size, accumulation=layout.accumulation,
        goodput=run.share, hours_between_failures=run.mean_hours_between_failures,
        checkpoint_minutes=run.checkpoint_hours * 60, checkpoint_gb=states / 1e9,
        corpus_gb=token_bytes(tokens, shape.vocab_size) / 1e9,
        data_mb_per_second=token_bytes(rates, shape.vocab_size) / 1e6, solved_for=solved,
    )  # fmt: skip


def _times(hours: float, rate: float | None) -> float | None:
    return None if rate is None else hours * rate


def advise(**given: object) -> tuple[list[Plan], dict[str, str]]:
    """Run `plan` for every accelerator.

    Args:
        given: arguments of `plan` without ``gpu``.

    Returns:
        Plans by increasing price, and for each other accelerator the reason why it cannot run the
            plan: name -> reason.
    """
    plans, refused = [], {}
    for name in accelerators():
        try:
            plans.append(plan(**given, gpu=name))  # type: ignore[arg-type]
        except UserError as error:
            refused[name] = str(error)
    if not plans:
        raise UserError(
            f"no known accelerator can do this; {next(iter(refused))}: "
            f"{next(iter(refused.values()))}"
        )
    return sorted(plans, key=lambda p: (p.usd is None, p.usd or 0.0)), refused
