"""Token streams in litdata's chunk format, readable with ``TokensLoader`` at any block size.

This module does not use litdata's writer, because that names chunks after the distributed rank,
waits for every rank's part and writes the time. A corpus is built by one process, and the same text
must give the same bytes. The layout (uint32 item count, uint32 offsets, raw tokens; index.json) is
that of litdata 0.2, see ``litdata/streaming/writer.py``; tests read it back with litdata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_llm.errors import UserError

# 8 MB per chunk with 2-byte tokens. A block never spans two chunks, so each chunk wastes less than
# a block.
CHUNK_TOKENS = 1 << 22
_DATA_FORMATS = {"uint16": "no_header_numpy:5", "int32": "no_header_numpy:2"}  # litdata's names
# Item count (always 1: a chunk is one piece of the stream), and the two offsets around the item.
_HEADER_BYTES = 12


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 if all ids fit, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


class ShardWriter:
    """Writes token arrays to one stream, in chunks of exactly ``CHUNK_TOKENS`` tokens.

    The last chunk is shorter. ``close`` writes index.json; without it the folder is not a dataset.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.folder = folder
        self.dtype = dtype
        self._pending: list[np.ndarray] = []
        self._pending_tokens = 0
        self._chunks: list[dict[str, Any]] = []
        self._digest = hashlib.sha256()
        folder.mkdir(parents=True)

    def append(self, tokens: np.ndarray) -> None:
        """Add tokens: 1-D, any integer dtype whose values fit.

        The tokens of a document begin with the separator.
        """
        self._pending.append(tokens.astype(self.dtype, copy=False))
        self._pending_tokens += len(tokens)
        if self._pending_tokens < CHUNK_TOKENS:
            return
        stream = np.concatenate(self._pending)
        whole = len(stream) - len(stream) % CHUNK_TOKENS
        for begin in range(0, whole, CHUNK_TOKENS):
            self._write_chunk(stream[begin : begin + CHUNK_TOKENS])
        self._pending = [stream[whole:].copy()]
        self._pending_tokens = len(stream) - whole

    def close(self) -> None:
        """Write the remaining tokens and the index."""
        if self._pending_tokens:
            self._write_chunk(np.concatenate(self._pending))
        _write_index(self.folder, self._chunks, self.dtype, self._digest.hexdigest())

    def _write_chunk(self, tokens: np.ndarray) -> None:
        entry = _write_chunk(self.folder / f"chunk-0-{len(self._chunks)}.bin", tokens)
        self._digest.update(tokens.tobytes())
        self._chunks.append(entry)


def _write_chunk(file: Path, tokens: np.ndarray) -> dict[str, Any]:
    """Write a chunk; return its entry in the index."""
    size = _HEADER_BYTES + tokens.nbytes
    header = np.array([1, _HEADER_BYTES, size], dtype="<u4").tobytes()
    file.write_bytes(header + tokens.tobytes())
    return {"chunk_bytes": size, "chunk_size": 1, "dim": len(tokens), "filename": file.name}


def _write_index(folder: Path, chunks: list[dict[str, Any]], dtype: np.dtype, digest: str) -> None:
    index = {
        "chunks": chunks,
        "config": {
            "chunk_bytes": None,
            "chunk_size": CHUNK_TOKENS,
            "compression": None,
            "data_format": [_DATA_FORMATS[dtype.name]],
            "data_spec": json.dumps([1, {"type": None, "context": None, "children_spec": []}]),
            "encryption": None,
            "item_loader": "TokensLoader",
        },
        # litdata names its cache of a remote dataset after this field, so it holds a digest of the
        # content instead of the time.
        "updated_at": digest,
    }
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def without(folder: Path, spans: Sequence[tuple[int, int]], target: Path) -> list[str]:
    """Write to ``target`` the files that change when tokens are removed: chunks and index.

    A chunk may have any length (a block never spans two), so chunks without removed tokens stay as
    they are.

    Args:
        folder: the dataset.
        spans: (start, stop) positions in its stream, ascending, not overlapping.
        target: the folder to make.

    Returns:
        Names of the chunks that become empty: they are to be removed from ``folder``.
    """
    target.mkdir(parents=True)
    digest, entries, empty, start = hashlib.sha256(), [], [], 0
    dtype = np.dtype(np.uint16)
    for chunk in _read_index(folder):
        tokens = _chunk_tokens(folder, chunk)
        dtype = tokens.dtype
        kept = np.ones(len(tokens), bool)
        for first, last in spans:
            kept[max(0, first - start) : max(0, last - start)] = False
        start += len(tokens)
        if kept.all():
            entries.append(chunk)
        elif kept.any():
            tokens = tokens[kept]
            entries.append(_write_chunk(target / chunk["filename"], tokens))
        else:
            empty.append(chunk["filename"])
            continue
        digest.update(tokens.tobytes())
    _write_index(target, entries, dtype, digest.hexdigest())
    return empty


def locate(folder: Path, position: int) -> tuple[str, int]:
    """Return the file name of the chunk with a position of the stream, and the position in it."""
    for chunk in _read_index(folder):
        if position < chunk["dim"]:
            return chunk["filename"], position
        position -= chunk["dim"]
    raise IndexError(f"{folder} has no such position")


def check_shards(folder: Path, contents: bool = False) -> int:
    """Return the number of tokens in a dataset folder, and check its chunks.

    Every chunk must have the size that the index gives.

    Args:
        folder: the dataset.
        contents: read the tokens too, and compare them with the digest in the index.

    Raises:
        UserError: names the file that is missing, broken or of another size.
    """
    total, digest = 0, hashlib.sha256()
    for chunk in _read_index(folder):
        file = folder / chunk["filename"]
        found = file.stat().st_size if file.is_file() else None
        if found != chunk["chunk_bytes"]:
            state = "missing" if found is None else f"{found} bytes"
            expected = f"should be {chunk['chunk_bytes']} bytes"
            raise UserError(f"{file}: {state}, {expected}; remove the corpus and rebuild it")
        total += chunk["dim"]
        if contents:
            digest.update(_chunk_tokens(folder, chunk).tobytes())
    if contents and digest.hexdigest() != shards_digest(folder):
        raise UserError(
            f"{folder}: its tokens differ from those that were written; "
            "remove the corpus and rebuild it"
        )
    return total


def shards_digest(folder: Path) -> str:
    """Return the sha256 (hex) of a dataset's tokens, as noted when it was written."""
    return str(_read_index(folder, "updated_at"))


def read_tokens(folder: Path) -> np.ndarray:
    """Return a dataset's whole stream: 1-D uint16 or int32, memory-mapped if it is one chunk."""
    chunks = _read_index(folder)
    if len(chunks) == 1:
        return _chunk_tokens(folder, chunks[0])
    # One map after the other: each is an open file, of which a process may have about a thousand.
    wide = any(_dtype(chunk) == np.int32 for chunk in chunks)
    tokens = np.empty(sum(chunk["dim"] for chunk in chunks), np.int32 if wide else np.uint16)
    end = 0
    for chunk in chunks:
        start, end = end, end + chunk["dim"]
        tokens[start:end] = _chunk_tokens(folder, chunk)
    return tokens


def _chunk_tokens(folder: Path, chunk: dict[str, Any]) -> np.ndarray:
    file = folder / chunk["filename"]
    return np.memmap(file, _dtype(chunk), "r", _HEADER_BYTES, (chunk["dim"],))


def _dtype(chunk: dict[str, Any]) -> type[np.uint16] | type[np.int32]:
    itemsize = (chunk["chunk_bytes"] - _HEADER_BYTES) // chunk["dim"]
    return np.uint16 if itemsize == 2 else np.int32


def _read_index(folder: Path, key: str = "chunks") -> Any:
    file = folder / "index.json"
    try:
        return json.loads(file.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: missing or broken ({error}); remove the corpus and rebuild it"
        ) from error
