"""Columns of all signatures of a corpus: in memory, or in memory-mapped files above a limit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from lit_llm.corpus.block import texts
from lit_llm.corpus.kernels.digest import digests
from lit_llm.errors import UserError


class SignatureColumns:
    """Gathers signature tables; afterwards the attributes are arrays over all rows.

    Attributes:
        id_digest, digest: [n, 2] uint64, the digests of the id and of the text.
        bands: for each band [n, rows] uint16. Each band has its own file, so that a pass over one
            band does not read the others.
    """

    def __init__(self, bands: int, rows: int, memory_limit: int, folder: Path) -> None:
        """Rows beyond ``memory_limit`` bytes are written to files in ``folder``."""
        self._shapes = [(np.dtype(np.uint64), 2)] * 2 + [(np.dtype(np.uint16), rows)] * bands
        self._width = 2 * bands * rows
        self._memory_limit = memory_limit
        self._folder = folder
        self._held: list[list[np.ndarray]] = []
        self._held_bytes = 0
        self._ids: list[pa.RecordBatch] = []
        self._starts = [0]  # first row of each batch of ids, and the end of the last batch
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    @classmethod
    def gather(
        cls, tables: Iterable[pa.Table], bands: int, rows: int, memory_limit: int, folder: Path
    ) -> SignatureColumns:
        """Gather all of ``tables``, which come from ``Dedup.sign``.

        Raises:
            UserError: a sketch was made with other bands or rows.
        """
        columns = cls(bands, rows, memory_limit, folder)
        for table in tables:
            for batch in table.select(["id", "rank", "digest", "sketch"]).to_batches():
                columns._append(batch)
        columns._finish()
        return columns

    def __len__(self) -> int:
        return self._starts[-1]

    def ids(self, rows: np.ndarray) -> pa.Table:
        """Columns "id" and "rank" of ``rows``, which must be ascending."""
        edges = np.searchsorted(rows, self._starts)
        parts = [
            batch.take(pa.array(rows[start:end] - offset))
            for batch, offset, start, end in zip(
                self._ids, self._starts, edges, edges[1:], strict=False
            )
            if start < end
        ]
        return pa.Table.from_batches(parts)

    def _append(self, batch: pa.RecordBatch) -> None:
        """Split a batch of signatures into columns; write to files above the memory limit."""
        sketch = batch["sketch"]
        if sketch.type.byte_width != self._width:
            raise UserError(
                f"dedup: signatures of {sketch.type.byte_width // 2} entries where bands x rows "
                f"is {self._width // 2}; sign all documents with the same settings"
            )
        n = len(batch)
        entries = (
            _fixed(sketch).view(np.uint16).reshape(n, len(self._shapes) - 2, -1)
            if self._width
            else None
        )
        bands = (
            []
            if entries is None
            else [np.ascontiguousarray(entries[:, b]) for b in range(entries.shape[1])]
        )
        id_digest = digests(texts(batch["id"]), normalize=False)
        self._held.append(
            [id_digest, _fixed(batch["digest"]).view(np.uint64).reshape(n, 2).copy(), *bands]
        )
        ids = batch.select(["id", "rank"])
        self._ids.append(ids)
        self._starts.append(self._starts[-1] + n)
        self._held_bytes += sum(array.nbytes for array in self._held[-1]) + ids.nbytes
        if self._held_bytes > self._memory_limit:
            self._spill()

    def _spill(self) -> None:
        """Append all columns held in memory to their files."""
        for number, arrays in enumerate(zip(*self._held, strict=True)):
            with (self._folder / f"{number}.bin").open("ab") as file:
                for array in arrays:
                    array.tofile(file)
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._folder / "ids.arrow", self._ids[0].schema)
        for batch in self._ids:
            self._writer.write_batch(batch)
        self._held, self._held_bytes, self._ids = [], 0, []

    def _finish(self) -> None:
        """Make the columns: concatenated in memory, or mapped from the files."""
        if self._writer is None:
            arrays = [
                np.concatenate(parts) if parts else np.empty((0, width), dtype)
                for parts, (dtype, width) in zip(
                    zip(*self._held, strict=True) if self._held else [()] * len(self._shapes),
                    self._shapes,
                    strict=True,
                )
            ]
        else:
            self._spill()
            self._writer.close()
            reader = pa.ipc.open_file(pa.memory_map(str(self._folder / "ids.arrow")))
            self._ids = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            arrays = [
                np.memmap(self._folder / f"{number}.bin", dtype, "r").reshape(-1, width)
                for number, (dtype, width) in enumerate(self._shapes)
            ]
        self._held = []
        self.id_digest, self.digest, *self.bands = arrays


def _fixed(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """The bytes of a column, uint8, without a copy."""
    width = column.type.byte_width
    data = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return data[column.offset * width : (column.offset + len(column)) * width]
