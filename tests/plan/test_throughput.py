"""GPU-hours against published runs that the fit has not seen."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest

from lit_llm.models.accounting.hardware import find_accelerator
from lit_llm.plan import plan
from lit_llm.plan.shape import typical_shape
from lit_llm.plan.throughput import Job, fitted, published_runs, usual_gpus


def test_published_runs_of_unseen_families() -> None:
    runs = published_runs()
    ratios = [fitted(run.family).gpu_hours(run.job) / run.gpu_hours for run in runs]
    spreads = [fitted(run.family).spread for run in runs]
    assert len(runs) >= 36 and len({run.family for run in runs}) >= 12
    assert statistics.median(abs(ratio - 1) for ratio in ratios) <= 0.30
    inside = [abs(math.log(ratio)) <= spread for ratio, spread in zip(ratios, spreads, strict=True)]
    assert statistics.mean(inside) >= 0.75
    assert max(math.exp(2 * spread) for spread in spreads) <= 3


def test_the_seed_case_without_its_family() -> None:
    found = plan(params=70e9, tokens=2e12, gpu="a100-80gb", gpus=6000, leave_out="Meta")
    assert found.gpu_hours == pytest.approx(1_720_320, rel=0.25) and found.days == pytest.approx(
        12, rel=0.25
    )
    assert found.gpu_hours_low < 1_720_320 < found.gpu_hours_high
    assert found.gpu_hours != plan(params=70e9, tokens=2e12, gpu="a100-80gb", gpus=6000).gpu_hours


@pytest.mark.parametrize(
    ("run", "params", "tokens", "gpu", "gpus", "hours"),
    [  # not in the table that the model is fitted to
        ("BLOOM 176B", 176e9, 366e9, "a100-80gb", 384, 1_082_990),
        ("Llama 2 7B", 6.74e9, 2e12, "a100-80gb", None, 184_320),
        ("StarCoder 15.5B", 15.5e9, 1e12, "a100-80gb", 512, 320_256),
        ("Pythia 2.8B", 2.78e9, 3e11, "a100-40gb", 64, 14_240),
        ("MPT 7B", 6.7e9, 1e12, "a100-40gb", 440, 440 * 9.5 * 24),
        ("SmolLM3 3B", 3.08e9, 11.2e12, "h100", 384, 384 * 24 * 24),
    ],
)  # fmt: skip
def test_runs_outside_the_table(
    run: str, params: float, tokens: float, gpu: str, gpus: int | None, hours: float
) -> None:
    found = plan(params=params, tokens=tokens, gpu=gpu, gpus=gpus, seq_len=2048)
    assert found.gpu_hours_low <= hours <= found.gpu_hours_high, run


def test_directions() -> None:
    model, chip = fitted(), find_accelerator("h100")
    job = Job(7e9, typical_shape(7e9).training_flops(1e12, 4096), chip, 64)
    hours = model.gpu_hours(job)
    assert model.gpu_hours(replace(job, flops=2 * job.flops)) == pytest.approx(2 * hours)
    assert model.gpu_hours(replace(job, gpus=8)) < hours < model.gpu_hours(replace(job, gpus=4096))
    assert model.gpu_hours(replace(job, precision="fp8")) < hours
    assert model.gpu_hours(replace(job, precision="fp32")) == pytest.approx(2 * hours)
    old = replace(job, accelerator=find_accelerator("v100"))
    assert model.gpu_hours(replace(old, precision="fp32")) > 5 * model.gpu_hours(old)
    assert model.gpu_hours(replace(job, reliable=True)) < hours
    assert model.mfu(replace(job, gpus=8)) == pytest.approx(
        job.flops / model.gpu_hours(replace(job, gpus=8)) / 3600 / 989e12
    )
    assert model.calibrated(0.5, 7e9, chip, "bf16").mfu(
        replace(job, gpus=8, reliable=True)
    ) == pytest.approx(0.5)
    assert usual_gpus(1e18) == 8 and usual_gpus(1e24) > 1000
