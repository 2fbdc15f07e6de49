"""One contender of gpu.py at one batch: ``gpu_worker.py '{"contender": "ours", ...}'`` ends with a
line of JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

# The machine with the GPU has the checkout, not the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu import SHAPES, Job
from gpu_steps import PEERS, ours
from torch import Tensor

from lit_llm.models.accounting import flops
from lit_llm.models.config import TransformerConfig


class Stopwatch:
    """Seconds a step, the median of three blocks of steps after the warm-up, and memory over
    these."""

    def __init__(self, job: Job, device: torch.device):
        self.warmup, self.block, self.device = job.warmup, max(1, job.steps // 3), device
        self.marks: list[float] = []
        self.retries_before = 0

    def step_done(self, steps: int) -> None:
        """To be told after each step; waits for the device at the borders of blocks alone."""
        if steps < self.warmup or (steps - self.warmup) % self.block:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            if steps == self.warmup:
                torch.cuda.reset_peak_memory_stats()
                self.retries_before = self._retries()
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return statistics.median(end - begin for begin, end in pairwise(self.marks)) / self.block

    def memory(self) -> dict[str, int]:
        """Peak of the timed steps, and how often the allocator had to give memory back first to get
        some."""
        if self.device.type != "cuda":
            return {"peak_bytes": 0, "alloc_retries": 0}
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(),
            "alloc_retries": self._retries() - self.retries_before,
        }

    @staticmethod
    def _retries() -> int:
        return torch.cuda.memory_stats().get("num_alloc_retries", 0)


class OptimizerClock:
    """Milliseconds that ``optimizer.step`` takes on the device, by events in its stream: nothing
    waits for them."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device):
        self.device = device
        self.marks: list[Any] = []
        optimizer.register_step_pre_hook(self._mark)
        optimizer.register_step_post_hook(self._mark)

    def _mark(self, *_: Any) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self, steps: int) -> float:
        """The median of the last ``steps``."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        pairs = list(zip(self.marks[::2], self.marks[1::2], strict=True))[-steps:]
        return statistics.median(
            begin.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - begin)
            for begin, end in pairs
        )


def run_loop(
    job: Job, config: TransformerConfig, device: torch.device, watch: Stopwatch
) -> dict[str, Any]:
    """A plain loop over the contender's step."""
    contender = PEERS.get(job.contender, ours)(job, config, device)
    clock = OptimizerClock(contender.optimizer, device)
    ids = torch.randint(config.vocab_size, (job.batch, job.seq_len + 1), device=device)
    for done in range(1, job.warmup + job.steps + 1):
        contender.step(ids)
        watch.step_done(done)
    return {
        "optimizer_ms": clock.milliseconds(job.steps),
        "attention": contender.attention,
        "note": contender.note,
    }


def run_trainer(job: Job, fields: dict[str, Any], ids: Tensor, watch: Stopwatch) -> dict[str, Any]:
    """PretrainModule under the Trainer with the default callbacks that touch every step."""
    import lightning as L

    from lit_llm import PretrainModule, SpikeGuard, ThroughputCallback

    class Laps(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            watch.step_done(trainer.global_step)

    rows = [{"input_ids": row[:-1], "labels": row[1:]} for row in ids] * (job.warmup + job.steps)
    loader = torch.utils.data.DataLoader(rows, batch_size=job.batch, pin_memory=not job.dry)
    module = PretrainModule(fields, optimizer="adamw", compile=not job.dry, tokens=1e9,
                            global_batch_tokens=job.batch * job.seq_len)  # fmt: skip
    L.Trainer(
        accelerator="cpu" if job.dry else "gpu", devices=1, precision="bf16-mixed", max_epochs=1,
        logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[SpikeGuard(), ThroughputCallback(), Laps()],
    ).fit(module, loader)  # fmt: skip
    # Its optimizer's step has the whole of forward and backward inside, as a closure; by itself it
    # is that of "ours".
    return {"optimizer_ms": None, "attention": str(module.network.backends), "note": "adamw"}


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    device = torch.device("cpu" if job.dry else "cuda")
    fields = {**SHAPES[job.shape], "max_seq_len": job.seq_len}
    config = TransformerConfig.from_dict(fields)
    watch = Stopwatch(job, device)
    try:
        if job.contender == "trainer":
            ids = torch.randint(config.vocab_size, (job.batch, job.seq_len + 1))
            said = run_trainer(job, fields, ids, watch)
        else:
            said = run_loop(job, config, device, watch)
    except ModuleNotFoundError as missing:
        if missing.name not in PEERS:
            raise
        print(json.dumps({"skipped": f"not at hand: {missing}"}))
        return
    rate = job.batch * job.seq_len / watch.seconds
    flops_per_token = flops.flops_per_token(config, job.seq_len)
    if job.contender == "lora":  # the frozen weights have no gradient of their own
        flops_per_token -= 2 * flops.matrix_parameters(config)
    numbers = {"seconds": watch.seconds, "tokens_per_second": rate,
               "flops_per_token": flops_per_token, **watch.memory(), **said,
               "torch": torch.__version__}  # fmt: skip
    if device.type == "cuda":
        peak, source = flops.peak_flops(device)
        numbers |= {
            "device": torch.cuda.get_device_name(),
            "mfu": rate * flops_per_token / peak,
            "peak": source,
        }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
