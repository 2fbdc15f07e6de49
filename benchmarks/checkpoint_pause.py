"""How long training stands still for a checkpoint: written by a thread, against written before
going on.

    python benchmarks/checkpoint_pause.py

Runs of the Trainer in turns, each saving after every step; a pause is the time `Checkpoint` takes
at a step's border, less the time it waits for the file before, which at a sensible interval is long
there. "files" is the same model and optimizer by Lightning's ``Trainer.save_checkpoint``, flushed
to disk as ours are. "parts" is the pause of two gloo processes that share the model by
`FSDP2Strategy`, each writing what it holds; "whole" has the first gather and write it all. Both by
a thread, and "foreground" written before going on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.multiprocessing as mp
from record import write_result

from lit_llm import Checkpoint, FSDP2Strategy, PretrainModule


class Timed(Checkpoint):
    """Notes how long each save keeps training waiting; the file before is waited for outside."""

    def __init__(self, background: bool) -> None:
        super().__init__(
            every_steps=1, keep_last=1, monitor=None, final=False, background=background
        )
        self.pauses: list[float] = []

    def _write(self, trainer: L.Trainer, name: str) -> None:
        self._finish()
        began = time.perf_counter()
        super()._write(trainer, name)
        self.pauses.append(time.perf_counter() - began)


class Lightnings(L.Callback):
    """The Trainer's own file after each step."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        began = time.perf_counter()
        file = Path(trainer.default_root_dir) / "checkpoint"
        trainer.save_checkpoint(file, weights_only=False)
        with open(file, "rb+") as written:
            os.fsync(written.fileno())
        self.pauses.append(time.perf_counter() - began)


def fit(args: argparse.Namespace, saver: Any, **trainer: Any) -> tuple[list[float], int]:
    """Pauses of a run, without the first, which allocates the optimizer's state; and the number of
    parameters."""
    shape = {"vocab_size": 32768, "hidden_size": args.width, "num_layers": args.layers,
             "num_heads": args.width // 64, "max_seq_len": 16}  # fmt: skip
    ids = torch.arange(16)
    batches = torch.utils.data.DataLoader([{"input_ids": ids, "labels": ids}] * args.steps)
    module = PretrainModule(
        shape, optimizer="adamw", compile=False, tokens=1e4, global_batch_tokens=16
    )
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[saver],
        enable_model_summary=False, enable_checkpointing=isinstance(saver, Checkpoint),
        enable_progress_bar=False, use_distributed_sampler=False, **trainer,
    ).fit(module, batches)  # fmt: skip
    return saver.pauses[1:], sum(p.numel() for p in module.parameters())


SHARED = {
    f"{kind}, {way}": (kind, way)
    for kind in ("parts", "whole")
    for way in ("background", "foreground")
}


def alone(rank: int, args: argparse.Namespace, folder: str) -> None:
    """One process, with a checkpoint of every kind in turns; writes the pauses to ``folder``."""
    warnings.filterwarnings("ignore")
    pauses: dict[str, list[float]] = {"background": [], "foreground": [], "files": []}
    for _ in range(args.rounds):
        for name, found in pauses.items():
            saver = Lightnings() if name == "files" else Timed(background=name == "background")
            more, parameters = fit(args, saver, default_root_dir=f"{folder}/alone")
            found += more
            shutil.rmtree(f"{folder}/alone")
    Path(folder, "pauses.json").write_text(json.dumps(pauses | {"parameters": parameters}))


def shared(rank: int, args: argparse.Namespace, folder: str, name: str) -> None:
    """One of two processes, with checkpoints of the kind called ``name``; the first writes the
    pauses to ``folder``."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ |= {"TORCHELASTIC_RUN_ID": "pause", "RANK": str(rank), "LOCAL_RANK": str(rank),
                   "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
                   "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    (kind, way), root = SHARED[name], f"{folder}/shared"
    strategy: Any = FSDP2Strategy(checkpoint="sharded" if kind == "parts" else "whole")
    pauses, parameters = fit(
        args, Timed(way == "background"), strategy=strategy, devices=2, default_root_dir=root
    )
    torch.distributed.barrier()
    if rank == 0:
        shutil.rmtree(root)
        Path(folder, "pauses.json").write_text(json.dumps({name: pauses, "parameters": parameters}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="saves of each in a round")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, one round, no file")
    args = parser.parse_args()
    if args.dry_run:
        args.rounds, args.steps, args.width, args.layers = 1, 2, 64, 1
    pauses: dict[str, list[float]] = {}
    jobs: list[tuple] = [
        (alone, 1, ()),
        *((shared, 2, (name,)) for _ in range(args.rounds) for name in SHARED),
    ]
    # In processes of their own: what one leaves in memory is gone before the next begins.
    for work, processes, what in jobs:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            mp.spawn(work, (args, str(Path(folder).resolve()), *what), nprocs=processes)
            found = json.loads(Path(folder, "pauses.json").read_text())
        parameters = found.pop("parameters")
        for name, more in found.items():
            pauses[name] = pauses.get(name, []) + more
    medians = {name: statistics.median(found) for name, found in pauses.items()}
    print(f"{parameters / 1e6:.0f}M parameters, median pause a save:")
    for name, seconds in medians.items():
        print(f"  {'two processes, ' if name in SHARED else ''}{name}: {seconds:.3f} s")
    if not args.dry_run:
        result = {"parameters": parameters, "seconds": pauses, "medians": medians}
        print(f"wrote {write_result('checkpoint_pause', result)}")


if __name__ == "__main__":
    main()
