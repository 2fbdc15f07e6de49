"""How long training stands still for a checkpoint: written by a thread, against written before going on.

    python benchmarks/checkpoint_pause.py

Two runs of the Trainer in turns, in one process, each saving after every step; a pause is the time `Checkpoint` takes
at a step's border, less the time it waits for the file before, which at a sensible interval is long there. "files" is
the same model and optimizer by Lightning's ``Trainer.save_checkpoint``, flushed to disk as ours are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from record import write_result

from lit_llm import Checkpoint, PretrainModule


class Timed(Checkpoint):
    """Notes how long each save keeps training waiting; the file before is waited for outside."""

    def __init__(self, background: bool) -> None:
        super().__init__(every_steps=1, keep_last=1, monitor=None, final=False, background=background)
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
    warnings.filterwarnings("ignore")
    shape = {"vocab_size": 32768, "hidden_size": args.width, "num_layers": args.layers,
             "num_heads": args.width // 64, "max_seq_len": 16}  # fmt: skip
    pauses: dict[str, list[float]] = {"background": [], "foreground": [], "files": []}
    ids = torch.randint(0, 32768, (1, 16))
    batches = torch.utils.data.DataLoader([{"input_ids": ids[0], "labels": ids[0]}] * args.steps)
    for _ in range(args.rounds):
        for name, found in pauses.items():
            with tempfile.TemporaryDirectory(dir=".") as folder:
                saver = Lightnings() if name == "files" else Timed(background=name == "background")
                trainer = L.Trainer(
                    accelerator="cpu", default_root_dir=folder, max_epochs=1, logger=False, callbacks=[saver],
                    enable_checkpointing=name != "files", enable_model_summary=False, enable_progress_bar=False,
                )  # fmt: skip
                module = PretrainModule(shape, optimizer="adamw", compile=False, tokens=1e4, global_batch_tokens=16)
                trainer.fit(module, batches)
                found += saver.pauses[1:]  # the first allocates the optimizer's state
                parameters = sum(p.numel() for p in module.parameters())
    medians = {name: statistics.median(found) for name, found in pauses.items()}
    said = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in medians.items())
    print(f"{parameters / 1e6:.0f}M parameters, pause a save: {said}"
          f"; background is {medians['background'] / medians['foreground']:.2f} of foreground")  # fmt: skip
    if not args.dry_run:
        result = {"parameters": parameters, "seconds": pauses, "medians": medians}
        print(f"wrote {write_result('checkpoint_pause', result)}")


if __name__ == "__main__":
    main()
