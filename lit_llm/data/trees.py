"""Token trees of conversations: texts with common beginnings, stored once (see `Forest`).

Where texts part, the last common token is not stored with the common beginning. Each continuation
repeats it as its first token, with the same position. A token thus has one next token, its label,
and a tree has exactly the labels of its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lit_llm.data.blocks import IGNORE


class TokenPath(NamedTuple):
    """A text from the root of a tree.

    Attributes:
        ids: token ids, int32 (n,).
        learnt: which tokens are learnt, bool (n,).
        weights: weight of each learnt token in the loss, float32 (n,), 0 for the others. None: all
            learnt tokens weigh 1.
    """

    ids: np.ndarray
    learnt: np.ndarray
    weights: np.ndarray | None = None

    @classmethod
    def weighted(cls, ids: Sequence[int] | np.ndarray, weights: ArrayLike) -> TokenPath:
        """The text whose tokens with a weight above 0 are learnt."""
        weights = np.asarray(weights, np.float32)
        learnt = weights > 0
        plain = bool((weights[learnt] == 1).all())
        return cls(np.asarray(ids, np.int32), learnt, None if plain else weights)

    @property
    def all_weights(self) -> np.ndarray:
        """Weight of each token, float32 (n,)."""
        return self.learnt.astype(np.float32) if self.weights is None else self.weights

    def times(self, factor: float) -> TokenPath:
        """The text with its weights multiplied by ``factor``, which is above 0."""
        return self if factor == 1 else TokenPath.weighted(self.ids, self.all_weights * factor)

    def cut(self, size: int) -> TokenPath:
        """The first ``size`` tokens."""
        return TokenPath.weighted(self.ids[:size], self.all_weights[:size])


@dataclass(frozen=True)
class Tree:
    """A token tree in depth-first order; the arrays are int32 (n,), weights float32.

    Attributes:
        input_ids: tokens.
        labels: next token of each token on its path, -100 where it is not learnt.
        until: place in the tree where the subtree of the token's node ends.
        position: distance from the root.
        weights: weight of each label in the loss, 0 where it is not learnt. None: all learnt labels
            weigh 1.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    until: np.ndarray
    position: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def all_weights(self) -> np.ndarray:
        """Weight of each label, float32 (n,)."""
        return (self.labels != IGNORE).astype(np.float32) if self.weights is None else self.weights


TREE_ARRAYS = ("input_ids", "labels", "until", "position")
"""The arrays of a tree that are always there."""


def trees_of(paths: Sequence[TokenPath], capacity: int) -> list[Tree]:
    """Build as few trees of at most ``capacity`` tokens as possible in one pass over ``paths``.

    A text of n tokens takes n - 1: its last token is only a label. Texts that do not fit into the
    tree begin another one, which repeats what they have in common with the first. What is learnt in
    one tree is not learnt again in another. A token that several texts learn has the largest of
    their weights.

    Args:
        paths: texts of at most capacity + 1 tokens, two or more tokens each.
        capacity: most tokens in a tree.
    """
    texts = sorted(paths, key=lambda path: path.ids.tolist())
    builder = _Builder(max(len(path.ids) for path in texts))
    before = texts[0].ids[:0]
    for path in texts:
        ids, weights = path.ids, path.all_weights
        shared = _common(before, ids)
        builder.label(ids, weights, shared)
        # Sorted texts share most with their predecessor, so depth-first order follows.
        if builder.size + len(ids) - max(shared, 1) > capacity:
            builder.begin_tree()
            builder.add(ids, weights, 0, known=shared)
        else:
            builder.add(ids, weights, max(shared - 1, 0), known=shared)
        before = ids
    return builder.trees()


def answers_tree(prompt: np.ndarray, answers: Sequence[TokenPath]) -> Tree:
    """The tree of a prompt and its answers, which part right behind the prompt.

    Unlike `trees_of` it keeps the answers apart where they begin with the same words, in the given
    order, and the last token of each answer is an input too, without a label: a reward model reads
    it. Each answer is a branch that begins with the prompt's last token.

    Args:
        prompt: token ids, int32 (n,), at least one.
        answers: each answer without the prompt, at least one token.
    """
    shared = len(prompt) - 1
    total = shared + sum(len(answer.ids) + 1 for answer in answers)
    ids, labels = [prompt[:-1]], [np.full(shared, IGNORE, np.int32)]
    until, position = [np.full(shared, total, np.int32)], [np.arange(shared, dtype=np.int32)]
    end = shared
    for answer in answers:
        size = len(answer.ids) + 1
        end += size
        ids.append(np.concatenate((prompt[-1:], answer.ids)))
        learnt = np.where(answer.learnt, answer.ids, IGNORE)
        labels.append(np.append(learnt, IGNORE).astype(np.int32))
        until.append(np.full(size, end, np.int32))
        position.append(np.arange(shared, shared + size, dtype=np.int32))
    return Tree(*map(np.concatenate, (ids, labels, until, position)))


def answers_of(tree: Tree) -> tuple[np.ndarray, list[TokenPath]]:
    """The prompt and the answers of an `answers_tree`."""
    begins = answer_begins(tree)
    ends = [*begins[1:], len(tree)]
    ids, learnt = tree.input_ids, tree.labels != IGNORE
    prompt = ids[: begins[0] + 1]
    return prompt, [
        TokenPath(ids[begin + 1 : end], learnt[begin : end - 1])
        for begin, end in zip(begins, ends, strict=True)
    ]


def answer_begins(tree: Tree) -> list[int]:
    """Where each branch of an `answers_tree` begins: places of the prompt's last token."""
    breaks = np.flatnonzero(np.diff(tree.position) != 1) + 1
    # The branches all begin at one distance from the root.
    if len(breaks):
        return [int(tree.position[breaks[0]]), *breaks.tolist()]
    # A single branch begins with the token before the first label.
    return [int(np.argmax(tree.labels != IGNORE))]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Number of equal tokens at the beginning of both."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


class _Builder:
    """Flat arrays of all trees.

    ``at`` is the place of each depth's token on the current path; ``labelled`` is the place where
    the label of this depth is, which is in an earlier tree after a cut.
    """

    def __init__(self, longest: int):
        self._ids: list[np.ndarray] = []
        self._labels = np.empty(0, np.int32)
        self._weights = np.empty(0, np.float32)
        self._until = np.empty(0, np.int32)
        self._position: list[np.ndarray] = []
        self._begins = [0]
        self._at = np.zeros(longest, np.int64)
        self._labelled = np.zeros(longest, np.int64)
        self._depth = 0

    @property
    def size(self) -> int:
        """Tokens of the current tree."""
        return len(self._labels) - self._begins[-1]

    def label(self, ids: np.ndarray, weights: np.ndarray, shared: int) -> None:
        """Learn the tokens among the first ``shared`` ones that this text learns too."""
        depths = np.flatnonzero(weights[1:shared])
        places = self._labelled[depths]
        self._labels[places] = ids[depths + 1]
        self._weights[places] = np.maximum(self._weights[places], weights[depths + 1])

    def begin_tree(self) -> None:
        """Close the current tree."""
        self._close(0)
        self._begins.append(len(self._labels))

    def add(self, ids: np.ndarray, weights: np.ndarray, depth: int, known: int) -> None:
        """Append the tokens from ``depth`` on; labels of the first ``known`` tokens are there."""
        self._close(depth)
        begin, count = len(self._labels), len(ids) - 1 - depth
        if count <= 0:
            return
        weights = weights[depth + 1 :].copy()
        weights[: max(known - 1 - depth, 0)] = 0
        labels = np.where(weights > 0, ids[depth + 1 :], IGNORE).astype(np.int32)
        self._ids.append(ids[depth:-1])
        self._position.append(np.arange(depth, depth + count, dtype=np.int32))
        self._labels = np.concatenate((self._labels, labels))
        self._weights = np.concatenate((self._weights, weights))
        self._until = np.concatenate((self._until, np.zeros(count, np.int32)))
        places = np.arange(begin, begin + count)
        self._at[depth : depth + count] = places
        own = max(depth, known - 1)  # depths above have their label in an earlier tree
        self._labelled[own : depth + count] = places[own - depth :]
        self._depth = depth + count

    def _close(self, depth: int) -> None:
        """End the subtrees of all tokens on the path from ``depth`` on."""
        self._until[self._at[depth : self._depth]] = len(self._labels) - self._begins[-1]
        self._depth = min(self._depth, depth)

    def trees(self) -> list[Tree]:
        """All trees."""
        self._close(0)
        ids, position = np.concatenate(self._ids), np.concatenate(self._position)
        ends = [*self._begins[1:], len(self._labels)]
        plain = bool(np.isin(self._weights, (0, 1)).all())
        return [
            Tree(
                ids[here],
                self._labels[here],
                self._until[here],
                position[here],
                None if plain else self._weights[here],
            )
            for here in map(slice, self._begins, ends)
        ]
