"""PretrainDataModule: exactly resumable batches of packed tokens from raw text or a corpus."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.utils.data import ConcatDataset, DataLoader

from lit_llm.corpus.build import cached_corpus
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import read_tokens
from lit_llm.corpus.reading.sources import STDLIB
from lit_llm.data.base import TokenDataModule
from lit_llm.data.blocks import EvaluationWindows, TokenBlocks
from lit_llm.data.mixture import MixedOrder, Phases, phases_after, read_phases
from lit_llm.data.order import RankSampler, SampleOrder, stack_samples
from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.settings.checks import check_types, plain_paths
from lit_llm.settings.ranges import VOCAB_SIZE, Range, check_ranges
from lit_llm.settings.replaced_settings import check_replaced

RANGES: dict[str, Range] = {
    "tokens": Range(1, 1e15), "max_line_bytes": Range(1, 1e12), "vocab_size": VOCAB_SIZE,
    "validation_fraction": Range(0, 1, above=True, below=True),
}  # fmt: skip
"""Ranges of the numbers that only this data module takes."""


class PretrainDataModule(TokenDataModule):
    """Packed text for next-token prediction, for any LightningModule.

    A training batch is {"input_ids": int64 (micro_batch_size, seq_len), "labels": the same shape,
    the next tokens, "sample_id": int64 (micro_batch_size,), "step_tokens": int,
    "step_micro_batches": int}. step_tokens is the number of supervised tokens of the whole
    optimizer step over all ranks and micro-batches, by which a summed loss is divided.
    step_micro_batches is the number of these micro-batches. Evaluation batches have "label_bytes"
    instead of the last three, and each source has a loader.

    The order is a pure function of (seed, optimizer step). A resumed run therefore sees exactly the
    samples that an uninterrupted run would have seen, for any number of workers. The run is one
    epoch of ``steps`` optimizer steps, however often it passes over the text.

    Documents are concatenated, and a sample may hold parts of several. With ``mask_documents``,
    every batch also has "document_ids": int64 (batch, seq_len), with which a `PretrainModule`
    computes each document as if it were alone.

    Args:
        tokens: length of the run in tokens, e.g. 20_000_000 or 2e7.
        seq_len: tokens per sample.
        micro_batch_size: samples per device and forward pass.
        global_batch_tokens: tokens per optimizer step over all devices; accumulation is derived
            from it. None: one micro-batch per device.
        sources: text to build a corpus from: "stdlib" (the running interpreter's standard library),
            a file, folder or glob, a list of these, or a mapping from source names to these. None:
            stdlib, unless ``corpus`` is given.
        mixture: weights by source, independent of the sources' sizes; or a list of {step, weights},
            each from its optimizer step on. "corpus": the mixture that the corpus was built for.
            None: all text, in equal passes. It may change on resume: the new mixture holds from
            that step on.
        mask_documents: tokens attend to their own document only, and positions count from its
            beginning; also in evaluation.
        text_field: field of JSONL rows and parquet columns that holds the text.
        max_line_bytes: a text file with a longer line, and a longer row of JSONL, is dropped.
        corpus: a finished corpus folder. It replaces ``sources``, ``tokenizer``, ``vocab_size``,
            ``validation_fraction``, ``text_field`` and ``max_line_bytes``, which are refused beside
            it.
        tokenizer: a tokenizer.json or a folder with one. None trains a byte-level BPE of
            ``vocab_size`` on the text.
        vocab_size: tokens of a trained tokenizer, including special ones; refused beside
            ``tokenizer``.
        validation_fraction: share of documents held out, chosen by a hash of their names.
        validate_every: optimizer steps between validations. None: ten times in the run. 0: only at
            the end.
        eval_batch_size: samples per device in evaluation. None: micro_batch_size.
        num_workers: loader processes. 0 reads in the training process, which is fast enough for
            local disks.
        seed: seed of the sample order.
        prompts: for ``predict``, a text file with a prompt per line, or JSONL with "prompt".
        cache_dir: folder for corpora built from ``sources``. None: $LIT_LLM_CACHE or
            ~/.cache/lit_llm.

    Raises:
        UserError: sources that match nothing, shapes that do not divide, less text than one sample,
            or two settings that exclude each other.
    """

    def __init__(
        self,
        tokens: int | float = 20_000_000,
        seq_len: int = 1024,
        micro_batch_size: int = 8,
        global_batch_tokens: int | None = None,
        sources: str | list[str] | dict[str, str | list[str]] | None = None,
        mixture: Literal["corpus"] | dict[str, float] | list[dict[str, Any]] | None = None,
        mask_documents: bool = False,
        text_field: str = "text",
        max_line_bytes: int = 100 * 2**20,
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
        check_types("data", PretrainDataModule.__init__, locals())
        check_replaced(PretrainDataModule.__init__, locals(), "data.")
        super().__init__(
            seq_len=seq_len,
            micro_batch_size=micro_batch_size,
            global_batch_tokens=global_batch_tokens,
            validate_every=validate_every,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            prompts=prompts,
            cache_dir=cache_dir,
        )
        check_ranges(locals(), RANGES, "data.")
        if sources == "" or (isinstance(sources, list) and "" in sources):
            raise UserError("data.sources is empty text: give files, globs or stdlib")
        self.num_tokens, self.corpus_folder, self.mixture = int(tokens), corpus, mixture
        self.mask_documents = mask_documents
        self.build_settings: dict[str, Any] = {
            "sources": STDLIB if sources is None else plain_paths(sources),
            "text_field": text_field,
            "max_line_bytes": max_line_bytes,
            "tokenizer": tokenizer,
            "vocab_size": vocab_size,
            "validation_fraction": validation_fraction,
        }
        self.corpus: Corpus | None = None
        self.phases: Phases | None = None  # phases of the mixture

    @property
    def tokenizer(self) -> Tokenizer:
        """The corpus's tokenizer, available after ``prepare_data``."""
        return self._corpus.tokenizer

    @property
    def validation_sources(self) -> list[str]:
        """Names of the validation loaders, in order."""
        names = list(self._corpus.validation_dirs)
        return names if takes_several_loaders(self.trainer) else ["+".join(names)]

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
        """Build the corpus if it does not exist; concurrent processes wait for the builder."""
        self.corpus = self._find_corpus(quiet=False)

    def _find_corpus(self, quiet: bool) -> Corpus:
        if self.corpus_folder is not None:
            return Corpus.load(self.corpus_folder)
        corpus, reused = cached_corpus(self.cache_dir, progress=not quiet, **self.build_settings)
        if not quiet:
            said = "reusing corpus and tokenizer" if reused else "built corpus and tokenizer"
            rank_zero_info(f"{said}: {corpus.path} ({corpus.tokens('train'):,} training tokens)")
        return corpus

    @property
    def datacard_file(self) -> Path:
        """The corpus's data card: documents, tokens, and what was left out."""
        return self._corpus.path / "datacard.json"

    def setup_training(self) -> None:
        """Set the training samples, their order and the number of steps."""
        assert self.global_batch_tokens is not None
        self.steps = -(-self.num_tokens // self.global_batch_tokens)
        corpus = self._corpus
        self.train_dataset: TokenBlocks = TokenBlocks(
            list(corpus.train_dirs.values()), self.seq_len
        )
        if len(self.train_dataset) == 0:
            available = corpus.tokens("train")
            raise UserError(
                f"data.seq_len={self.seq_len} is longer than the text: it has {available} "
                f"training tokens"
            )
        self._sizes = dict(zip(corpus.train_dirs, self.train_dataset.chunk_sizes, strict=True))
        mixture = corpus.mixture if self.mixture == "corpus" else self.mixture
        self.phases = None if mixture is None else read_phases(mixture, list(self._sizes))
        for name in {name for _, shares in self.phases or [] for name in shares}:
            if not sum(self._sizes[name]):
                raise UserError(
                    f"data.mixture: source {name} is shorter than data.seq_len={self.seq_len}"
                )
        self._set_order()
        self.configure_trainer(validations=10)

    @property
    def run_length(self) -> str:
        """The number of training tokens."""
        return f"data.tokens={self.num_tokens}"

    def _set_order(self) -> None:
        self.order = (
            SampleOrder([size for sizes in self._sizes.values() for size in sizes], self.seed)
            if self.phases is None
            else MixedOrder(self._sizes, self.phases, self.rows_per_step, self.seed)
        )

    def train_dataloader(self) -> DataLoader:
        """Batches from the Trainer's current optimizer step to the end of the run."""
        self.follow_micro_batch()
        return self.loader(
            self.train_dataset, self.micro_batch_size, self.step_sampler(), self._collate_training
        )

    @property
    def _separator(self) -> int:
        assert self.tokenizer.eos_id is not None  # every corpus has an eos token
        return self.tokenizer.eos_id

    def _collate(self, samples: list[dict]) -> dict:
        batch = stack_samples(samples)
        if self.mask_documents:  # each document begins with the separator
            batch["document_ids"] = torch.eq(batch["input_ids"], self._separator).cumsum(1)
        return batch

    def _collate_training(self, samples: list[dict]) -> dict:
        return {**self._collate(samples), **self.step_counts(self.global_batch_tokens)}

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per source, over all validation tokens, distributed over the ranks.

        A module whose evaluation takes no ``dataloader_idx`` gets one loader over all sources.
        """
        token_bytes = self.tokenizer.token_bytes()
        # All ranks get the same number of samples, padded with ignored ones: in sharded models,
        # each forward pass needs all ranks.
        datasets: list[Any] = [
            EvaluationWindows(
                folder, self.seq_len, token_bytes, num_samples_multiple=self.world_size
            )
            for folder in self._corpus.validation_dirs.values()
        ]
        if not takes_several_loaders(self.trainer):
            datasets = [ConcatDataset(datasets)]
        return [
            self.loader(
                windows,
                self.eval_batch_size,
                RankSampler(len(windows), self.rank, self.world_size),
                self._collate,
            )
            for windows in datasets
        ]

    def test_dataloader(self) -> list[DataLoader]:
        """The validation split: a pretraining corpus has no test split."""
        return self.val_dataloader()

    def resume_invariants(self) -> dict[str, Any]:
        """Settings that decide the order of samples, except the mixture (formerly must_stay)."""
        return {"corpus": self._corpus.content, "seq_len": self.seq_len, "seed": self.seed,
                "global_batch_tokens": self.global_batch_tokens,
                "mask_documents": self.mask_documents}  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The resume invariants, and the mixture up to this step."""
        step = self.trainer.global_step if self.trainer else 0
        return {**self.resume_invariants(), "mixture": self.phases, "step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the base class. A changed mixture holds from the checkpoint's step on."""
        super().load_state_dict(state_dict)
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        saved = state_dict.get("mixture")
        if (saved is None) != (self.phases is None):
            raise UserError(
                f"data.mixture was {_shares(saved)} when the checkpoint was written and is "
                f"{_shares(self.phases)} now: weights may change on resume, but not whether there "
                "are any"
            )
        if saved is not None:
            assert self.phases is not None
            self.phases = phases_after(saved, state_dict["step"], self.phases)
            self._set_order()


def takes_several_loaders(trainer: L.Trainer | None) -> bool:
    """Whether the evaluation hooks of the trainer's module accept several loaders."""
    if trainer is None:
        return True
    stage = "test" if trainer.state.fn == "test" else "validation"
    hooks = (f"{stage}_step", f"on_{stage}_batch_start", f"on_{stage}_batch_end")
    return all(
        is_param_in_hook_signature(getattr(trainer.lightning_module, hook), "dataloader_idx")
        for hook in hooks
    )


def _shares(phases: Phases | None) -> str:
    """Shares of the last phase, formatted for a message."""
    return (
        "None"
        if phases is None
        else ", ".join(f"{name}: {share:.2g}" for name, share in phases[-1][1].items())
    )
