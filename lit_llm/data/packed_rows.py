"""Rows of packed token trees, as a dataset for a DataLoader."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from lit_llm.data.blocks import IGNORE
from lit_llm.data.conversations import Conversations


class PackedRows(Dataset):
    """Rows of packed trees.

    A sample is {"input_ids", "labels", "document_ids", "sample_id"}, the first three int64
    (length,). Labels are the next tokens where the assistant writes, and -100 elsewhere.
    document_ids number the row's trees from 0 and are -1 in the padding. If any tree of the data
    set has branches, a sample also has "until" and "position", int64 (length,), see `Forest`. If
    any label of the data set weighs other than 0 and 1, a sample also has "label_weights", float32
    (length,). With ``token_bytes``, a sample also has "label_bytes".

    Args:
        conversations: the trees.
        rows: tree indices of each row; rows beyond the last one are empty.
        length: tokens per row, including padding.
        pad_id: padding token.
        token_bytes: UTF-8 bytes of each token, int32 (vocab,).
    """

    def __init__(
        self,
        conversations: Conversations,
        rows: list[list[int]],
        length: int,
        pad_id: int,
        token_bytes: np.ndarray | None = None,
    ):
        self.conversations, self.rows, self.length, self.pad_id = (
            conversations,
            rows,
            length,
            pad_id,
        )
        self.token_bytes = token_bytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ids = np.full(self.length, self.pad_id, np.int64)
        labels, documents = (
            np.full(self.length, IGNORE, np.int64),
            np.full(self.length, -1, np.int64),
        )
        # A token of the padding is a tree of its own.
        until, position = np.arange(1, self.length + 1), np.zeros(self.length, np.int64)
        weights, at = np.zeros(self.length, np.float32), 0
        for number, place in enumerate(self.rows[index] if index < len(self.rows) else []):
            tree = self.conversations[place]
            here = slice(at, at + len(tree))
            ids[here], labels[here], documents[here] = tree.input_ids, tree.labels, number
            until[here], position[here] = tree.until + at, tree.position
            if self.conversations.weights is not None:
                weights[here] = tree.weights
            at = here.stop
        sample = {
            "input_ids": ids,
            "labels": labels,
            "document_ids": documents,
            "sample_id": np.array(index),
        }
        if self.conversations.branches:
            sample |= {"until": until, "position": position}
        if self.conversations.weights is not None:
            sample["label_weights"] = weights
        if self.token_bytes is not None:
            sample["label_bytes"] = np.where(
                labels == IGNORE, 0, self.token_bytes[np.maximum(labels, 0)]
            )
        return sample
