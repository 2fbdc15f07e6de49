"""The threads of processes that Lightning starts, and what a script is told of OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lit_llm import PretrainModule
from lit_llm.models.kernels import cpu_threads
from lit_llm.training import prepare as prepare_module

SCRIPT = """
import lightning as L, torch
from torch.utils.data import DataLoader
from lit_llm import FSDP2Strategy, PretrainModule

class Tells(L.Callback):
    def on_train_start(self, trainer, module):
        open(f"rank{trainer.global_rank}", "w").write(f"{torch.get_num_threads()} of {before}")

if __name__ == "__main__":
    before = torch.get_num_threads()
    ids = torch.zeros(8, dtype=torch.long)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=FSDP2Strategy(), callbacks=[Tells()],
                        fast_dev_run=True, enable_progress_bar=False)
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 1}
    trainer.fit(PretrainModule(shape, optimizer="adamw"),
                DataLoader([{"input_ids": ids, "labels": ids}] * 2))
"""


@pytest.mark.skipif((os.cpu_count() or 1) == 1, reason="needs two cores")
def test_sharded_processes_divide_the_cores(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cpus = len(os.sched_getaffinity(0))
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == [
        f"{cpus // 2} of {cpus}"
    ] * 2


@pytest.mark.parametrize("in_time", [True, False])
def test_a_script_is_told_when_openmp_was_loaded_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(prepare_module, "rank_zero_info", said.append)
    monkeypatch.setattr(cpu_threads, "waits_as_set", in_time)
    ids = torch.zeros(8, dtype=torch.long)
    module = PretrainModule({"hidden_size": 32, "num_layers": 1, "num_heads": 1}, compile=False)
    trainer = L.Trainer(
        accelerator="cpu", fast_dev_run=True, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module, DataLoader([{"input_ids": ids, "labels": ids}]))
    assert any("GOMP_SPINCOUNT=3000" in line for line in said) != in_time
