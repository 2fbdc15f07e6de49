"""Token trees of conversations: texts with common beginnings, stored once (see `Forest`).

Where texts part, the last common token is not stored with the common beginning. Each continuation
repeats it as its first token, with the same position. A token thus has one next token, its label,
and a tree has exactly the labels of its texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from lit_llm.data.blocks import IGNORE


class TokenPath(NamedTuple):
    """A text from the root of a tree: token ids, int32 (n,), and which are learnt, bool (n,)."""

    ids: np.ndarray
    learnt: np.ndarray


@dataclass(frozen=True)
class Tree:
    """A token tree in depth-first order; all arrays are int32 (n,).

    Attributes:
        input_ids: tokens.
        labels: next token of each token on its path, -100 where it is not learnt.
        until: place in the tree where the subtree of the token's node ends.
        position: distance from the root.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    until: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


TREE_ARRAYS = tuple(field.name for field in fields(Tree))


def trees_of(paths: Sequence[TokenPath], capacity: int) -> list[Tree]:
    """Build as few trees of at most ``capacity`` tokens as possible in one pass over ``paths``.

    A text of n tokens takes n - 1: its last token is only a label. Texts that do not fit into the
    tree begin another one, which repeats what they have in common with the first. What is learnt in
    one tree is not learnt again in another.

    Args:
        paths: texts of at most capacity + 1 tokens, two or more tokens each.
        capacity: most tokens in a tree.
    """
    texts = sorted(paths, key=lambda path: path.ids.tolist())
    builder = _Builder(max(len(ids) for ids, _ in texts))
    before = texts[0][0][:0]
    for ids, learnt in texts:
        shared = _common(before, ids)
        builder.label(ids, learnt, shared)
        # Sorted texts share most with their predecessor, so depth-first order follows.
        if builder.size + len(ids) - max(shared, 1) > capacity:
            builder.begin_tree()
            builder.add(ids, learnt, 0, known=shared)
        else:
            builder.add(ids, learnt, max(shared - 1, 0), known=shared)
        before = ids
    return builder.trees()


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

    def label(self, ids: np.ndarray, learnt: np.ndarray, shared: int) -> None:
        """Learn the tokens among the first ``shared`` ones that this text learns too."""
        depths = np.flatnonzero(learnt[1:shared])
        self._labels[self._labelled[depths]] = ids[depths + 1]

    def begin_tree(self) -> None:
        """Close the current tree."""
        self._close(0)
        self._begins.append(len(self._labels))

    def add(self, ids: np.ndarray, learnt: np.ndarray, depth: int, known: int) -> None:
        """Append the tokens from ``depth`` on; labels of the first ``known`` tokens are there."""
        self._close(depth)
        begin, count = len(self._labels), len(ids) - 1 - depth
        if count <= 0:
            return
        labels = np.where(learnt[depth + 1 :], ids[depth + 1 :], IGNORE).astype(np.int32)
        labels[: max(known - 1 - depth, 0)] = IGNORE
        self._ids.append(ids[depth:-1])
        self._position.append(np.arange(depth, depth + count, dtype=np.int32))
        self._labels = np.concatenate((self._labels, labels))
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
        arrays = (
            np.concatenate(self._ids),
            self._labels,
            self._until,
            np.concatenate(self._position),
        )
        ends = [*self._begins[1:], len(self._labels)]
        return [
            Tree(*(array[begin:end] for array in arrays))
            for begin, end in zip(self._begins, ends, strict=True)
        ]
