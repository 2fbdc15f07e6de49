"""InstructionDataModule: packed rows of conversations, with the assistant's tokens as labels."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lit_llm.corpus.reading.rows import json_rows
from lit_llm.data.base import TokenDataModule
from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.data.chat.chat_tokenizer import (
    ChatTokenizer,
    chat_tokenizer,
    with_turn_end_as_eos,
)
from lit_llm.data.chat.stopping import learns_to_stop
from lit_llm.data.chat.template import Message
from lit_llm.data.conversations import Conversations, load_conversations
from lit_llm.data.encoding import encoded_conversations
from lit_llm.data.examples import ConversationEncoder, Encoder, RowFormat
from lit_llm.data.order import RankSampler, stack_samples
from lit_llm.data.packed_rows import PackedRows
from lit_llm.data.packing import PackedOrder, pack
from lit_llm.data.rows.contamination import check_items
from lit_llm.data.rows.examples_told import examples_told
from lit_llm.data.rows.policy import Format, Mixing, Reasoning, RowPolicy, TooLong, TrainOn
from lit_llm.data.rows.row_files import GENERAL, weights_of
from lit_llm.data.rows.segments import Segments, segments_of
from lit_llm.data.rows.shapes import template_arguments, to_messages
from lit_llm.errors import UserError
from lit_llm.models.added_tokens import check_tokens
from lit_llm.models.hub.huggingface import read_json
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.settings.checks import check_types, plain_paths
from lit_llm.settings.ranges import Range, check_ranges, positive
from lit_llm.settings.replaced_settings import check_replaced

Split = Literal["train", "validation"]
FEW_STEPS = 50
"""Number of optimizer steps below which finetuning changes little."""
RANGES: dict[str, Range] = {
    "epochs": positive(1e6), "validation_fraction": Range(0, 1, above=True, below=True),
    "max_validation_examples": Range(1, 1e12), "min_steps": Range(0, 1e9),
    "rehearsal": Range(0, 1, below=True), "source_caps": Range(1, 1e12),
}  # fmt: skip
"""Ranges of the numbers that only this data module takes."""


class InstructionDataModule(TokenDataModule):
    """Conversations for supervised finetuning, for any LightningModule.

    A training batch is {"input_ids", "labels", "document_ids": int64 (micro_batch_size, seq_len),
    "sample_id": int64 (micro_batch_size,), "step_tokens": int, "step_micro_batches": int}; see
    `PackedRows`. step_tokens is the number of supervised tokens of the whole optimizer step over
    all ranks and micro-batches, or the sum of their weights (float) if the batch has
    "label_weights"; step_micro_batches is the number of these micro-batches. A summed loss divided
    by step_tokens gives each token the same weight, or its own, whatever the lengths of the
    examples. The order is a pure function of (seed, optimizer step).

    Override ``format_example`` in a subclass for rows of another format, and ``template_arguments``
    for further arguments of the chat template.

    Args:
        sources: files or globs (.jsonl, .json, .csv, .tsv, .parquet; the texts also as .gz and
            .zst) with rows in the formats of `to_messages` and `segments_of`;
            "hf://owner/name[:split]"; "stdlib": questions and answers made of the standard
            library's docstrings; "general": eighty simple questions of general knowledge. A mapping
            gives each a weight, see ``mixing``.
        validation: the same for validation, without weights. None: rows whose ``split``
            says so, else a share of ``sources``.
        validation_fraction: this share: whole groups (a row's ``group``), and of rows without one
            whole clusters of near-duplicate prompts; at least one. Refused beside ``validation``.
        format: shape of the rows. "auto" finds it by their keys.
        columns: the rows' names of our keys: {messages: dialog, role: speaker, content: text}.
        train_on: answers that are learnt: "all", the "last" of a conversation, or
            "none-but-marked": those with ``train`` true or ``weight`` 1, as messages or text parts.
        reasoning: thoughts of an answer are learnt ("learn"), seen but not learnt ("mask"), or
            taken out ("drop").
        split_reasoning: "auto": a ``<think>`` block at the head of an answer becomes
            ``reasoning_content`` if the chat template knows that field. "off": it stays text.
        too_long: what becomes of a conversation with more tokens than a row. "turns": whole turns
            are left off at its end, and it is dropped if its first answer does not fit. "drop"
            drops it, "cut" cuts its text, so that the model sees an answer without its end, and
            "raise" ends the run.
        mixing: how often the examples of each source stand in an epoch. "concat": as often as its
            weight says (1.5: each once, and every other twice). "proportional": the weights part as
            many examples as there are. {temperature: t}: the same by weight * size ** (1 / t).
        source_caps: most training examples of each source, or of those in a mapping; the examples
            are evenly spaced.
        decontaminate: evaluation tasks of lm-eval, and JSONL files with items; training examples
            that share 13 words in a row with an item are left out and counted.
        tokenizer: a tokenizer.json, or a folder or GGUF file with one. None: the tokenizer of the
            module's ``init_from``.
        chat_template: a Jinja file, the name of one of the tokenizer's templates, or one of the
            package's (chatml, hermes, llama3, gemma, plain). None: the tokenizer's default one.
            Control tokens that the package's templates need and the tokenizer lacks are added.
        add_tokens: tokens to add to the tokenizer, and to the vocabulary of the module's
            ``init_from``. Those in angle or square brackets become control tokens, which only chat
            templates and ``segments`` write; any other is found in text. A token that the tokenizer
            has is told and not added.
        seq_len: tokens per row; for longer examples see ``too_long``.
        micro_batch_size: rows per device and forward pass.
        global_batch_tokens: tokens in the rows of an optimizer step over all devices; accumulation
            is derived from it. None: one micro-batch per device, or fewer rows if a small set of
            examples would otherwise make less than ``min_steps`` steps.
        epochs: passes over the examples; may be a fraction.
        min_steps: least number of optimizer steps. The batch is made smaller to reach it, as far as
            possible, and a message reports the batch. 0: the batch stays as it is. None: 50 if
            ``global_batch_tokens`` is None, else 0.
        rehearsal: share of the examples, in [0, 1), that are general questions ("general"), added
            to ``sources`` so that the model keeps its knowledge. Not added if ``sources`` names
            "general" itself.
        packing: put several examples into a row; they do not attend to each other.
        share_prefixes: compute once what the answers of a conversation have in common. Where a chat
            template renders earlier turns differently later on (many leave out their thoughts), an
            answer's context is not a beginning of the conversation; the texts then form a `Tree`,
            and batches have "until" and "position". False: each such answer is an example of its
            own, for networks that do not read trees.
        bad_rows: "raise" stops at the first row that cannot be used; "skip" leaves such rows out
            and counts them.
        max_validation_examples: most examples for validation; None: all.
        validate_every: optimizer steps between validations. None: five times in the run. 0: only at
            the end.
        eval_batch_size: rows per device in evaluation. None: micro_batch_size.
        num_workers: loader processes.
        seed: seed of the order.
        prompts: for ``predict``, a text file with a question per line, or JSONL with "prompt".
        cache_dir: folder for encoded examples. None: $LIT_LLM_CACHE or ~/.cache/lit_llm.

    Raises:
        UserError: a bad row, named with file and line; shapes that do not divide; a split without
            examples.
    """

    prompt_end = "\n"

    def __init__(
        self,
        sources: str | list[str] | dict[str, float] = "stdlib",
        validation: str | list[str] | dict[str, float] | None = None,
        validation_fraction: float = 0.05,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        seq_len: int = 1024,
        micro_batch_size: int = 4,
        global_batch_tokens: int | None = None,
        epochs: float = 1.0,
        min_steps: int | None = None,
        rehearsal: float = 0.0,
        packing: bool = True,
        share_prefixes: bool = True,
        bad_rows: Literal["raise", "skip"] = "raise",
        max_validation_examples: int | None = None,
        validate_every: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        prompts: str | None = None,
        cache_dir: str | None = None,
        format: Format = "auto",
        columns: dict[str, str] | None = None,
        train_on: TrainOn = "all",
        reasoning: Reasoning = "learn",
        split_reasoning: Literal["auto", "off"] = "auto",
        too_long: TooLong = "turns",
        mixing: Mixing | dict[str, float] = "concat",
        source_caps: int | dict[str, int] | None = None,
        decontaminate: str | list[str] | None = None,
        add_tokens: list[str] | None = None,
    ):
        check_types("data", InstructionDataModule.__init__, locals())
        check_replaced(InstructionDataModule.__init__, locals(), "data.")
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
        self.sources, self.validation, self.validation_fraction = (
            plain_paths(sources),
            plain_paths(validation),
            validation_fraction,
        )
        self.tokenizer_path, self.chat_template = tokenizer, chat_template
        self.add_tokens = list(add_tokens or ())
        check_tokens(self.add_tokens)
        self.epochs, self.packing, self.bad_rows = epochs, packing, bad_rows
        self.min_steps = min_steps
        self.rehearsal, self.share_prefixes = rehearsal, share_prefixes
        self.max_validation_examples = max_validation_examples
        self.folder: Path | None = None
        self.policy = RowPolicy(
            format=format,
            columns=columns or {},
            train_on=train_on,
            reasoning=reasoning,
            split_reasoning=split_reasoning,
            too_long=too_long,
            mixing=mixing,
            source_caps=source_caps,
            decontaminate=tuple(
                [decontaminate] if isinstance(decontaminate, str) else decontaminate or ()
            ),
        )
        self._check_sources()

    def _check_sources(self) -> None:
        """Raise UserError for weights, caps and evaluation items that cannot be used."""
        for pattern, weight in weights_of(self.sources).items():
            if not 0 <= weight <= 1e6:
                raise UserError(
                    f"data.sources: the weight of {pattern} is {weight}; it is from 0 to 1,000,000"
                )
        for pattern, weight in weights_of(self.validation or []).items():
            if weight != 1:
                raise UserError(
                    f"data.validation: the weight of {pattern} is {weight}; examples for "
                    "validation stand once, and weights are for data.sources"
                )
        caps = self.policy.source_caps
        for pattern in caps if isinstance(caps, Mapping) else ():
            if pattern not in weights_of(self.sources):
                raise UserError(f"data.source_caps: {pattern} is not one of data.sources")
        check_items(self.policy.decontaminate)

    # Subclasses may override format_example and template_arguments.

    def format_example(self, row: dict[str, Any]) -> list[Message] | Segments:
        """Read the conversation, or the text without a template, in a row.

        Raise UserError for a row without one.
        """
        return segments_of(row, self.policy.format) or to_messages(row, self.policy.format)

    def template_arguments(self, row: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the chat template besides the messages.

        These are the row's ``tools`` and ``chat_template_kwargs``.
        """
        return template_arguments(row)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the setting ``tokenizer``, or of the checkpoint that the module starts from.

        It includes ``chat_template`` and ``add_tokens``, and its `stop_ids` include the token that
        ends a turn. The run saves it beside the weights, so that a server renders and stops as in
        training; see `serving_tokenizer`.
        """
        return self._tokenizers.tokenizer

    @property
    def base_tokenizer(self) -> Tokenizer:
        """The tokenizer before tokens were added to it."""
        return self._tokenizers.base

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens that the base's tokenizer does not have, with their ids."""
        return self._tokenizers.added

    @property
    def serving_tokenizer(self) -> Tokenizer:
        """The tokenizer that is written beside the weights: its eos is the turn's end."""
        return with_turn_end_as_eos(self.chat)

    @cached_property
    def _tokenizers(self) -> ChatTokenizer:
        path = self.tokenizer_path
        if path is None and self.trainer is not None:
            path = self.trainer.lightning_module.hparams.get("init_from")
        if path is None:
            raise UserError(
                "data.tokenizer is needed: the model does not start from a directory that has one"
            )
        return chat_tokenizer(path, self.chat_template, self.add_tokens)

    @cached_property
    def chat(self) -> ChatFormat:
        """The tokenizer with its chat template."""
        return ChatFormat(self.tokenizer)

    @property
    def datacard_file(self) -> Path:
        """Data card of the examples: splits, tokens, and what was left out."""
        return self._find(quiet=True) / "datacard.json"

    def examples(self, split: Split) -> Conversations:
        """The encoded examples of a split."""
        return load_conversations(self._find(quiet=True), split)

    def prepare_data(self) -> None:
        """Encode the conversations if they are not in the cache."""
        self._find(quiet=False)

    def _find(self, quiet: bool) -> Path:
        if self.folder is None:
            named = [self.sources] if isinstance(self.sources, str) else self.sources
            rehearsal = 0.0 if GENERAL in named else self.rehearsal
            if self.rehearsal and not rehearsal and not quiet:
                rank_zero_info(f"data.rehearsal is not used: data.sources names {GENERAL} itself")
            self.folder, reused = encoded_conversations(
                self.cache_dir,
                train=self.sources,
                validation=self.validation,
                validation_fraction=self.validation_fraction,
                encoder=self._encoder(),
                bad_rows=self.bad_rows,
                rehearsal=rehearsal,
                policy=self.policy,
            )
            if not quiet:
                card = read_json(self.folder / "datacard.json")
                for line in examples_told(card, self.folder, reused):
                    rank_zero_info(line)
        return self.folder

    def _encoder(self) -> Encoder:
        """Makes the examples of a row."""
        return ConversationEncoder(
            self._row_format(), self.chat, self.seq_len, self.policy, self.share_prefixes
        )

    def _row_format(self) -> RowFormat:
        """Conversion of rows to what is encoded.

        Its version depends on the source code of the methods that a subclass overrides.
        """
        own = [
            inspect.getsource(method)
            for method, ours in (
                (type(self).format_example, InstructionDataModule.format_example),
                (type(self).template_arguments, InstructionDataModule.template_arguments),
            )
            if method is not ours
        ]
        version = hashlib.sha256("".join(own).encode()).hexdigest()
        return RowFormat(self.format_example, self.template_arguments, version)

    def setup_training(self) -> None:
        """Pack the rows; set the number of steps and the supervised tokens of each step."""
        if not learns_to_stop(self.chat):
            ends = ", ".join(self.tokenizer.decode([i]) for i in self.stop_ids) or "unknown"
            rank_zero_warn(
                "the chat template puts no token that ends a text after an answer, so the model "
                "will not learn to stop. Give one that does as data.chat_template, with the token "
                f"inside {{% generation %}} if it has such a block; tokens that end a text: {ends}"
            )
        examples = self.examples("train")
        self.order = PackedOrder(
            examples.lengths, self.seq_len, self.epochs, self.seed, self.packing
        )
        rows = self.order.rows
        self.train_dataset = self._rows("train", rows)
        self._make_steps(len(rows))
        self.steps = -(-len(rows) // self.rows_per_step)
        self._report_length(len(examples))
        in_example = self._items(examples)
        # Rows of the last step may be empty.
        in_row = np.zeros(self.steps * self.rows_per_step, in_example.dtype)
        in_row[: len(rows)] = [in_example[row].sum() for row in rows]
        self.supervised_tokens = in_row.reshape(self.steps, self.rows_per_step).sum(1)
        self.configure_trainer(validations=5)

    def _rows(self, split: Split, rows: list[list[int]]) -> PackedRows:
        """The dataset of these rows of examples."""
        token_bytes = self.tokenizer.token_bytes() if split == "validation" else None
        return PackedRows(self.examples(split), rows, self.seq_len, self._pad_id, token_bytes)

    def _items(self, examples: Conversations) -> np.ndarray:
        """What each example adds to the number by which a step's loss is divided, (examples,)."""
        return examples.weight_sums

    def _stack(self, samples: list[dict]) -> dict[str, Any]:
        """Make a batch of the dataset's samples."""
        return stack_samples(samples)

    def _make_steps(self, rows: int) -> None:
        """Make the batch smaller if ``rows`` would give fewer than ``min_steps`` steps."""
        least = self.min_steps
        if least is None:
            least = FEW_STEPS if self._given_batch is None else 0
        before = self.rows_per_step
        size = max(rows // max(1, least), 1) // self.world_size * self.world_size
        size = max(size, self.world_size)
        if -(-rows // before) >= least or size >= before:
            return
        self.global_batch_tokens = size * self.seq_len
        rank_zero_info(
            f"data.global_batch_tokens={self.global_batch_tokens}, not {before * self.seq_len}: "
            f"of {rows:,} rows that makes {-(-rows // size):,} steps, not {-(-rows // before):,} "
            "(data.min_steps=0 leaves it)"
        )
        self.derive_accumulation()

    def _report_length(self, examples: int) -> None:
        """Report the length of the run, and warn if it is short."""
        trainer = self.trainer
        steps = self.steps
        if trainer is not None and 0 < trainer.max_steps < steps:
            return  # the user limits the steps
        seen = round(self.epochs * examples)
        said = (
            f"{steps:,} optimizer steps over {seen:,} examples: data.epochs={self.epochs:g} passes "
            f"over {examples:,}"
        )
        if steps >= FEW_STEPS:
            rank_zero_info(said)
            return
        epochs = math.ceil(self.epochs * FEW_STEPS / steps)
        rank_zero_warn(
            f"{said}. In fewer than {FEW_STEPS} steps a model hardly changes: data.epochs={epochs} "
            f"makes {FEW_STEPS}"
        )

    @property
    def run_length(self) -> str:
        """The number of passes over the examples."""
        return f"data.epochs={self.epochs:g}"

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_id if self.tokenizer.pad_id is not None else 0

    def train_dataloader(self) -> DataLoader:
        """Batches from the Trainer's current optimizer step to the end of the run."""
        self.follow_micro_batch()
        return self.loader(
            self.train_dataset, self.micro_batch_size, self.step_sampler(), self._collate_training
        )

    def _collate_training(self, samples: list[dict]) -> dict:
        batch = self._stack(samples)
        # Without packing, cut the batch to its longest example. Packed rows keep one shape for the
        # compiler.
        if not self.packing:
            used = max(1, int((batch["document_ids"] >= 0).sum(1).max()))
            batch = {
                key: value[:, :used] if value.ndim == 2 else value for key, value in batch.items()
            }
        step = int(batch["sample_id"][0]) // self.rows_per_step
        return {**batch, **self.step_counts(self.supervised_tokens[step].item())}

    def _collate_validation(self, samples: list[dict]) -> dict[str, Any]:
        return self._stack(samples)

    def val_dataloader(self) -> DataLoader:
        """The validation examples, packed, distributed over the ranks."""
        examples = self.examples("validation")
        count = min(len(examples), self.max_validation_examples or len(examples))
        # Evenly spaced in the file, which may be sorted.
        chosen = np.unique(np.linspace(0, len(examples) - 1, count).astype(np.int64))
        rows = pack(examples.lengths, chosen, self.seq_len)
        # In sharded models, each forward pass needs all ranks, so all ranks get the same number of
        # rows.
        rows += [[] for _ in range(-len(rows) % self.world_size)]
        sampler = RankSampler(len(rows), self.rank, self.world_size)
        return self.loader(
            self._rows("validation", rows),
            self.eval_batch_size,
            sampler,
            self._collate_validation,
        )

    def test_dataloader(self) -> DataLoader:
        """The validation split."""
        return self.val_dataloader()

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return self.chat.stop_ids

    @cached_property
    def sample_prompts(self) -> list[str]:
        """Three questions of the validation split, for `SampleCallback`."""
        rows: Any = json_rows(self._find(quiet=True) / "manifest.jsonl")
        questions = [row["question"] for _, row in rows if row["split"] == "validation"]
        return questions[:: max(1, len(questions) // 3)][:3]

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a prompt as a user's message."""
        return self.chat.prompt_ids([{"role": "user", "content": text}])

    def resume_invariants(self) -> dict[str, Any]:
        """Settings that decide the order of rows and must not change on resume.

        The position is not among them: it is the Trainer's step. The earlier name of this method
        was ``must_stay``.
        """
        content = read_json(self.datacard_file)["content"]
        # Checkpoints from before this setting have no such entry.
        tokens = {"add_tokens": self.add_tokens} if self.add_tokens else {}
        return {
            **tokens,
            "sources": content,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "packing": self.packing,
            "global_batch_tokens": self.global_batch_tokens,
        }

    def state_dict(self) -> dict[str, Any]:
        """The resume invariants, and the number of rows if the run is set up for training."""
        dataset = getattr(self, "train_dataset", None)
        return {**self.resume_invariants(), "rows": None if dataset is None else len(dataset)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in the base class. ``epochs`` may change.

        The passes that both runs have consist of the same rows in the same order.
        """
        super().load_state_dict(state_dict)
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        begin, rows = self._resumed_at * self.rows_per_step, state_dict.get("rows")
        if rows is not None and rows < begin < len(self.train_dataset):
            # The last step of the shorter run was not full.
            rank_zero_warn(
                f"data.epochs={self.epochs:g}: the checkpoint's last step ended with a pass and "
                f"was not full; {begin - rows} rows of the next pass are left out"
            )
