"""What the Trainer with our default callbacks and loggers costs over a bare loop: same model,
batches and optimizer.

    python benchmarks/trainer_overhead.py

The two are interleaved step by step in one process: after each optimizer step of the Trainer a
callback makes one step of the bare loop on a twin of the model, so a machine that slows down slows
both. The Trainer's time is all that passes between two bare steps: hooks, callbacks, logging,
checkpoints. The bare loop does what training needs and nothing else: fetch, forward, backward,
clip, optimizer and schedule step. A round's ratio is Trainer seconds / bare seconds over its steps;
the result is the median over rounds.
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


class BareTwin(L.Callback):
    """After every step of the Trainer, one step of a bare loop over a model, data and optimizer of
    its own."""

    def __init__(self, module: PretrainModule, data: PretrainDataModule):
        data.prepare_data()
        data.setup("fit")
        module.fields |= {"vocab_size": data.tokenizer.vocab_size, "max_seq_len": data.seq_len}
        module.hparams.update(tokens=data.num_tokens, global_batch_tokens=data.global_batch_tokens)
        module.configure_model()
        configured: Any = module.configure_optimizers()
        self.module, self.optimizer = module, configured["optimizer"]
        self.scheduler, self.batches = (
            configured["lr_scheduler"]["scheduler"],
            iter(data.train_dataloader()),
        )
        self.bare, self.trainer = 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        begin = time.perf_counter()
        batch = next(self.batches)
        loss = self.module.compute_loss(batch) / batch["step_tokens"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        end = time.perf_counter()
        if trainer.global_step > SKIP:
            self.bare += end - begin
            self.trainer += begin - self._resumed
        self._resumed = end


def modules(args: argparse.Namespace) -> tuple[PretrainModule, PretrainDataModule]:
    L.seed_everything(0, verbose=False)
    shape = {"hidden_size": args.width, "num_layers": args.layers, "num_heads": args.width // 64}
    data = PretrainDataModule(
        tokens=args.steps * args.batch_tokens, seq_len=256,
        micro_batch_size=args.batch_tokens // 256, validate_every=0, vocab_size=4096,
    )  # fmt: skip
    return PretrainModule(shape, compile=False), data


def run_round(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Milliseconds a step of both, and their ratio."""
    twin = BareTwin(*modules(args))
    module, data = modules(args)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, max_epochs=1, limit_val_batches=0,
        enable_model_summary=False, log_every_n_steps=10,
        logger=[CSVLogger(folder), TensorBoardLogger(folder, name="", version="tensorboard")],
        callbacks=[ProgressBar(), ThroughputCallback(), Checkpoint(), SampleCallback(), RunReport(),
                   twin],
    )  # fmt: skip
    trainer.fit(module, data)
    steps = args.steps - SKIP
    return {"bare_ms": twin.bare / steps * 1e3, "trainer_ms": twin.trainer / steps * 1e3,
            "ratio": twin.trainer / twin.bare}  # fmt: skip


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
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(run_round(args, Path(folder)))
        print(
            "round {}: bare {bare_ms:.1f} ms, Trainer {trainer_ms:.1f} ms, ratio "
            "{ratio:.4f}".format(number + 1, **rounds[-1])
        )
    ratio = statistics.median(r["ratio"] for r in rounds)
    print(f"median ratio {ratio:.4f}")
    file = write_result(
        "trainer_overhead", {"settings": vars(args), "rounds": rounds, "median_ratio": ratio}
    )
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
