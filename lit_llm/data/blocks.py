"""Token streams as map-style datasets: training blocks and evaluation windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from lit_llm.corpus.output.shards import read_tokens
from lit_llm.errors import UserError
from lit_llm.models.kernels.loss import IGNORE


class TokenBlocks(Dataset):
    """Blocks of seq_len + 1 tokens cut from litdata streams, in the order of ``folders``.

    A sample is {"input_ids": int64 (seq_len,), "labels": int64 (seq_len,), "sample_id": int64 ()},
    where labels are the next tokens. Litdata reads, caches and, for a remote folder, downloads the
    chunks.

    Attributes:
        chunk_sizes: samples in each chunk, by folder and in index order.
    """

    def __init__(self, folders: Sequence[Path | str], seq_len: int):
        self.folders, self.seq_len = [str(f) for f in folders], seq_len
        self._readers: list | None = None
        per_reader = [
            [chunk["dim"] // (seq_len + 1) for chunk in reader.cache._reader.config._chunks]
            for reader in self._open()
        ]
        self.chunk_sizes = per_reader
        # Not len(reader): with several ranks, that is only this rank's share.
        self.starts = np.concatenate([[0], np.cumsum([sum(sizes) for sizes in per_reader])])
        self._readers = None

    def _open(self) -> list:
        # Opened on first use in each process: a reader holds threads and memory maps, which a
        # worker must not inherit.
        if self._readers is None:
            from litdata import StreamingDataset
            from litdata.streaming.item_loader import TokensLoader
            from litdata.utilities.env import _WorkerEnv

            self._readers = [
                StreamingDataset(
                    folder, item_loader=TokensLoader(block_size=self.seq_len + 1), shuffle=False
                )
                for folder in self.folders
            ]
            for reader in self._readers:
                reader.cache = reader._create_cache(worker_env=_WorkerEnv.detect())
        return self._readers

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": None}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        reader = int(np.searchsorted(self.starts, index, side="right")) - 1
        block = np.asarray(self._open()[reader][index - int(self.starts[reader])]).astype(np.int64)
        return {"input_ids": block[:-1], "labels": block[1:], "sample_id": np.array(index)}


class EvaluationWindows(Dataset):
    """One stream cut into windows of seq_len tokens; each token but the first is predicted once.

    A sample is {"input_ids", "labels", "label_bytes"}, each (seq_len,). label_bytes (int64) is the
    UTF-8 length of each label, 0 for special tokens. The last window is padded with ignored labels.
    Windows beyond it consist of ignored labels only, so that all ranks get the same number of
    windows.
    """

    def __init__(
        self,
        folder: Path | str,
        seq_len: int,
        token_bytes: np.ndarray,
        num_samples_multiple: int = 1,
    ):
        self.tokens, self.seq_len, self.token_bytes = (
            read_tokens(Path(folder)),
            seq_len,
            token_bytes.astype(np.int64),
        )
        if len(self.tokens) < 2:
            raise UserError(
                f"{folder}: the validation split holds {len(self.tokens)} tokens; nothing can be "
                f"predicted"
            )
        windows = -(-(len(self.tokens) - 1) // seq_len)
        self.num_samples = -(-windows // num_samples_multiple) * num_samples_multiple

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        window = self.tokens[index * self.seq_len : (index + 1) * self.seq_len + 1].astype(np.int64)
        inputs, targets = np.zeros(self.seq_len, np.int64), np.full(self.seq_len, IGNORE, np.int64)
        label_bytes = np.zeros(self.seq_len, np.int64)
        if (n := len(window) - 1) > 0:
            inputs[:n], targets[:n], label_bytes[:n] = (
                window[:-1],
                window[1:],
                self.token_bytes[window[1:]],
            )
        return {"input_ids": inputs, "labels": targets, "label_bytes": label_bytes}
