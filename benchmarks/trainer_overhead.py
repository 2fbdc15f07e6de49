"""What the Trainer with our default callbacks and loggers costs over a bare loop: same model, batches and optimizer.

    python benchmarks/trainer_overhead.py

Rounds of the two are interleaved, bare first then Trainer; the result is the median over rounds of the ratio of their
times per optimizer step (Trainer / bare). Each round's first steps are left out on both sides. The bare loop does what
training needs and nothing else: fetch, forward, backward, clip, optimizer and schedule step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from record import write_result

from lit_llm import (
    Checkpoint,
    CSVLogger,
    PretrainDataModule,
    PretrainModule,
    ProgressBar,
    RunReport,
    SampleCallback,
    ThroughputCallback,
)

SKIP = 5  # steps of a round that are not counted: allocations, first touches


class Stopwatch(L.Callback):
    """Seconds from the end of step SKIP to the end of the last."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == SKIP:
            self.begin = time.perf_counter()
        self.end = time.perf_counter()


def modules(args: argparse.Namespace) -> tuple[PretrainModule, PretrainDataModule]:
    L.seed_everything(0, verbose=False)
    shape = {"hidden_size": args.width, "num_layers": args.layers, "num_heads": args.width // 64}
    data = PretrainDataModule(
        tokens=args.steps * args.batch_tokens, seq_len=256, micro_batch_size=args.batch_tokens // 256, validate_every=0,
        vocab_size=4096,
    )  # fmt: skip
    return PretrainModule(shape, compile=False), data


def trainer_round(args: argparse.Namespace, folder: Path) -> float:
    """Seconds a step under the Trainer."""
    module, data = modules(args)
    watch = Stopwatch()
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, max_epochs=1, limit_val_batches=0, enable_model_summary=False,
        log_every_n_steps=10, logger=[CSVLogger(folder), TensorBoardLogger(folder, name="", version="tensorboard")],
        callbacks=[ProgressBar(), ThroughputCallback(), Checkpoint(), SampleCallback(), RunReport(), watch],
    )  # fmt: skip
    trainer.fit(module, data)
    return (watch.end - watch.begin) / (args.steps - SKIP)


def bare_round(args: argparse.Namespace) -> float:
    """Seconds a step in a loop of its own over the same parts."""
    module, data = modules(args)
    data.prepare_data()
    data.setup("fit")
    module.fields |= {"vocab_size": data.tokenizer.vocab_size, "max_seq_len": 256}
    module.hparams.update(tokens=data.num_tokens, global_batch_tokens=data.global_batch_tokens)
    module.configure_model()
    configured: Any = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    begin = 0.0
    for step, batch in enumerate(data.train_dataloader(), 1):
        loss = module.compute_loss(batch) / batch["step_tokens"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        if step == SKIP:
            begin = time.perf_counter()
    return (time.perf_counter() - begin) / (args.steps - SKIP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps a round")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rounds = []
    for number in range(args.rounds):
        bare = bare_round(args)
        with tempfile.TemporaryDirectory() as folder:
            trained = trainer_round(args, Path(folder))
        rounds.append({"bare_seconds": bare, "trainer_seconds": trained, "ratio": trained / bare})
        print(
            f"round {number + 1}: bare {bare * 1e3:.1f} ms, Trainer {trained * 1e3:.1f} ms, ratio {trained / bare:.4f}"
        )
    ratio = statistics.median(r["ratio"] for r in rounds)
    print(f"median ratio {ratio:.4f}")
    file = write_result("trainer_overhead", {"settings": vars(args), "rounds": rounds, "median_ratio": ratio})
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
