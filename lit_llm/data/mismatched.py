"""Prompts with the answers of other prompts, from which KTO estimates its KL."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_llm.data.answer_rows import AnswerRows, stack_answers
from lit_llm.data.conversations import Conversations
from lit_llm.data.packing import pack
from lit_llm.data.trees import TREE_ARRAYS, TokenPath, Tree, answers_of, answers_tree


class MismatchedAnswers:
    """Of every optimizer step its prompts, each with the answer of the step's example before it.

    The first prompt gets the last answer, so all answers of the step stand there once (section 4.1
    of arXiv:2402.01306). An answer that does not fit into a row behind its new prompt is cut.

    Args:
        examples: judged answers.
        steps: examples of each optimizer step, in their order.
        length: tokens per row.
        pad_id: padding token.
    """

    def __init__(self, examples: Conversations, steps: list[list[int]], length: int, pad_id: int):
        self.examples, self.steps, self.length, self.pad_id = examples, steps, length, pad_id
        self.first = np.cumsum([0, *map(len, steps)])
        """Index of each step's first mismatched answer among those of all steps, and their end."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def batches(self, step: int, size: int, rank: int, world_size: int) -> list[dict[str, Any]]:
        """This rank's part of a step's mismatched answers, in batches of ``size`` rows.

        "example_ids" are their indices among those of all steps. All ranks get equally many rows.
        """
        trees = [self._tree(step, place) for place in range(len(self.steps[step]))]
        lengths = np.array([len(tree) for tree in trees])
        rows = pack(lengths, np.arange(len(trees)), self.length)
        rows += [[] for _ in range(-len(rows) % world_size)]
        arrays = {name: np.concatenate([getattr(t, name) for t in trees]) for name in TREE_ARRAYS}
        whole = Conversations(**arrays, offsets=np.cumsum([0, *lengths]).astype(np.int64))
        first = int(self.first[step])
        dataset = AnswerRows(whole, rows[rank::world_size], self.length, self.pad_id, {}, first)
        samples = [dataset[index] for index in range(len(dataset))]
        return [stack_answers(samples[at : at + size]) for at in range(0, len(samples), size)]

    def _tree(self, step: int, place: int) -> Tree:
        own, before = self.steps[step][place], self.steps[step][place - 1]
        prompt, _ = answers_of(self.examples[own])
        _, (answer,) = answers_of(self.examples[before])
        room = self.length - len(prompt)
        ids, learnt = answer.ids[:room], answer.learnt[:room].copy()
        return answers_tree(prompt, [TokenPath(ids, learnt)])
