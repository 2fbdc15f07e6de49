"""What gpu.py makes of a contender that fails, does not fit, or has no time left; processes and
clock are stand-ins."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import gpu_steps
import gpu_worker
import pytest
import record
import torch
from gpu import Group, Job

NUMBERS = {
    "seconds": 1.0,
    "tokens_per_second": 10.0,
    "peak_bytes": 1,
    "alloc_retries": 0,
    "attention": "sdpa",
    "note": "",
}
OOM = "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


class Stand:
    """Takes the place of `gpu.work`: says of each job what ``says`` does, after ``takes`` seconds
    of its own clock."""

    def __init__(
        self, says: Callable[[Job], dict[str, Any] | str] = lambda job: NUMBERS, takes: float = 1.0
    ):
        self.says, self.takes, self.clock = says, takes, 0.0
        self.tried: list[tuple[str, str, int]] = []

    def work(self, job: Job, python: str, seconds: float) -> tuple[dict[str, Any] | None, str]:
        self.clock += self.takes
        self.tried.append((job.shape, job.contender, job.batch))
        said = self.says(job)
        return (None, said) if isinstance(said, str) else (dict(said), "")


def run(
    monkeypatch: pytest.MonkeyPatch, stand: Stand, groups: list[Group], budget: float = 1000
) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows, and how many were there at each save."""
    monkeypatch.setattr(gpu, "work", stand.work)
    monkeypatch.setattr(gpu, "now", lambda: stand.clock)
    args = argparse.Namespace(
        budget=budget, warmup=1, steps=3, dry_run=False, peers_python="python"
    )
    saved: list[int] = []
    return gpu.run_suite(groups, args, budget, lambda rows: saved.append(len(rows))), saved


def test_a_batch_is_halved_until_it_fits_and_is_where_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = {"ours": 16, "trainer": 8}
    stand = Stand(lambda job: NUMBERS if job.batch <= room[job.contender] else OOM)
    rows, _ = run(monkeypatch, stand, [Group("350M", 64, ["ours", "trainer"])])
    assert stand.tried == [("350M", "ours", 64), ("350M", "ours", 32), ("350M", "ours", 16),
                           ("350M", "trainer", 16), ("350M", "trainer", 8)]  # fmt: skip
    assert [row["batch"] for row in rows] == [16, 8]
    assert [row["too_large"] for row in rows] == [[64, 32], [16]]
    assert "ratio" not in rows[0] and rows[1]["ratio"] == 1.0


def test_each_shape_begins_at_its_own_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand()
    run(monkeypatch, stand, [Group("50M", 64, ["ours"]), Group("3B", 4, ["ours"])])
    assert [batch for _, _, batch in stand.tried] == [64, 4]


def test_an_allocator_that_has_to_ask_again_counts_as_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand = Stand(lambda job: {**NUMBERS, "alloc_retries": 3 if job.batch > 2 else 0})
    rows, _ = run(monkeypatch, stand, [Group("3B", 8, ["ours"])])
    assert (rows[0]["batch"], rows[0]["alloc_retries"], rows[0]["too_large"]) == (2, 0, [8, 4])


def test_a_failed_contender_is_a_row_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand = Stand(lambda job: "Traceback\nValueError: no" if job.contender == "litgpt" else NUMBERS)
    rows, saved = run(monkeypatch, stand, [Group("350M", 8, ["ours", "litgpt", "transformers"])])
    assert ["failed" in row for row in rows] == [False, True, False]
    assert rows[1]["failed"].endswith("ValueError: no") and rows[2]["ratio"] == 1.0
    assert saved == [1, 2, 3]  # written after every row
    assert "failed: ValueError: no" in capsys.readouterr().out


def test_without_the_first_there_are_no_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(lambda job: OOM if job.contender == "ours" else NUMBERS)
    rows, _ = run(monkeypatch, stand, [Group("350M", 2, ["ours", "litgpt", "transformers"])])
    assert "failed" in rows[0] and all("ratio" not in row for row in rows)
    assert stand.tried[-1] == ("350M", "transformers", 2)


def test_what_would_not_end_in_time_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, saved = run(
        monkeypatch, Stand(takes=40), [Group("1.2B", 8, ["ours", "trainer", "fp8"])], budget=100
    )
    assert ["skipped" in row for row in rows] == [False, False, True]
    assert saved == [1, 2, 3]


def test_no_time_to_try_half_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = run(
        monkeypatch, Stand(lambda job: OOM, takes=40), [Group("1.2B", 8, ["ours"])], budget=70
    )
    assert "out of memory" in rows[0]["failed"] and rows[0]["batch"] == 8


def test_status_and_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand = Stand(lambda job: "ValueError: no" if job.contender == "litgpt" else NUMBERS)
    monkeypatch.setattr(gpu, "work", stand.work)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--suite", "peers", "--shape", "350M"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    written = json.loads((tmp_path / "gpu_peers_350M.json").read_text())
    assert (tmp_path / "results/nvidia-h200/gpu_peers_350M.json").exists()
    assert [row["contender"] for row in written["rows"]] == ["ours", "transformers", "litgpt"]
    assert "6 x matrix parameters" in written["formula"]


def test_a_process_that_outlasts_the_budget_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "contenders").mkdir()
    worker = tmp_path / "contenders/gpu_worker.py"
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    job = Job("ours", "tiny", 16, 2, 1, 3, dry=True)
    worker.write_text("import time; time.sleep(60)")
    assert gpu.work(job, sys.executable, 0.5) == (None, "stopped: the suite's budget was spent")
    worker.write_text("raise SystemExit('broken')")
    assert gpu.work(job, sys.executable, 30) == (None, "broken")
    worker.write_text("import sys; print('hello'); print(sys.argv[1]); print('bye')")
    assert gpu.work(job, sys.executable, 30)[0] == {**vars(job)}


def test_the_stopwatch_counts_the_timed_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, retries, peaks = [0.0], [5], []
    monkeypatch.setattr(gpu_worker.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_alloc_retries": retries[0]})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.append(clock[0]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    watch = gpu_worker.Stopwatch(
        Job("ours", "tiny", 16, 2, warmup=3, steps=9), torch.device("cuda")
    )
    for step in range(1, 13):
        clock[0] += (
            100 if step <= 3 else 2 if step <= 6 else 3
        )  # the warm-up, a block at 2, two at 3
        retries[0] += step == 8
        watch.step_done(step)
    assert watch.seconds == 3 and peaks == [300]
    assert watch.memory() == {"peak_bytes": 7, "alloc_retries": 1}


def test_the_optimizers_clock_counts_its_steps_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    clock = gpu_worker.OptimizerClock(optimizer, torch.device("cpu"))
    for _ in range(4):
        optimizer.step()
    clock.marks = [0.0, 9.0, 10.0, 10.001, 20.0, 20.002, 30.0, 30.003]
    assert clock.milliseconds(3) == pytest.approx(2.0)


def test_the_published_optimizer_for_all_but_nanochats_shape() -> None:
    muon = [(group.shape, name) for groups in gpu.SUITES.values() for group in groups
            for name in group.contenders
            if "muon" in name or name == "nanochat"]  # fmt: skip
    assert muon == [("d12", "ours muon"), ("d12", "nanochat")]
    config = gpu_steps.TransformerConfig.from_dict(gpu.SHAPES["tiny"])
    job = Job("ours", "tiny", 16, 2, 1, 3, dry=True)
    optimizer = gpu_steps.ours(job, config, torch.device("cpu")).optimizer
    assert type(optimizer) is torch.optim.AdamW and all(
        group["fused"] for group in optimizer.param_groups
    )


def llama(attention: str) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48, use_cache=False, attn_implementation=attention,
    ))  # fmt: skip


def test_transformers_without_a_mask_is_transformers() -> None:
    ids = torch.randint(64, (2, 32))
    with torch.no_grad():
        plain, ours = (
            llama(name)(input_ids=ids).logits
            for name in ("sdpa", gpu_steps.register_sdpa_without_mask())
        )
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def attention_calls(attention: str) -> list[tuple[bool, bool]]:
    """Of each call of SDPA in the compiled model's graph: whether there is a mask, and
    is_causal."""
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target is torch.nn.functional.scaled_dot_product_attention:
                calls.append((node.kwargs["attn_mask"] is not None, node.kwargs["is_causal"]))
        return graph

    ids = torch.randint(64, (2, 32))
    torch.compile(llama(attention), backend=backend)(input_ids=ids, labels=ids, shift_labels=ids)
    return calls


def test_compiled_transformers_gets_no_mask_and_is_causal() -> None:
    assert attention_calls(gpu_steps.register_sdpa_without_mask()) == [(False, True)] * 2
    # Why it is needed: should transformers mend this, "sdpa" will do again.
    assert attention_calls("sdpa") == [(True, False)] * 2
