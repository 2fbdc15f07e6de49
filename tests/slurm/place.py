"""A folder to run jobs of SLURM in."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster, wait_for

FIT = [sys.executable, "-m", "lit_llm", "fit"]


@dataclass
class Place:
    """A working directory for jobs of one tiny run, which leave there what `held.Held` notes."""

    folder: Path
    cluster: Cluster
    corpus: Path

    def arguments(self, *more: str, steps: int = 400) -> list[str]:
        """Of a fit. 400 steps take more than a minute while it is held, else a few seconds."""
        return [
            "--model", "lit_llm.PretrainModule", "--data", "lit_llm.PretrainDataModule",
            "--model.transformer", json.dumps({"hidden_size": 32, "num_layers": 1, "num_heads": 2}),
            "--model.compile", "false", "--data.corpus", str(self.corpus), "--data.seq_len", "32",
            "--data.micro_batch_size", "2", "--data.global_batch_tokens", "128",
            "--data.tokens", str(128 * steps), "--data.validate_every", "200",
            "--data.eval_batch_size", "64", "--checkpoint.every_steps", "20",
            "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "2",
            "--samples.max_new_tokens", "2",
            "--trainer.accelerator", "cpu", "--trainer.callbacks+=held.Held", *more,
        ]  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        """Of who submits jobs, and so of the jobs."""
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        return {**self.cluster.env, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def launch(self, *options: str, fit: list[str]) -> None:
        """Have ``lit_llm launch`` write ``job``, for one process on each of two nodes."""
        words = [sys.executable, "-m", "lit_llm", "launch", "--slurm", "--output", "job"]
        words += ["--nodes", "2", "--gpus", "1", *options, "--", "fit", *fit]
        subprocess.run(words, cwd=self.folder, env=self.env, check=True)

    def write(self, *header: str, commands: str) -> None:
        """Write a job file ``job`` as a user would."""
        lines = [
            f"#SBATCH --{option}" for option in (*header, "output=job.log", "open-mode=append")
        ]
        (self.folder / "job").write_text("\n".join(["#!/bin/bash", *lines, commands]) + "\n")

    def submit(self) -> str:
        """Submit ``job``; its number."""
        return self.cluster.run(
            "sbatch", "--parsable", "job", cwd=self.folder, env=self.env
        ).strip()

    def call(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """A command in this folder, waited for."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=400,
        )

    def go(self) -> None:
        """Hold the run no longer."""
        (self.folder / "go").touch()

    def trains(self, steps: int = 3) -> None:
        """Wait until so many steps are made."""
        wait_for(lambda: len(self.steps()) >= steps or None, lambda: f"steps: {self.said()}")

    def steps(self) -> list[int]:
        """All that were made, in order; some twice, where a start made them again."""
        file = self.folder / "steps"
        return list(map(int, file.read_text().split())) if file.exists() else []

    def made_again(self) -> int:
        """Steps that were lost."""
        return sum(count - 1 for count in Counter(self.steps()).values())

    def processes(self) -> list[list[int]]:
        """[rank, id, world size] of all that trained."""
        return [
            list(map(int, line.split()))
            for line in (self.folder / "processes").read_text().splitlines()
        ]

    def checkpoints(self, run: str = "runs/run") -> list[str]:
        """Names, without best.ckpt."""
        return sorted(file.name for file in (self.folder / run / "checkpoints").glob("step-*.ckpt"))

    def says(self, words: str) -> None:
        """Wait for ``words`` in what the jobs write."""
        wait_for(lambda: words in self.said() or None, lambda: f"{words!r}: {self.said()}")

    def said(self) -> str:
        """What the jobs wrote."""
        return "".join(file.read_text() for file in sorted(self.folder.glob("*.log")))


def quoted(words: list[str]) -> str:
    """As the shell takes them."""
    return " ".join(map(shlex.quote, words))
