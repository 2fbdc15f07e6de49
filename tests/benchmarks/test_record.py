"""Where a benchmark's figures are written, and what is said of their origin."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import record


@pytest.mark.parametrize(
    ("model", "flags", "name"),
    [
        ("AMD EPYC", "avx512_bf16", "amd-epyc"),
        ("AMD EPYC 7B13 64-Core Processor", "avx2", "amd-epyc-7b13"),
        ("Intel(R) Xeon(R) Processor", "avx512f amx_bf16 amx_tile", "intel-xeon-amx"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "avx2", "intel-xeon"),
    ],
)
def test_machine_name(monkeypatch: pytest.MonkeyPatch, model: str, flags: str, name: str) -> None:
    monkeypatch.setattr(record, "_cpu", {"model name": model, "flags": flags}.__getitem__)
    assert record.machine_name() == f"{name}-{os.cpu_count()}-cores"


def test_each_machine_keeps_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    for machine, speed in (("one", 1), ("two", 2), ("one", 3)):
        monkeypatch.setattr(record, "machine_name", lambda machine=machine: machine)
        record.write_result("step", {"speed": speed})
    speeds = {
        file.parent.name: json.loads(file.read_text())["speed"]
        for file in tmp_path.rglob("step.json")
    }
    assert speeds == {"one": 3, "two": 2}


def test_commit_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert record.commit(tmp_path) == "unknown"

    def none(*args: Any, **kwargs: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", none)
    assert record.commit(tmp_path) == "unknown"
