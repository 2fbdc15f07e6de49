"""A training step beside other busy programs: ours against transformers, on the quickstart's shape.

    python benchmarks/busy.py

A busy program is a process that loops for ever. Contenders take turns of a few steps. The load
changes between turns, up and down again, so that a machine that slows down slows all of them.
"ours" waits as `lit_llm.models.kernels.cpu_threads` sets it, "ours, libgomp's waiting" as libgomp
does by itself. A share is the median speed of a contender under load over its own alone, or over
that of "ours, libgomp's waiting" alone. Processor seconds are those of a step, all threads
together.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

QUICKSTART = ("quickstart", 4096, 256, 2, 2, 2, 688, 32, 256)
TINY = ("tiny", 300, 64, 2, 4, 2, 128, 2, 16)
PLAIN = "ours, libgomp's waiting"
CONTENDERS: dict[str, tuple[str, dict[str, str]]] = {
    "ours": ("ours", {}),
    PLAIN: ("ours", {"GOMP_SPINCOUNT": "300000"}),
    "transformers": ("transformers", {}),
}


def work(contender: str, fields: str, dtype: str, compiled: bool) -> None:
    """Be a contender: for each number read, take so many steps and say what one took."""
    warnings.filterwarnings("ignore")
    if contender == "ours":
        import lit_llm  # noqa: F401 -- before torch, which loads OpenMP
    import torch
    from cpu_step import Shape, network

    shape, computed = Shape(*json.loads(fields)), getattr(torch, dtype)
    torch.manual_seed(0)
    model, loss_of = network(contender, shape, compiled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    inputs = torch.randint(0, shape.vocab, (shape.batch, shape.seq_len))
    labels = torch.randint(0, shape.vocab, (shape.batch, shape.seq_len))
    for line in sys.stdin:
        steps, began, worked = int(line), time.perf_counter(), time.process_time()
        for _ in range(steps):
            with torch.autocast("cpu", computed, enabled=computed != torch.float32):
                loss = loss_of(inputs, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds, processor = time.perf_counter() - began, time.process_time() - worked
        print(json.dumps({"seconds": seconds / steps, "processor": processor / steps}), flush=True)


class Worker:
    """A contender's process."""

    def __init__(self, name: str, fields: tuple, dtype: str, compiled: bool):
        contender, settings = CONTENDERS[name]
        ours = ("OMP_", "GOMP_", "KMP_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        command = [sys.executable, __file__, "--work", contender, "--shape", json.dumps(fields)]
        command += ["--dtype", dtype, *(["--compile"] if compiled else [])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited | settings,
        )

    def steps(self, count: int) -> dict[str, float]:
        """Seconds and processor seconds of each of ``count`` steps."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) and not line.startswith('{"seconds"'):
            pass
        if not line:
            command = " ".join(map(str, self.process.args))  # type: ignore[arg-type]
            raise SystemExit(f"{command} failed")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Load:
    """Busy processes, of which any number is awake."""

    def __init__(self, most: int):
        count = [sys.executable, "-c", "while True: pass"]
        self.processes = [subprocess.Popen(count) for _ in range(most)]
        self.set(0)

    def set(self, awake: int) -> None:
        for number, process in enumerate(self.processes):
            process.send_signal(signal.SIGCONT if number < awake else signal.SIGSTOP)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def measure(args: argparse.Namespace, fields: tuple, compiled: bool) -> list[dict[str, Any]]:
    """A row for each load and contender."""
    workers = {name: Worker(name, fields, args.dtype, compiled) for name in args.contenders}
    said: dict[tuple[int, str], list[dict[str, float]]] = {}
    for worker in workers.values():
        worker.steps(args.warmup)
    load = Load(max(args.loads))
    try:
        for number in range(args.rounds):
            # Up and down in load, and each order of contenders under each: A B B A.
            for awake in args.loads if number % 2 == 0 else args.loads[::-1]:
                load.set(awake)
                for name in args.contenders if number % 4 < 2 else args.contenders[::-1]:
                    turn = workers[name].steps(args.steps)
                    said.setdefault((awake, name), []).append(turn)
    finally:
        load.close()
        for worker in workers.values():
            worker.close()

    def seconds(of: tuple[int, str]) -> float:
        return statistics.median(turn["seconds"] for turn in said[of])

    rows = []
    for awake, name in said:
        turns = [turn["seconds"] for turn in said[awake, name]]
        row = {
            "shape": fields[0], "dtype": args.dtype, "compiled": compiled, "turns": len(turns),
            "busy_processes": awake, "contender": name, "ms": seconds((awake, name)) * 1e3,
            "ms_lowest": min(turns) * 1e3, "ms_highest": max(turns) * 1e3,
            "processor_ms": statistics.median(t["processor"] for t in said[awake, name]) * 1e3,
            "share_of_own_alone": seconds((0, name)) / seconds((awake, name)),
            "share_of_plain_alone": seconds((0, PLAIN)) / seconds((awake, name)),
        }  # fmt: skip
        rows.append(row)
        print(f"{awake} busy, {name}{', compiled' if compiled else ''}: {row['ms']:.0f} ms a step "
              f"({row['ms_lowest']:.0f}-{row['ms_highest']:.0f}), "
              f"{row['processor_ms']:.0f} ms of processors, "
              f"{row['share_of_own_alone']:.2f} of its speed alone, "
              f"{row['share_of_plain_alone']:.2f} of {PLAIN} alone", flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1, help="of a turn")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each that are not counted")
    parser.add_argument(
        "--loads", type=int, nargs="+", default=[0, 0, 0, 1, 3], help="busy processes, turn by turn"
    )
    parser.add_argument("--dtype", default="bfloat16", help="of the products")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument(
        "--dry-run", action="store_true", help="a tiny shape, one busy process, one round, no file"
    )
    for hidden in ("--work", "--shape"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.shape, args.dtype, args.compile)
        return
    if args.dry_run:
        args.loads, args.modes, args.dtype, args.rounds, args.warmup = (
            [0, 1],
            ["eager"],
            "float32",
            1,
            1,
        )
    fields = TINY if args.dry_run else QUICKSTART
    rows = [row for mode in args.modes for row in measure(args, fields, mode == "compiled")]
    if not args.dry_run:
        from record import write_result

        print(f"wrote {write_result('busy', {'steps_a_turn': args.steps, 'rows': rows})}")


if __name__ == "__main__":
    main()
