"""The same corpus from Daft on this machine and on a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_kills import content
from test_pipeline import messy  # noqa: F401 (a fixture)

from lit_llm.cli import main


@pytest.mark.slow
def test_two_workers_of_a_ray_cluster_make_the_same(messy: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed here; make test-all installs it")
    args = ["--input", str(messy), "--vocab_size", "300", "--part_bytes", "4000", "--output"]
    script = Path(__file__).with_name(
        "on_ray.py"
    )  # a process of its own: Daft's runner is chosen once
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(script), *args, str(tmp_path / "ray")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "ray")
    for workers in ("1", "2"):
        assert main(["corpus", "build", *args, str(tmp_path / workers), "--workers", workers]) == 0
        assert content(tmp_path / workers) == content(tmp_path / "ray")
