"""How OpenMP's threads wait, and how many there are."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lit_llm.corpus.engine import Engine
from lit_llm.models.kernels import cpu_threads
from lit_llm.report.callback import _device_name

ELSEWHERE = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}


def python(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=ELSEWHERE | settings,
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "GOMP_SPINCOUNT = '3000'"),
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "passive"}, "OMP_WAIT_POLICY = 'PASSIVE'"),
        ({"OMP_WAIT_POLICY": "passive"}, "GOMP_SPINCOUNT = '0'"),
        ({"KMP_BLOCKTIME": "5"}, "GOMP_SPINCOUNT = '300000'"),
    ],
)
def test_what_openmp_reads(settings: dict[str, str], expected: str) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    libgomp = Path(spec.origin).parent / "lib" / "libgomp.so.1"
    if not libgomp.exists():
        pytest.skip("torch brings another OpenMP")
    load = f"import lit_llm, ctypes; ctypes.CDLL({str(libgomp)!r})"
    assert expected in python(load, OMP_DISPLAY_ENV="verbose", **settings).stderr


def test_it_is_known_whether_it_was_in_time() -> None:
    told = (
        "import sys; from lit_llm.models.kernels.cpu_threads import waits_as_set; "
        "print(waits_as_set)"
    )
    pretend = "import sys; sys.modules['torch'] = None; "
    assert python(told).stdout == "True\n"
    assert python(pretend + told).stdout == "False\n"
    assert python(pretend + told, GOMP_SPINCOUNT="9").stdout == "True\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux")
def test_cores_are_those_the_process_is_bound_to() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu_threads.usable_cores() == 1
        assert Engine().processes == 1
        assert _device_name(torch.device("cpu")) == "1 CPU cores"
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "300000 100000"}, 2),
        ("0::/of/the/host\n", {"cpu.max": "200000 100000"}, 2),
        ("3:cpu,cpuacct:/a\n1:memory:/b\n", {"cpu/a/cpu.cfs_quota_us": "50000\n",
         "cpu/a/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
         math.inf),
        ("2:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
         math.inf),
    ],
)  # fmt: skip
def test_quota(tmp_path: Path, groups: str, files: dict[str, str], expected: float) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / name).write_text(text)
    assert cpu_threads._quota(tmp_path / "groups", tmp_path / "mounted") == expected


def test_no_quota_where_there_are_no_groups(tmp_path: Path) -> None:
    assert cpu_threads._quota(tmp_path / "none", tmp_path) == math.inf


BUILD = """
import torch
from lit_llm import PretrainModule
PretrainModule({"hidden_size": 32, "num_layers": 1, "num_heads": 1}).configure_model()
print(torch.get_num_threads())
"""


@pytest.fixture
def one_core_quota() -> Any:
    """Moves a process into a control group that has one core's time."""
    folder = Path("/sys/fs/cgroup/cpu/lit_llm_test")
    try:
        folder.mkdir()
        (folder / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("making a control group (version 1) is not permitted")
    yield folder / "cgroup.procs"
    folder.rmdir()


@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="needs two cores")
@pytest.mark.slow
def test_threads_under_a_real_quota(one_core_quota: Path) -> None:
    enter = f"import os; open({str(one_core_quota)!r}, 'w').write(str(os.getpid()))\n"
    assert python(enter + BUILD).stdout == "1\n"
    assert python(enter + BUILD, OMP_NUM_THREADS="2").stdout == "2\n"


EIGHT = set(range(8))


@pytest.mark.parametrize(
    ("processes", "quota", "threads"),
    [
        ([("here", EIGHT)] * 2, math.inf, 4),
        ([("here", EIGHT)] * 3, math.inf, 2),
        ([("here", EIGHT)] * 9, math.inf, 1),
        ([("here", EIGHT), ("there", EIGHT)], math.inf, 8),
        ([("here", EIGHT), ("here", {8, 9})], math.inf, 8),  # a scheduler has bound them apart
        ([("here", EIGHT), ("here", {6, 7})], math.inf, 7),
        ([("here", EIGHT)], 2.5, 2),
        ([("here", EIGHT)] * 2, 2, 1),
    ],
)
def test_processes_divide_their_cores(
    monkeypatch: pytest.MonkeyPatch, processes: list, quota: float, threads: int
) -> None:
    def gather(into: list, mine: Any) -> None:
        assert mine == processes[0]
        into[:] = processes

    now = [8]
    monkeypatch.setattr(cpu_threads, "_count_is_chosen", False)
    monkeypatch.setattr(cpu_threads, "_bound_to", lambda: EIGHT)
    monkeypatch.setattr(cpu_threads, "_quota", lambda: quota)
    monkeypatch.setattr(cpu_threads.platform, "node", lambda: "here")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: len(processes))
    monkeypatch.setattr(dist, "all_gather_object", gather)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    cpu_threads.limit_threads(divide=True)
    assert now[0] == threads
    monkeypatch.setattr(cpu_threads, "_count_is_chosen", True)
    now[0] = 8
    cpu_threads.limit_threads(divide=True)
    assert now[0] == 8
