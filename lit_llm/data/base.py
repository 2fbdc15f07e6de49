"""TokenDataModule: base of the data modules.

It provides batch sizes in tokens, an order that resumes at any step, loaders and prompts.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from lit_llm.data.files import read_prompts
from lit_llm.data.order import Order, StepSampler
from lit_llm.data.trainer_settings import check_length, given, limit_batches, replace
from lit_llm.errors import UserError
from lit_llm.io.cache import default_cache_dir
from lit_llm.lightning_internals import (
    loaded_checkpoint,
    place_in_checkpoint,
    place_in_trainer,
    train_one_epoch,
)
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.settings.ranges import Range, check_ranges

RANGES: dict[str, Range] = {
    "seq_len": Range(1, 1e8), "micro_batch_size": Range(1, 1e6),
    "global_batch_tokens": Range(1, 1e12), "validate_every": Range(0, 1e12),
    "eval_batch_size": Range(1, 1e6), "num_workers": Range(0, 1024), "seed": Range(0, 2**32 - 1),
}  # fmt: skip
"""Ranges of the numbers that all data modules of lit_llm take."""


class TokenDataModule(L.LightningDataModule, ABC):
    """Rows of ``seq_len`` tokens, batched by optimizer step.

    A run is one epoch of the loader with ``steps`` optimizer steps. The samples of a step depend on
    the step number only. A resumed run therefore sees exactly the samples that an uninterrupted run
    would have seen, for any number of workers. A run is over when its step reaches ``steps``, so a
    finished run can be extended.

    Subclasses set ``order`` and ``steps`` (after ``derive_accumulation``) and call
    ``configure_trainer`` in their setup.
    """

    order: Order
    steps: int
    # The micro-batch size from which batch size and steps were derived
    _derived_from: int | None = None
    _resumed_at = 0  # the step of the checkpoint that the run resumes from

    def __init__(
        self,
        *,
        seq_len: int,
        micro_batch_size: int,
        global_batch_tokens: int | None,
        validate_every: int | None,
        eval_batch_size: int | None,
        num_workers: int,
        seed: int,
        prompts: str | None,
        cache_dir: str | None,
    ):
        super().__init__()
        check_ranges(locals(), RANGES, "data.")
        self.seq_len, self.micro_batch_size, self.global_batch_tokens = (
            seq_len,
            micro_batch_size,
            global_batch_tokens,
        )
        self._given_batch = global_batch_tokens
        self.validate_every, self.eval_batch_size = (
            validate_every,
            eval_batch_size or micro_batch_size,
        )
        self.num_workers, self.seed, self.prompts_file = num_workers, seed, prompts
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()

    def __getstate__(self) -> dict[str, Any]:
        """State without the Trainer, as for a LightningModule: a copy has no Trainer yet."""
        return {**self.__dict__, "trainer": None}

    def setup(self, stage: str) -> None:
        """Set rank and world size; for fit, also derive steps and accumulation for the Trainer."""
        trainer = self.trainer
        self.rank, self.world_size = data_rank_and_size(trainer.strategy) if trainer else (0, 1)
        if stage == "fit":
            self._resumed_at = 0
            self.derive_accumulation()
            self.setup_training()
            if trainer is not None and trainer.global_step:
                self._go_on(trainer)

    @abstractmethod
    def setup_training(self) -> None:
        """Set ``order`` and ``steps``."""

    def derive_accumulation(self) -> None:
        """Set ``accumulation``, the micro-batches per optimizer step on each device.

        If ``micro_batch_size`` does not divide a device's rows per step, it is lowered to the
        largest number that does, and a message reports it. The rows of a step stay the same.

        Raises:
            UserError: ``global_batch_tokens`` is not a whole number of rows on each device.
        """
        row_on_each = self.seq_len * self.world_size
        if self.global_batch_tokens is None:
            self.global_batch_tokens = self.micro_batch_size * row_on_each
        rows, rest = divmod(self.global_batch_tokens, row_on_each)
        if rest or rows < 1:
            nearest = [count * row_on_each for count in (rows, rows + 1) if count > 0]
            raise UserError(
                f"data.global_batch_tokens={self.global_batch_tokens} is not a multiple of "
                f"seq_len * devices = {self.seq_len} * {self.world_size} = {row_on_each}; "
                f"nearest: {' or '.join(map(str, nearest or [row_on_each]))}"
            )
        wanted = min(self.micro_batch_size, rows)
        size = next(size for size in range(wanted, 0, -1) if rows % size == 0)
        if size != self.micro_batch_size:
            rank_zero_info(
                f"micro-batches of {size} rows, not data.micro_batch_size={self.micro_batch_size}: "
                f"each device has {rows} rows a step (data.global_batch_tokens="
                f"{self.global_batch_tokens})"
            )
            self.micro_batch_size = size
        self.accumulation, self._derived_from = rows // size, size

    def follow_micro_batch(self) -> None:
        """Derive batch size and steps again if ``micro_batch_size`` was changed after the setup.

        Lightning's BatchSizeFinder changes it.
        """
        if self._derived_from not in (None, self.micro_batch_size):
            self.global_batch_tokens = self._given_batch
            self.derive_accumulation()
            self.setup_training()

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the data."""

    @property
    def serving_tokenizer(self) -> Tokenizer:
        """The tokenizer that is written beside the weights."""
        return self.tokenizer

    prompt_end = ""
    """Separator between a prompt and its answer where both are shown."""

    @property
    @abstractmethod
    def sample_prompts(self) -> list[str]:
        """Texts that the model continues or answers in `SampleCallback`."""

    @property
    def rows_per_step(self) -> int:
        """Rows of seq_len tokens per optimizer step over all devices."""
        assert self.global_batch_tokens is not None
        return self.global_batch_tokens // self.seq_len

    def configure_trainer(self, validations: int) -> None:
        """Set the Trainer's accumulation, length and validation interval.

        Args:
            validations: number of validations in the run if the user sets no interval.
        """
        trainer: Any = self.trainer  # its type lacks some of the attributes set here
        if trainer is None:
            return
        accumulate = given(trainer, "accumulate_grad_batches")
        if accumulate not in (1, self.accumulation):
            raise UserError(
                f"trainer.accumulate_grad_batches={accumulate} disagrees with the batch sizes, "
                f"which give {self.accumulation}: remove it and set data.global_batch_tokens"
            )
        check_length(trainer, self.steps, self.run_length)
        replace(trainer, "accumulate_grad_batches", self.accumulation)
        self._batches = limit_batches(trainer, self.steps, self.accumulation)
        train_one_epoch(trainer)
        # The Trainer's default is the float 1.0. A value set by the user stays, including the int
        # 1.
        interval = given(trainer, "val_check_interval")
        if isinstance(interval, float) and interval == 1.0 and not trainer.fast_dev_run:
            every = (
                self.validate_every
                if self.validate_every is not None
                else max(1, self.steps // validations)
            )
            # The Trainer counts micro-batches. With check_val_every_n_epoch=None it accepts an
            # interval that is longer than an epoch.
            replace(trainer, "val_check_interval", (every or self.steps) * self.accumulation)
            replace(trainer, "check_val_every_n_epoch", None)

    @property
    @abstractmethod
    def run_length(self) -> str:
        """The setting that determines the run's length, with its value: "data.tokens=1000"."""

    def _go_on(self, trainer: L.Trainer) -> None:
        """Prepare a Trainer that has already trained to continue after its current step.

        A checkpoint, if there is one, is loaded later.
        """
        place_in_trainer(trainer, self.accumulation, self._batches)

    def take_position(self, checkpoint: dict[str, Any]) -> None:
        """Rewrite the Trainer's counters in ``checkpoint`` for its step and the length of this run.

        Raises:
            UserError: the run is shorter than the checkpoint's step.
        """
        step = checkpoint["global_step"]
        self._check_length(step)
        place_in_checkpoint(checkpoint, step, self.accumulation, self._batches)
        self._resumed_at = step

    def _check_length(self, step: int) -> None:
        """Raise UserError if the run ends before ``step``."""
        assert self.trainer is not None and self.global_batch_tokens is not None
        if step > self.steps:
            raise UserError(
                f"{self.run_length} ends before the checkpoint, which has seen "
                f"{step * self.global_batch_tokens}: give at least as many"
            )
        limits = {
            "limit_train_batches": self._batches // self.accumulation,
            "max_steps": self.trainer.max_steps,
        }
        for name, limit in limits.items():
            if 0 < limit < step:
                raise UserError(
                    f"trainer.{name}={getattr(self.trainer, name)} ends before the checkpoint's "
                    f"step {step}: raise it or leave it out"
                )

    def step_counts(self, supervised: float | None) -> dict[str, float | None]:
        """Token and micro-batch counts of an optimizer step, for its training batches.

        Args:
            supervised: supervised tokens of the step over all ranks, or the sum of their weights.
        """
        return {
            "step_tokens": supervised,
            "step_micro_batches": self.accumulation * self.world_size,
        }

    def step_sampler(self) -> StepSampler:
        """Sampler of this rank, from the Trainer's current optimizer step to the run's end."""
        if self.trainer and self.trainer.state.fn == "fit" and self.trainer.global_step:
            step, steps = self.trainer.global_step, self._batches // self.accumulation
            self._check_length(step)
            if step == steps:
                limit = f"trainer.limit_train_batches={self.trainer.limit_train_batches}"
                rank_zero_info(
                    f"nothing is left to train: step {step} of {steps} is done; a longer run "
                    f"takes more than {self.run_length if steps == self.steps else limit}"
                )
        return StepSampler(
            self.order,
            steps=self.steps,
            accumulation=self.accumulation,
            micro_batch_size=self.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            # If a module reads `estimated_stepping_batches` in configure_optimizers, loader workers
            # start before the Trainer has loaded the checkpoint's step.
            step=lambda: max(self._resumed_at, self.trainer.global_step if self.trainer else 0),
        )

    def loader(self, dataset: Dataset, batch_size: int, sampler: Any, collate: Any) -> DataLoader:
        """Build a DataLoader with this module's worker settings."""
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=_start_worker,
            persistent_workers=self.num_workers > 0,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        )

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a generated text."""
        return self.tokenizer.stop_ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt to ``predict`` from."""
        return self.tokenizer.document_start + self.tokenizer.encode(text)

    def predict_dataloader(self) -> DataLoader:
        """Batches {"prompt": list of str, "input_ids": list of list of int} of the prompts file."""
        if self.prompts_file is None:
            raise UserError(
                "data.prompts is needed for predict: a text file with a prompt a line, or JSONL "
                "with 'prompt'"
            )

        def collate(batch: list[str]) -> dict[str, list]:
            return {"prompt": batch, "input_ids": [self.encode_prompt(text) for text in batch]}

        prompts: Any = read_prompts(Path(self.prompts_file))
        return DataLoader(prompts, batch_size=self.eval_batch_size, collate_fn=collate)

    @abstractmethod
    def resume_invariants(self) -> dict[str, Any]:
        """Settings and data that decide the order of samples and must not change on resume.

        The position is not among them: it is the Trainer's step. The earlier name of this method
        was ``must_stay``.
        """

    def state_dict(self) -> dict[str, Any]:
        """The values that `load_state_dict` compares."""
        return self.resume_invariants()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's position, or refuse to resume if the order of samples changed.

        Raises:
            UserError: names the setting that differs, or the setting that ends the run before the
                checkpoint's step.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # evaluation has its own order and may use other text
        trainer: Any = self.trainer
        loaded = loaded_checkpoint(trainer) if trainer is not None else {}
        if loaded.get("global_step") == 0:  # no sample was used yet, so the order may change
            self.take_position(loaded)
            return
        for key, now in self.resume_invariants().items():
            if state_dict.get(key) != now:
                raise UserError(
                    f"data.{key} was {state_dict.get(key)} when the checkpoint was written and is "
                    f"{now} now: the samples would not continue; restore it, or start a new run "
                    "with model.init_from"
                )
        if trainer is not None:
            self.take_position(loaded)


def _start_worker(number: int) -> None:
    """Put a worker of the loader into its own process group.

    Ctrl-C in a terminal and a scheduler's signal go to a whole process group. The run finishes its
    current step and needs its workers for that. The workers end with the run, or when torch's
    watchdog, which checks every five seconds, finds that it is gone.
    """
    os.setpgid(0, 0)
    # The Trainer seeds workers only if the loader has no worker_init_fn.
    if os.environ.get("PL_SEED_WORKERS") == "1":
        pl_worker_init_function(number)


def data_rank_and_size(strategy: Strategy) -> tuple[int, int]:
    """Index of this process's part of every batch, and the number of parts.

    Tensor-parallel processes share a part.
    """
    if not isinstance(strategy, ParallelStrategy):
        return 0, 1
    sampler = strategy.distributed_sampler_kwargs
    return sampler["rank"], sampler["num_replicas"]
