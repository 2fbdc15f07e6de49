"""Encoded conversations: arrays of token trees in memory and on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lit_llm.data.blocks import IGNORE
from lit_llm.data.trees import TREE_ARRAYS, Tree

_WEIGHTS = "weights"  # array that is there only if some label weighs other than 0 and 1


@dataclass(frozen=True)
class Conversations:
    """Encoded examples of one split.

    An example is a conversation whose answers are learnt from one `Tree`, or from several if one
    would be too long.

    Attributes:
        input_ids, labels, until, position: arrays of all trees, concatenated; int32 (tokens,).
        offsets: int64 (trees + 1,), start of each tree, and the end.
        weights: weights of all labels, float32 (tokens,), see `Tree`; None: all learnt labels weigh
            1.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    until: np.ndarray
    position: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Tree]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tree:
        """One tree."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Tree(
            self.input_ids[part],
            self.labels[part],
            self.until[part],
            self.position[part],
            None if self.weights is None else self.weights[part],
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each tree, int64 (trees,)."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> np.ndarray:
        """Learnt labels of each tree, int64 (trees,)."""
        return np.add.reduceat(self.labels != IGNORE, self.offsets[:-1], dtype=np.int64)

    @property
    def weight_sums(self) -> np.ndarray:
        """What the losses of each tree are divided by: its labels' weights, float64 (trees,).

        Without weights it is `supervised`, int64.
        """
        if self.weights is None:
            return self.supervised
        return np.add.reduceat(self.weights, self.offsets[:-1], dtype=np.float64)

    @cached_property
    def branches(self) -> bool:
        """Whether any tree has branches. The tokens of a tree without them all see its end."""
        ends = np.repeat(self.lengths, self.lengths)
        return bool((self.until != ends).any())


def write_conversations(folder: Path, split: str, trees: Sequence[Tree]) -> None:
    """Write the trees of one split, of which there is at least one, as arrays."""
    arrays = {name: [getattr(tree, name) for tree in trees] for name in TREE_ARRAYS}
    if any(tree.weights is not None for tree in trees):
        arrays[_WEIGHTS] = [tree.all_weights for tree in trees]
    for name, parts in arrays.items():
        np.save(folder / f"{split}.{name}.npy", np.concatenate(parts))
    offsets = np.cumsum([0, *map(len, trees)]).astype(np.int64)
    np.save(folder / f"{split}.offsets.npy", offsets)


def load_conversations(folder: Path, split: str) -> Conversations:
    """Load one split of an encoded folder, memory-mapped."""
    files = {name: folder / f"{split}.{name}.npy" for name in (*TREE_ARRAYS, "offsets", _WEIGHTS)}
    if not files[_WEIGHTS].is_file():
        del files[_WEIGHTS]
    return Conversations(**{name: np.load(file, mmap_mode="r") for name, file in files.items()})
