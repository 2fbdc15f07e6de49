"""What our data modules share: batch sizes in tokens, an order that resumes by arithmetic, loaders,
prompts."""

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
from lit_llm.data.position import place
from lit_llm.data.trainer_settings import check_length, given, limit_batches, replace
from lit_llm.errors import UserError
from lit_llm.io.cache import default_cache_dir
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.settings.ranges import Range, check_ranges

RANGES: dict[str, Range] = {
    "seq_len": Range(1, 1e8), "micro_batch_size": Range(1, 1e6),
    "global_batch_tokens": Range(1, 1e12), "validate_every": Range(0, 1e12),
    "eval_batch_size": Range(1, 1e6), "num_workers": Range(0, 1024), "seed": Range(0, 2**32 - 1),
}  # fmt: skip
"""Ranges of the numbers that all our data modules take."""


class TokenDataModule(L.LightningDataModule, ABC):
    """Rows of ``seq_len`` tokens, batched by optimizer step.

    A run is one epoch of the loader, ``steps`` optimizer steps long; what a step sees is a function
    of the step alone, so a resumed run goes on with the very samples it would have seen, whatever
    the number of workers. Whether a run is over follows from its step and the ``steps`` it has now:
    a finished run may be made longer.

    Subclasses set ``order``, ``steps`` (after ``derive_accumulation``) and call
    ``configure_trainer`` in their setup.
    """

    order: Order
    steps: int
    _derived_from: int | None = None  # the micro-batch that batch and steps belong to
    _resumed_at = 0  # the step of the checkpoint that is being gone on from

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
        """Everything but the Trainer, as of a LightningModule: a copy has none yet."""
        return {**self.__dict__, "trainer": None}

    def setup(self, stage: str) -> None:
        """Learn among how many processes a batch is divided; for fit, derive steps and accumulation
        for the Trainer."""
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
        """Make ``order`` and ``steps``."""

    def derive_accumulation(self) -> None:
        """Set ``accumulation``, the micro-batches of an optimizer step on each device.

        Where ``micro_batch_size`` does not divide a device's rows of a step, it becomes the largest
        smaller number that does, and the run says so. The rows of a step stay the same.

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
        """Derive batch and steps anew where ``micro_batch_size`` has been changed since, as by
        Lightning's BatchSizeFinder."""
        if self._derived_from not in (None, self.micro_batch_size):
            self.global_batch_tokens = self._given_batch
            self.derive_accumulation()
            self.setup_training()

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Of the data."""

    prompt_end = ""
    """What stands between a prompt and its answer where both are shown to a reader."""

    @property
    @abstractmethod
    def sample_prompts(self) -> list[str]:
        """Texts that `SampleCallback` has the model continue or answer."""

    @property
    def rows_per_step(self) -> int:
        """Rows of seq_len tokens that an optimizer step takes over all devices."""
        assert self.global_batch_tokens is not None
        return self.global_batch_tokens // self.seq_len

    def configure_trainer(self, validations: int) -> None:
        """Give the Trainer accumulation, length and validation interval (``validations`` in the run
        unless set)."""
        trainer: Any = self.trainer  # its type does not know all that it is given
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
        trainer.fit_loop.max_epochs = (
            1  # the run is one epoch of the loader, whatever the Trainer's default
        )
        # The Trainer's default is the float; the user's own setting stays, the int 1 too.
        interval = given(trainer, "val_check_interval")
        if isinstance(interval, float) and interval == 1.0 and not trainer.fast_dev_run:
            every = (
                self.validate_every
                if self.validate_every is not None
                else max(1, self.steps // validations)
            )
            # The Trainer counts micro-batches, and with check_val_every_n_epoch=None accepts more
            # than an epoch has.
            replace(trainer, "val_check_interval", (every or self.steps) * self.accumulation)
            replace(trainer, "check_val_every_n_epoch", None)

    @property
    @abstractmethod
    def run_length(self) -> str:
        """The setting that makes the run as long as it is, with its value: "data.tokens=1000"."""

    def _go_on(self, trainer: L.Trainer) -> None:
        """Have a Trainer that has trained already go on after its step; a checkpoint, if given, is
        loaded later."""
        state = trainer.fit_loop.state_dict()
        state["state_dict"].pop("combined_loader", None)  # of another fit's loaders
        place(state, trainer.global_step, self.accumulation, self._batches)
        trainer.fit_loop.load_state_dict(state)

    def take_position(self, checkpoint: dict[str, Any]) -> None:
        """Make the Trainer's counters in ``checkpoint`` those of its step in this run.

        Raises:
            UserError: the run is shorter than the checkpoint's step.
        """
        step = checkpoint["global_step"]
        self._check_length(step)
        place(checkpoint["loops"]["fit_loop"], step, self.accumulation, self._batches)
        self._resumed_at = step

    def _check_length(self, step: int) -> None:
        """Raise a UserError if the run ends before ``step``."""
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
                    f"step {step}: "
                    "raise it or leave it out"
                )

    def step_counts(self, supervised: int | None) -> dict[str, int | None]:
        """What a training batch says of its optimizer step: supervised tokens, and micro-batches
        over all ranks."""
        return {
            "step_tokens": supervised,
            "step_micro_batches": self.accumulation * self.world_size,
        }

    def step_sampler(self) -> StepSampler:
        """This rank's rows, from the Trainer's current optimizer step to the end of the run."""
        if self.trainer and self.trainer.state.fn == "fit" and self.trainer.global_step:
            step, steps = self.trainer.global_step, self._batches // self.accumulation
            self._check_length(step)
            if step == steps:
                limit = f"trainer.limit_train_batches={self.trainer.limit_train_batches}"
                rank_zero_info(
                    f"nothing is left to train: step {step} of {steps} is done; a longer run "
                    f"takes more than "
                    f"{self.run_length if steps == self.steps else limit}"
                )
        return StepSampler(
            self.order,
            steps=self.steps,
            accumulation=self.accumulation,
            micro_batch_size=self.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            # Loader workers ask before the Trainer has taken up the checkpoint's step where a
            # module reads `estimated_stepping_batches` in its configure_optimizers.
            step=lambda: max(self._resumed_at, self.trainer.global_step if self.trainer else 0),
        )

    def loader(self, dataset: Dataset, batch_size: int, sampler: Any, collate: Any) -> DataLoader:
        """A loader with this module's workers."""
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
        """Batches of {"prompt": list of str, "input_ids": list of list of int} from the prompts
        file."""
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
    def must_stay(self) -> dict[str, Any]:
        """What the order depends on; the position itself is the Trainer's step."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` compares."""
        return self.must_stay()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume where the order would be another one; else take up the checkpoint's
        position.

        Raises:
            UserError: names the setting that differs, or the one that ends the run before the
            checkpoint.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # evaluation has an order of its own, and may be of other text
        trainer: Any = self.trainer
        loaded = trainer._checkpoint_connector._loaded_checkpoint if trainer is not None else {}
        if loaded.get("global_step") == 0:  # nothing was seen: any order goes on from there
            self.take_position(loaded)
            return
        for key, now in self.must_stay().items():
            if state_dict.get(key) != now:
                raise UserError(
                    f"data.{key} was {state_dict.get(key)} when the checkpoint was written and is "
                    f"{now} now: the "
                    "samples would not continue; restore it, or start a new run with "
                    "model.init_from"
                )
        if trainer is not None:
            # Lightning hands a data module its own part alone, and the counters belong to the
            # Trainer's.
            self.take_position(loaded)


def _start_worker(number: int) -> None:
    """Put a loader's worker into a process group of its own.

    Ctrl-C in a terminal and a scheduler's signal go to a whole group. The run finishes its step,
    for which it needs the
    workers: they end when it ends, or when torch's watchdog, every five seconds, finds it gone.
    """
    os.setpgid(0, 0)
    if (
        os.environ.get("PL_SEED_WORKERS") == "1"
    ):  # the Trainer seeds workers only where there is no such function
        pl_worker_init_function(number)


def data_rank_and_size(strategy: Strategy) -> tuple[int, int]:
    """Which part of every batch this process gets, and how many there are; tensor-parallel
    processes share one."""
    if not isinstance(strategy, ParallelStrategy):
        return 0, 1
    sampler = strategy.distributed_sampler_kwargs
    return sampler["rank"], sampler["num_replicas"]
