"""PreferenceDataModule: packed rows of compared answers, each prompt stored once."""

from __future__ import annotations

import hashlib
import inspect
from functools import cached_property
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from lit_llm.data.answer_rows import AnswerRows, stack_answers
from lit_llm.data.blocks import IGNORE
from lit_llm.data.conversations import Conversations
from lit_llm.data.examples import Encoder, RowFormat
from lit_llm.data.instructions import InstructionDataModule, Split
from lit_llm.data.mismatched import MismatchedAnswers
from lit_llm.data.order import RankSampler
from lit_llm.data.packing import pack
from lit_llm.data.preference_examples import PreferenceEncoder
from lit_llm.data.rows.policy import Mixing
from lit_llm.data.rows.preferences import Judged, Pairs, Preference, to_preferences
from lit_llm.data.trees import answer_begins
from lit_llm.models.hub.huggingface import read_json
from lit_llm.settings.checks import check_types
from lit_llm.settings.ranges import Range, check_ranges
from lit_llm.settings.replaced_settings import check_replaced

RANGES: dict[str, Range] = {"pairs_per_step": Range(1, 1e9)}
"""Ranges of the numbers that only this data module takes."""


class PreferenceDataModule(InstructionDataModule):
    """Pairs of answers, or judged answers, for any LightningModule that learns preferences.

    An example is a prompt with a chosen and a rejected answer, stored as a tree in which the prompt
    stands once; the answers do not see each other. Examples are packed into rows. A pair is never
    parted. The order is a pure function of (seed, optimizer step).

    A batch has the fields of `AnswerRows`, and in training "step_tokens": int, the examples of the
    whole optimizer step over all ranks and micro-batches, by which a summed loss is divided;
    "step_chosen_tokens": int, the learnt tokens of their chosen answers; "step_micro_batches": int.
    Answer 2 k is the chosen one of example k of the batch, answer 2 k + 1 the rejected one. With
    ``unpaired`` each example has one answer, and "good" says whether it is a good one; the first
    micro-batch of a step has "mismatched": batches of `MismatchedAnswers`.

    Override ``format_example`` in a subclass for rows of another format: it returns a list of
    `Preference` or of `Judged`.

    Args:
        sources: files or globs, or a mapping that gives each a weight, with rows in the formats of
            `to_preferences`; otherwise as in `InstructionDataModule`.
        pairs: of a row with several scored responses, "all" pairs, or "best-worst".
        unpaired: read pairs as single answers that are good or bad. None: if the module's loss
            needs them (kto, apo_zero_unpaired).
        too_long: "drop" leaves out examples with more tokens than a row and counts them, "raise"
            ends the run.
        seq_len: tokens per row, which hold a prompt with both answers.
        pairs_per_step: mean number of examples in an optimizer step, if ``global_batch_tokens`` is
            None. Steps have equally many rows.
        global_batch_tokens: tokens in the rows of an optimizer step over all devices.
        validation, validation_fraction, columns, split_reasoning, mixing, source_caps,
            decontaminate, tokenizer, chat_template, add_tokens, micro_batch_size, epochs,
            min_steps, packing, bad_rows, max_validation_examples, validate_every,
            eval_batch_size, num_workers, seed, prompts, cache_dir: as in
            `InstructionDataModule`.

    Raises:
        UserError: a bad row, named with file and line; shapes that do not divide; a split without
            examples; judged answers with one label only.
    """

    def __init__(
        self,
        sources: str | list[str] | dict[str, float],
        validation: str | list[str] | dict[str, float] | None = None,
        validation_fraction: float = 0.05,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        seq_len: int = 1024,
        micro_batch_size: int = 4,
        pairs_per_step: int = 64,
        global_batch_tokens: int | None = None,
        epochs: float = 1.0,
        min_steps: int | None = None,
        packing: bool = True,
        pairs: Pairs = "all",
        unpaired: bool | None = None,
        bad_rows: Literal["raise", "skip"] = "raise",
        max_validation_examples: int | None = None,
        validate_every: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        prompts: str | None = None,
        cache_dir: str | None = None,
        columns: dict[str, str] | None = None,
        split_reasoning: Literal["auto", "off"] = "auto",
        too_long: Literal["drop", "raise"] = "drop",
        mixing: Mixing | dict[str, float] = "concat",
        source_caps: int | dict[str, int] | None = None,
        decontaminate: str | list[str] | None = None,
        add_tokens: list[str] | None = None,
    ):
        check_types("data", PreferenceDataModule.__init__, locals())
        check_replaced(PreferenceDataModule.__init__, locals(), "data.")
        check_ranges(locals(), RANGES, "data.")
        super().__init__(
            sources=sources,
            validation=validation,
            validation_fraction=validation_fraction,
            tokenizer=tokenizer,
            chat_template=chat_template,
            seq_len=seq_len,
            micro_batch_size=micro_batch_size,
            global_batch_tokens=global_batch_tokens,
            epochs=epochs,
            min_steps=min_steps,
            packing=packing,
            bad_rows=bad_rows,
            max_validation_examples=max_validation_examples,
            validate_every=validate_every,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            prompts=prompts,
            cache_dir=cache_dir,
            columns=columns,
            split_reasoning=split_reasoning,
            too_long=too_long,
            mixing=mixing,
            source_caps=source_caps,
            decontaminate=decontaminate,
            add_tokens=add_tokens,
        )
        self.pairs, self.pairs_per_step, self._unpaired = pairs, pairs_per_step, unpaired
        self._mismatched: MismatchedAnswers | None = None

    def format_example(  # type: ignore[override]
        self, row: dict[str, Any]
    ) -> list[Preference] | list[Judged]:
        """Read the comparisons in a row. Raise UserError for a row without one."""
        return to_preferences(row, self.pairs)

    @property
    def unpaired(self) -> bool:
        """Whether examples are judged answers."""
        if self._unpaired is not None:
            return self._unpaired
        module = None if self.trainer is None else self.trainer.lightning_module
        return bool(getattr(module, "unpaired", False))

    def _encoder(self) -> Encoder:
        """Makes the examples of a row."""
        return PreferenceEncoder(
            self._row_format(), self.chat, self.seq_len, self.policy, self.unpaired
        )

    def _row_format(self) -> RowFormat:
        own = type(self).format_example
        source: str = self.pairs
        if own is not PreferenceDataModule.format_example:
            source = inspect.getsource(own)
        arguments = type(self).template_arguments
        if arguments is not InstructionDataModule.template_arguments:
            source += inspect.getsource(arguments)
        version = hashlib.sha256(source.encode()).hexdigest()
        return RowFormat(self.format_example, self.template_arguments, version)

    def facts(self, split: Split) -> dict[str, np.ndarray]:
        """Numbers beside the examples of a split, each float32 (examples,)."""
        name = "good" if self.unpaired else "margin"
        return {name: np.load(self._find(quiet=True) / f"{split}.{name}.npy")}

    @property
    def num_examples(self) -> int:
        """Number of examples in both splits; "example_ids" of validation follow on training's."""
        return len(self.examples("train")) + len(self.examples("validation"))

    @property
    def content(self) -> str:
        """Digest of the token ids of all examples."""
        return str(read_json(self.datacard_file)["content"])

    def setup_training(self) -> None:
        """As in the base class; also count the learnt tokens of chosen answers in each step."""
        super().setup_training()
        examples = self.examples("train")
        rows: list[list[int]] = self.order.rows  # type: ignore[attr-defined]
        if not self.unpaired:
            of_example = _chosen_tokens(examples)
            in_row = np.zeros(self.steps * self.rows_per_step, np.int64)
            in_row[: len(rows)] = [of_example[row].sum() for row in rows]
            self.chosen_tokens = in_row.reshape(self.steps, self.rows_per_step).sum(1)
            return
        of_steps = [
            [example for row in rows[begin : begin + self.rows_per_step] for example in row]
            for begin in range(0, len(rows), self.rows_per_step)
        ]
        self._mismatched = MismatchedAnswers(examples, of_steps, self.seq_len, self._pad_id)

    def _collate_validation(self, samples: list[dict]) -> dict[str, Any]:
        batch = super()._collate_validation(samples)
        return batch if self.unpaired else batch | self._validation_counts

    @cached_property
    def _validation_counts(self) -> dict[str, int]:
        """The counts of all validation examples, as those of a step."""
        examples = self.examples("validation")
        tokens = int(_chosen_tokens(examples).sum())
        return {"step_tokens": len(examples), "step_chosen_tokens": tokens}

    def mismatched_batches(self, step: int) -> list[dict[str, Any]]:
        """This rank's part of a step's mismatched answers, see `MismatchedAnswers`."""
        assert self._mismatched is not None
        size = self.eval_batch_size
        return self._mismatched.batches(step, size, self.rank, self.world_size)

    @property
    def num_mismatched(self) -> int:
        """Number of mismatched answers in all steps of the run."""
        return 0 if self._mismatched is None else len(self._mismatched)

    def _make_steps(self, rows: int) -> None:
        """Derive the batch from ``pairs_per_step`` unless it is given."""
        if self._given_batch is None:
            packed: list[list[int]] = self.order.rows  # type: ignore[attr-defined]
            trees = sum(map(len, packed))
            wanted = max(1, round(self.pairs_per_step * rows / trees / self.world_size))
            self.global_batch_tokens = wanted * self.world_size * self.seq_len
            rank_zero_info(
                f"data.pairs_per_step={self.pairs_per_step}: {wanted * self.world_size} rows a "
                f"step, of {trees / rows:.1f} examples each"
            )
            self.derive_accumulation()
        super()._make_steps(rows)

    def _rows(self, split: Split, rows: list[list[int]]) -> AnswerRows:  # type: ignore[override]
        first = 0 if split == "train" else len(self.examples("train"))
        return AnswerRows(
            self.examples(split), rows, self.seq_len, self._pad_id, self.facts(split), first
        )

    def _items(self, examples: Conversations) -> np.ndarray:
        return np.ones(len(examples), np.int64)

    def _stack(self, samples: list[dict]) -> dict[str, Any]:
        return stack_answers(samples)

    def _collate_training(self, samples: list[dict]) -> dict:
        batch = super()._collate_training(samples)
        step, row = divmod(int(batch["sample_id"][0]), self.rows_per_step)
        if not self.unpaired:
            batch["step_chosen_tokens"] = int(self.chosen_tokens[step])
        elif row < self.micro_batch_size * self.world_size:  # the step's first micro-batch
            batch["mismatched"] = self.mismatched_batches(step)
        return batch

    def pass_over(self, split: Split) -> DataLoader:
        """Batches with every example of a split once, this rank's part of them."""
        examples = self.examples(split)
        rows = pack(examples.lengths, np.arange(len(examples)), self.seq_len)
        rows += [[] for _ in range(-len(rows) % self.world_size)]
        sampler = RankSampler(len(rows), self.rank, self.world_size)
        return self.loader(self._rows(split, rows), self.eval_batch_size, sampler, self._stack)


def _chosen_tokens(examples: Conversations) -> np.ndarray:
    """Learnt tokens of each pair's chosen answer, int64 (pairs,)."""
    counts = [int((tree.labels[: answer_begins(tree)[1]] != IGNORE).sum()) for tree in examples]
    return np.array(counts, np.int64)
