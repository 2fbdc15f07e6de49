"""Rows of packed trees of answers, with the number of each token's answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_llm.data.conversations import Conversations
from lit_llm.data.order import stack_samples
from lit_llm.data.packed_rows import PackedRows
from lit_llm.data.trees import answer_begins


class AnswerRows(Dataset):
    """Rows of packed `answers_tree`s.

    A sample is one of `PackedRows`, with "answer_ids" int64 (length,): the number in the row of
    each token's answer, -1 for prompts and padding; "answer_ends" int64 (answers,): the place of
    each answer's last token; "example_ids" int64 (examples,): the index of each tree; and each of
    ``facts``, (examples,).

    Args:
        conversations, rows, length, pad_id: as for `PackedRows`.
        facts: numbers beside the trees, each (trees,).
        first_id: index of the first tree in "example_ids".
    """

    def __init__(
        self,
        conversations: Conversations,
        rows: list[list[int]],
        length: int,
        pad_id: int,
        facts: Mapping[str, np.ndarray],
        first_id: int = 0,
    ):
        self.packed = PackedRows(conversations, rows, length, pad_id)
        self.facts, self.first_id = facts, first_id

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rows, trees = self.packed.rows, self.packed.conversations
        examples = rows[index] if index < len(rows) else []
        answers, at = np.full(self.packed.length, -1, np.int64), 0
        ends: list[int] = []
        for example in examples:
            tree = trees[example]
            begins = answer_begins(tree)
            for begin, end in zip(begins, [*begins[1:], len(tree)], strict=True):
                answers[at + begin : at + end] = len(ends)
                ends.append(at + end - 1)
            at += len(tree)
        chosen = np.array(examples, np.int64)
        return {
            **self.packed[index],
            "answer_ids": answers,
            "answer_ends": np.array(ends, np.int64),
            "example_ids": chosen + self.first_id,
            **{name: values[chosen] for name, values in self.facts.items()},
        }


def stack_answers(samples: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    """Make a batch of samples of `AnswerRows`.

    Answers are numbered through the batch. "answer_rows" int64 (answers,) is the row of each, and
    "answer_ends" its last token's place in that row.
    """
    counts = [len(sample["answer_ends"]) for sample in samples]
    firsts = np.cumsum([0, *counts])
    whole = [{k: v for k, v in s.items() if k in _STACKED} for s in samples]
    numbered = [
        np.where(sample["answer_ids"] < 0, -1, sample["answer_ids"] + first)
        for sample, first in zip(samples, firsts[:-1], strict=True)
    ]
    joined = [key for key in samples[0] if key not in (*_STACKED, "answer_ids")]
    return {
        **stack_samples(whole),
        "answer_ids": torch.from_numpy(np.stack(numbered)),
        "answer_rows": torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        **{key: torch.from_numpy(np.concatenate([s[key] for s in samples])) for key in joined},
    }


_STACKED = ("input_ids", "labels", "document_ids", "sample_id", "until", "position")
