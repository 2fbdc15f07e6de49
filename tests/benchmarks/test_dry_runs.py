"""Benchmarks run end to end on tiny shapes; what they write is kept for real runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "said"),
    [("decode.py", "transformers eager"), ("load.py", "peak memory ratio"), ("cpu_step.py", "floor")],
)
def test_dry_run(script: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--dry-run"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and "wrote" not in done.stdout
