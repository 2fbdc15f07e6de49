"""PretrainDataModule: raw text or a finished corpus in, exactly resumable batches of packed tokens out."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from lit_llm.corpus.build import Corpus, cached_corpus
from lit_llm.corpus.shards import read_tokens
from lit_llm.data.blocks import EvaluationWindows, TokenBlocks
from lit_llm.data.order import RankSampler, SampleOrder, StepSampler, stack_samples
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer


def default_cache_dir() -> Path:
    """Where corpora made on the way are kept: $LIT_LLM_CACHE, or lit_llm under the user's cache folder."""
    if "LIT_LLM_CACHE" in os.environ:
        return Path(os.environ["LIT_LLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lit_llm"


class PretrainDataModule(L.LightningDataModule):
    """Packed text for next-token prediction, under any LightningModule.

    A training batch is {"input_ids": int64 (micro_batch_size, seq_len), "labels": the same shape, the next tokens,
    "sample_id": int64 (micro_batch_size,), "step_tokens": int}, step_tokens being the supervised tokens of the whole
    optimizer step over all ranks and micro-batches, by which a summed loss is divided. Evaluation batches carry
    "label_bytes" instead of the last two, one loader a source.

    The order is a pure function of (seed, optimizer step): a resumed run goes on with the very sample it would have
    seen, whatever the number of workers. The run is one epoch of ``steps`` optimizer steps long, however often it
    passes over the text.

    Args:
        tokens: horizon of the run in tokens, e.g. 20_000_000 or 2e7.
        seq_len: tokens a sample.
        micro_batch_size: samples a device takes at once.
        global_batch_tokens: tokens an optimizer step takes over all devices; accumulation is derived from it. None: one
            micro-batch a device.
        sources: text to make a corpus of when ``corpus`` is not given: "stdlib" (the running interpreter's standard
            library), a file, folder or glob, a list of these, or a mapping from source names to these.
        text_field: field of JSONL rows and parquet columns that holds the text.
        corpus: a finished corpus folder; replaces ``sources``, ``tokenizer``, ``vocab_size`` and
            ``validation_fraction``.
        tokenizer: a tokenizer.json or a folder with one. None trains a byte-level BPE of ``vocab_size`` on the text.
        vocab_size: tokens of a trained tokenizer, special ones included.
        validation_fraction: share of documents held out, chosen by a hash of their names.
        validate_every: optimizer steps between validations. None: ten times in the run. 0: only at the end.
        eval_batch_size: samples a device evaluates at once. None: micro_batch_size.
        num_workers: loader processes; 0 reads in the training process, enough for local disks.
        seed: of the sample order.
        prompts: for ``predict``, a text file with a prompt a line, or JSONL with "prompt".
        cache_dir: where a corpus made from ``sources`` is kept and found again. None: $LIT_LLM_CACHE or
            ~/.cache/lit_llm.

    Raises:
        UserError: sources that match nothing, shapes that do not divide, less text than one sample.
    """

    def __init__(
        self,
        tokens: int | float = 20_000_000,
        seq_len: int = 1024,
        micro_batch_size: int = 8,
        global_batch_tokens: int | None = None,
        sources: str | list[str] | dict[str, str | list[str]] = "stdlib",
        text_field: str = "text",
        corpus: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 4096,
        validation_fraction: float = 0.05,
        validate_every: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        prompts: str | None = None,
        cache_dir: str | None = None,
    ):
        super().__init__()
        at_least_one = {"tokens": tokens, "seq_len": seq_len, "micro_batch_size": micro_batch_size}
        for name, value in at_least_one.items():
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}")
        if not 0 < validation_fraction < 1:
            raise UserError(f"data.validation_fraction must be between 0 and 1, got {validation_fraction}")
        self.num_tokens, self.seq_len, self.micro_batch_size = int(tokens), seq_len, micro_batch_size
        self.global_batch_tokens = global_batch_tokens
        self.corpus_folder = corpus
        self.build_settings: dict[str, Any] = {
            "sources": sources,
            "text_field": text_field,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "validation_fraction": validation_fraction,
        }
        self.validate_every, self.eval_batch_size = validate_every, eval_batch_size or micro_batch_size
        self.num_workers, self.seed, self.prompts_file = num_workers, seed, prompts
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.corpus: Corpus | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer; there after ``prepare_data``."""
        return self._corpus.tokenizer

    @property
    def validation_sources(self) -> list[str]:
        """Names of the validation loaders, in order."""
        return list(self._corpus.validation_dirs)

    @cached_property
    def sample_prompts(self) -> list[str]:
        """The first 12 tokens of up to three validation documents, for `SampleCallback`."""
        tokens = read_tokens(next(iter(self._corpus.validation_dirs.values())))
        separators = np.flatnonzero(tokens[:1_000_000] == self.tokenizer.eos_id)[:3]
        begins = [tokens[at + 1 : at + 13] for at in separators]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in begins if len(ids)]

    @property
    def _corpus(self) -> Corpus:
        if self.corpus is None:
            self.corpus = self._find_corpus(quiet=True)
        return self.corpus

    def prepare_data(self) -> None:
        """Build the corpus if it is not there yet; another process at the same work waits or finds it done."""
        self.corpus = self._find_corpus(quiet=False)

    def _find_corpus(self, quiet: bool) -> Corpus:
        if self.corpus_folder is not None:
            return Corpus.load(self.corpus_folder)
        corpus, reused = cached_corpus(self.cache_dir, progress=not quiet, **self.build_settings)
        if not quiet:
            said = "reusing corpus and tokenizer" if reused else "built corpus and tokenizer"
            rank_zero_info(f"{said}: {corpus.path} ({corpus.tokens('train'):,} training tokens)")
        return corpus

    def setup(self, stage: str) -> None:
        """For fit, derive steps and accumulation, and tell the Trainer."""
        trainer = self.trainer
        self.world_size = trainer.world_size if trainer else 1
        self.rank = trainer.global_rank if trainer else 0
        if stage == "fit":
            self._setup_training()

    def _setup_training(self) -> None:
        per_pass = self.micro_batch_size * self.seq_len * self.world_size
        if self.global_batch_tokens is None:
            self.global_batch_tokens = per_pass
        if self.global_batch_tokens % per_pass:
            below = max(1, self.global_batch_tokens // per_pass)
            raise UserError(
                f"data.global_batch_tokens={self.global_batch_tokens} is not a multiple of micro_batch_size * seq_len "
                f"* devices = {per_pass}; nearest: {below * per_pass} or {(below + 1) * per_pass}"
            )
        self.accumulation = self.global_batch_tokens // per_pass
        self.steps = -(-self.num_tokens // self.global_batch_tokens)
        corpus = self._corpus
        available = corpus.tokens("train")
        self.train_dataset: TokenBlocks = TokenBlocks(list(corpus.train_dirs.values()), self.seq_len)
        if len(self.train_dataset) == 0:
            raise UserError(f"data.seq_len={self.seq_len} is longer than the text: it has {available} training tokens")
        self.order = SampleOrder(self.train_dataset.chunk_sizes, self.seed)
        trainer = self.trainer
        if trainer is None:
            return
        if trainer.accumulate_grad_batches not in (1, self.accumulation):
            raise UserError(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} disagrees with the batch sizes, "
                f"which give {self.accumulation}: remove it and set data.global_batch_tokens"
            )
        trainer.accumulate_grad_batches = self.accumulation
        trainer.fit_loop.max_epochs = 1  # the run is one epoch of the loader, whatever the Trainer's default
        # The Trainer's default is the float; the user's own setting stays, the int 1 too.
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_interval == 1.0:
            every = self.validate_every if self.validate_every is not None else max(1, self.steps // 10)
            # The Trainer counts micro-batches, and with check_val_every_n_epoch=None accepts more than an epoch has.
            trainer.val_check_interval = (every or self.steps) * self.accumulation
            trainer.check_val_every_n_epoch = None

    def train_dataloader(self) -> DataLoader:
        """Batches from the Trainer's current optimizer step to the end of the run."""
        sampler = StepSampler(
            self.order,
            steps=self.steps,
            accumulation=self.accumulation,
            micro_batch_size=self.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            step=lambda: self.trainer.global_step if self.trainer else 0,
        )
        return self._loader(self.train_dataset, self.micro_batch_size, sampler, self._collate_training)

    def _collate_training(self, samples: list[dict]) -> dict:
        return {**stack_samples(samples), "step_tokens": self.global_batch_tokens}

    def val_dataloader(self) -> list[DataLoader]:
        """One loader a source, all validation tokens, spread over the ranks."""
        token_bytes = self.tokenizer.token_bytes()
        loaders = []
        for folder in self._corpus.validation_dirs.values():
            # Ranks get equally many samples (the surplus is all ignored): sharded models meet in every forward.
            windows = EvaluationWindows(folder, self.seq_len, token_bytes, num_samples_multiple=self.world_size)
            sampler = RankSampler(len(windows), self.rank, self.world_size)
            loaders.append(self._loader(windows, self.eval_batch_size, sampler, stack_samples))
        return loaders

    def test_dataloader(self) -> list[DataLoader]:
        """The validation split: a pretraining corpus has no third one."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        """Batches of {"prompt": list of str, "input_ids": list of list of int} from the prompts file."""
        if self.prompts_file is None:
            raise UserError(
                "data.prompts is needed for predict: a text file with a prompt a line, or JSONL with 'prompt'"
            )
        prompts = read_prompts(Path(self.prompts_file))
        encode = self.tokenizer.encode
        bos = [self.tokenizer.bos_id] if self.tokenizer.bos_id is not None else []

        def collate(batch: list[str]) -> dict[str, list]:
            return {"prompt": batch, "input_ids": [bos + encode(text) for text in batch]}

        return DataLoader(prompts, batch_size=self.eval_batch_size, collate_fn=collate)  # type: ignore[arg-type]

    def _loader(self, dataset: Dataset, batch_size: int, sampler: Any, collate: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        )

    def state_dict(self) -> dict[str, Any]:
        """What the order depends on; the position itself is the Trainer's step."""
        return {"corpus": self._corpus.content, "seq_len": self.seq_len, "seed": self.seed,
                "global_batch_tokens": self.global_batch_tokens}  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume where the order would be another one.

        Raises:
            UserError: names the setting that differs.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # evaluation has an order of its own, and may be of other text
        for key, now in self.state_dict().items():
            if state_dict[key] != now:
                raise UserError(
                    f"data.{key} was {state_dict[key]} when the checkpoint was written and is {now} now: the samples "
                    "would not continue; restore it, or start a new run with model.init_from"
                )


def read_prompts(file: Path) -> list[str]:
    """Prompts of a text file (a line each) or of JSONL rows with "prompt"; empty lines are skipped."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at U+2028 and the like
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.prompts: {file} is not readable ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if file.suffix == ".jsonl":
            try:
                line = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                line = ""
            if not isinstance(line, str) or not line:
                raise UserError(f"{file}, line {number}: not a JSON object with a text as 'prompt'")
        prompts.append(line)
    if not prompts:
        raise UserError(f"data.prompts: {file} holds no prompt")
    return prompts
