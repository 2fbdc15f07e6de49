"""How far off the planner is: GPU-hours against published runs, memory against simulated steps,
goodput against chance.

    python benchmarks/planner.py

Each published run is predicted by a fit that has seen no run of its family (leave-one-family-out),
with the interval that such a fit gives. Memory is compared with `step_memory`, simulated and real;
goodput with runs of thousands of GPUs that fail at random.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from dataclasses import asdict

import numpy as np
from record import write_result
from step_memory import real_peak, simulated_peak

from lit_llm.models.config import TransformerConfig
from lit_llm.plan import plan
from lit_llm.plan.goodput import GPU_HOURS_PER_FAILURE, PAUSE_HOURS, RESTART_HOURS, goodput
from lit_llm.plan.memory import Setup, training_memory
from lit_llm.plan.shape import shape_of
from lit_llm.plan.throughput import fitted, published_runs

SEED_CASE = {"params": 70e9, "tokens": 2e12, "gpu": "a100-80gb", "gpus": 6000, "leave_out": "Meta"}
SEED_HOURS = 1_720_320  # Llama 2 70B's model card
STEPS = [
    ("llama-3.2-1b", {"num_layers": 4}, 4, 1024, "adamw", True),
    ("llama-3.2-1b", {}, 2, 2048, "adamw", True),
    ("llama-3.2-1b", {}, 8, 2048, "adamw", True),
    ("llama-3.2-1b", {}, 2, 2048, "adamw", False),
    ("smollm2-135m", {}, 8, 2048, "adamw", True),
    ("smollm2-135m", {}, 16, 1024, "muon_adamw", True),
    ("qwen3-0.6b", {}, 4, 4096, "adamw", True),
    ("gpt2", {}, 16, 1024, "adamw", True),
    ("gpt2", {}, 16, 1024, "adamw", False),
    ("nano-5m", {}, 8, 256, "muon_adamw", True),
    ("nanochat-d20", {}, 8, 2048, "muon_adamw", True),
    ("gemma-3-1b", {}, 2, 2048, "adamw", True),
    ("llama-3-8b", {}, 1, 8192, "adamw", True),
]


def published() -> dict[str, object]:
    """Each run's prediction, and what they come to."""
    rows = []
    for run in published_runs():
        model = fitted(run.family)
        ratio = model.gpu_hours(run.job) / run.gpu_hours
        rows.append({
            "run": run.name, "family": run.family, "gpu_hours": run.gpu_hours,
            "predicted_over_actual": ratio, "interval": math.exp(model.spread),
            "inside": abs(math.log(ratio)) <= model.spread,
        })  # fmt: skip
        print("{run:42} {gpu_hours:12,.0f} GPU-h, predicted {predicted_over_actual:.2f} of it, "
              "within {interval:.2f}x: "
              "{inside}".format(**rows[-1]))  # fmt: skip
    summary: dict[str, object] = {
        "median_absolute_error": statistics.median(
            abs(row["predicted_over_actual"] - 1) for row in rows
        ),
        "interval_covers": statistics.mean(row["inside"] for row in rows),
        "high_over_low": statistics.median(row["interval"] ** 2 for row in rows),
    }
    print("median error {median_absolute_error:.1%}; the 80% interval covers "
          "{interval_covers:.0%}; high / low "
          "{high_over_low:.2f}".format(**summary))  # fmt: skip
    return {**summary, "runs": rows}


def seed_case() -> dict[str, float]:
    """70B parameters, 2T tokens, 6,000 A100, by a fit without Meta's runs."""
    found = plan(**SEED_CASE)  # type: ignore[arg-type]
    result = {
        "gpu_hours": found.gpu_hours, "low": found.gpu_hours_low, "high": found.gpu_hours_high,
        "days": found.days, "over_published": found.gpu_hours / SEED_HOURS,
        "usd": found.usd or math.nan, "usd_at_1.16": 1.16 * found.gpu_hours,
    }  # fmt: skip
    print("70B, 2T tokens, 6,000 A100: {gpu_hours:,.0f} GPU-h ({low:,.0f} to {high:,.0f}), "
          "{days:.1f} days, {over_published:.2f} of the published hours; "
          "${usd:,.0f}".format(**result), end="")  # fmt: skip
    print(f", ${result['usd_at_1.16']:,.0f} at $1.16 a GPU-hour")
    return result


def memory() -> list[dict[str, object]]:
    """Predicted against simulated peaks."""
    rows = []
    for preset, fields, batch, seq_len, optimizer, autocast in STEPS:
        config = TransformerConfig.from_preset(preset, **fields)
        peak = simulated_peak(config, batch, seq_len, optimizer, autocast)
        precision = "bf16" if autocast else "fp32"
        setup = Setup(  # type: ignore[arg-type]
            batch, seq_len, precision, optimizer, fused_norms=False
        )
        ratio = training_memory(shape_of(config, seq_len), setup).peak / peak
        rows.append({
            "preset": preset, **fields, "micro_batch_size": batch, "seq_len": seq_len,
            "optimizer": optimizer, "precision": setup.precision, "simulated_gb": peak / 1e9,
            "predicted_over_simulated": ratio,
        })  # fmt: skip
        print("{preset:14} {micro_batch_size:3} x {seq_len}, {optimizer}, {precision}: "
              "{simulated_gb:.2f} GB, "
              "predicted {predicted_over_simulated:.3f} of it".format(**rows[-1]))  # fmt: skip
    return rows


REAL_STEPS = [
    ("smollm2-135m", {"num_layers": 10}, 4, 512, True),
    ("smollm2-135m", {"num_layers": 10}, 4, 512, False),
    ("smollm2-135m", {}, 4, 1024, True),
    ("gpt2", {}, 4, 512, True),
    ("llama-3.2-1b", {"num_layers": 2}, 1, 1024, True),
]


def real_memory() -> list[dict[str, object]]:
    """Predicted peaks against what torch allocated on this machine, and what the process grew by,
    each in its own."""
    rows = []
    for step in REAL_STEPS:
        preset, fields, batch, seq_len, autocast = step
        command = [sys.executable, __file__, "--measure", json.dumps(step)]
        peak = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
        config = TransformerConfig.from_preset(preset, **fields)
        setup = Setup(batch, seq_len, "bf16" if autocast else "fp32", fused_norms=False)
        predicted = training_memory(shape_of(config, seq_len), setup).peak
        rows.append({
            "preset": preset, **fields, "micro_batch_size": batch, "seq_len": seq_len,
            "precision": setup.precision, "allocated_gb": peak["allocated"] / 1e9,
            "predicted_over_allocated": predicted / peak["allocated"],
            "predicted_over_resident": predicted / peak["resident"],
        })  # fmt: skip
        print("{preset:14} {micro_batch_size:3} x {seq_len}, {precision}: allocated "
              "{allocated_gb:.2f} GB, predicted "
              "{predicted_over_allocated:.3f} of it, {predicted_over_resident:.3f} of the "
              "resident set".format(**rows[-1]))  # fmt: skip
    return rows


def simulated_goodput(gpus: int, hours: float, seed: int = 0) -> float:
    """Useful share of ``hours`` on machines that fail at random: trains, saves, loses what was not
    saved, restarts."""
    draw = np.random.default_rng(seed)
    mean = GPU_HOURS_PER_FAILURE / gpus
    interval = goodput(gpus).checkpoint_hours
    now = useful = 0.0
    failure = draw.exponential(mean)
    while now < hours:
        end = now + interval + PAUSE_HOURS
        if failure > end:
            now, useful = end, useful + interval
            continue
        now = failure
        failure = now + draw.exponential(mean)
        while failure < now + RESTART_HOURS:  # it can fail again before it trains
            now = failure
            failure = now + draw.exponential(mean)
        now += RESTART_HOURS
    return useful / now


def failures() -> list[dict[str, float]]:
    """Formula against chance: at the rate that Llama 3 405B was interrupted at, and at three times
    that."""
    rows = []
    for gpus in (6_000, 16_384, 3 * 16_384):
        rows.append(
            {
                "gpus": gpus,
                "formula": goodput(gpus).share,
                "simulated": simulated_goodput(gpus, 200_000),
            }
        )
        print("{gpus:,} GPUs: goodput {formula:.4f}, simulated {simulated:.4f}".format(**rows[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", metavar="STEP", help="a real step's bytes, as JSON")
    args = parser.parse_args()
    if args.measure:
        preset, fields, *step = json.loads(args.measure)
        print(json.dumps(real_peak(TransformerConfig.from_preset(preset, **fields), *step)))
        return
    model = fitted()
    result = {"fitted": asdict(model), "published": published(), "seed_case": seed_case(),
              "memory": memory(), "real_memory": real_memory(), "goodput": failures()}  # fmt: skip
    print(f"wrote {write_result('planner', result)}")


if __name__ == "__main__":
    main()
