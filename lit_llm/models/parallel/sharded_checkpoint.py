"""Read and write a sharded training checkpoint: a folder to which every process writes its shards.

Any number of processes can read the folder.

- ``part-00003.safetensors`` holds the shards of process 3 of all divided tensors.
- ``rest.pt`` is the checkpoint's dict, in which a marker string replaces each divided tensor.
- ``manifest.json``, written last, has size and CRC-32 of all files.

The offsets of the shards are stored as in torch's distributed checkpoints in safetensors, so
``torch.distributed.checkpoint.HuggingFaceStorageReader`` reads the folder too.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lit_llm.errors import UserError
from lit_llm.io.atomic import sync_names

MANIFEST = "manifest.json"
_REST = "rest.pt"
MARK = "a tensor in parts: "
"""Prefix of the marker string that replaces a divided tensor; the tensor's name follows."""
_OFFSETS = "DCP_SHARDING_INFO"  # torch/distributed/checkpoint/_hf_utils.py
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 1 << 24


class Shard(NamedTuple):
    """One process's shard of a tensor of ``shape``: the box ``local`` that starts at ``offset``."""

    local: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]


class Divided(NamedTuple):
    """One process's share of a checkpoint.

    ``shards`` holds the process's shards of tensors by name; ``rest`` is everything else, on the
    first process only.
    """

    shards: dict[str, Shard]
    rest: Any


def write_share(share: Divided, folder: Path, rank: int) -> dict[str, dict[str, int]]:
    """Write the files of process ``rank`` and sync them to disk.

    Returns size and CRC-32 by file name, see `commit`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"part-{rank:05d}.safetensors"
    files = {name: _write(folder / name, _safetensors(share.shards))}
    if share.rest is not None:
        buffer = io.BytesIO()
        torch.save(share.rest, buffer)
        files[_REST] = _write(folder / _REST, [buffer.getbuffer()])
    return files


def commit(folder: Path, target: Path, files: dict[str, dict[str, int]]) -> None:
    """Turn ``folder``, complete after all processes have written ``files``, into ``target``."""
    _write(folder / MANIFEST, [json.dumps({"version": 1, "files": files}, indent=1).encode()])
    sync_names(folder)
    put(folder, target)


def put(part: Path, target: Path) -> None:
    """Rename ``part``, a whole checkpoint (one file, or sharded), to ``target``.

    A previous checkpoint of that name is removed after the rename.
    """
    replaced = target.with_name(target.name + ".replaced")
    if target.exists() and (part.is_dir() or target.is_dir()):  # for two files one rename is enough
        discard(replaced)
        target.rename(replaced)
    try:
        part.replace(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    sync_names(target.parent)
    discard(replaced)


def discard(checkpoint: Path) -> None:
    """Remove a file, or a folder with its manifest first.

    If the removal is interrupted, the remaining folder does not count as a checkpoint.
    """
    if checkpoint.is_dir():
        (checkpoint / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


def damage_of_shards(folder: Path) -> str | None:
    """Return what is wrong with the folder's bytes, or None.

    All files are read once and compared with the manifest.
    """
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        expected = [
            (folder / name, entry["bytes"], entry["crc32"]) for name, entry in files.items()
        ]
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is not readable: {type(error).__name__}: {error}"
    with ThreadPoolExecutor() as pool:  # zlib releases the interpreter lock
        return next(filter(None, pool.map(lambda file: _difference(*file), expected)), None)


def open_shards(folder: Path, weights_only: bool | None = True) -> dict[str, Any]:
    """Return the checkpoint's dict with a `Stored` for each divided tensor; no tensor is read yet.

    Raises:
        UserError: a file is missing or broken, or the shards do not make up whole tensors.
    """
    try:
        names = json.loads((folder / MANIFEST).read_bytes())["files"]
        stored = _index([folder / name for name in names if name != _REST])
        rest = torch.load(folder / _REST, map_location="cpu", weights_only=weights_only)
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else str(error)
        raise UserError(f"{folder}: not a whole checkpoint: {missing} is missing") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{folder}: not a whole checkpoint ({said})") from None

    def found(leaf: Any) -> Any:
        marked = isinstance(leaf, str) and leaf.startswith(MARK)
        return stored[leaf.removeprefix(MARK)] if marked else leaf

    try:
        return tree_map(found, rest)
    except KeyError as error:
        raise UserError(f"{folder}: not a whole checkpoint: no part of {error} is there") from None


def read_shards(folder: Path, weights_only: bool | None = True) -> dict[str, Any]:
    """Return the checkpoint with whole tensors, as a single process would have saved it."""
    opened = open_shards(folder, weights_only)
    read: dict[int, Tensor] = {}  # a tied head stays one tensor

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, Stored):
            return leaf
        if id(leaf) not in read:
            read[id(leaf)] = leaf[...]
        return read[id(leaf)]

    return tree_map(whole, opened)


class _Piece(NamedTuple):
    reader: Any  # of the file, mapped
    name: str
    offset: list[int]
    shape: list[int]


@dataclass(frozen=True)
class Stored:
    """A tensor on disk, in shards. Indexing reads exactly the indexed box.

    The index is one slice per dimension, or ``...``.

    Attributes:
        shape, dtype: of the whole tensor.
    """

    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[_Piece, ...]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __getitem__(self, index: tuple[slice, ...] | EllipsisType) -> Tensor:
        index = tuple(map(slice, self.shape)) if isinstance(index, EllipsisType) else index
        wanted = [range(*at.indices(size)) for at, size in zip(index, self.shape, strict=True)]
        # Copy from each piece the box in which it overlaps the wanted box. ``there`` is the overlap
        # in the piece's coordinates, ``here`` in those of the result.
        read = torch.empty([len(at) for at in wanted], dtype=self.dtype)
        for piece in self.pieces:
            starts = [
                max(at.start, offset) for at, offset in zip(wanted, piece.offset, strict=True)
            ]
            stops = [
                min(at.stop, offset + size)
                for at, offset, size in zip(wanted, piece.offset, piece.shape, strict=True)
            ]
            if any(start >= stop for start, stop in zip(starts, stops, strict=True)):
                continue
            there, here = (
                tuple(slice(a - o, b - o) for a, b, o in zip(starts, stops, origin, strict=True))
                for origin in (piece.offset, [at.start for at in wanted])
            )
            read[here] = (
                piece.reader.get_slice(piece.name)[there]
                if there
                else piece.reader.get_tensor(piece.name)
            )
        return read


def _index(files: list[Path]) -> dict[str, Stored]:
    """Return every tensor that ``files`` hold shards of, by name."""
    from safetensors import SafetensorError, safe_open

    dtypes = {name: dtype for dtype, name in _DTYPES.items()}
    found: dict[str, Stored] = {}
    for file in files:
        try:
            reader = safe_open(file, framework="pt")
            for name, place in json.loads(reader.metadata()[_OFFSETS]).items():
                entry = reader.get_slice(name)
                piece = _Piece(reader, name, place["saved_offsets"], entry.get_shape())
                before = found[name].pieces if name in found else ()
                found[name] = Stored(
                    torch.Size(place["shape"]), dtypes[entry.get_dtype()], (*before, piece)
                )
        except SafetensorError as error:
            raise ValueError(f"{file.name}: {error}") from None
    for name, stored in found.items():
        if sum(math.prod(piece.shape) for piece in stored.pieces) != stored.numel():
            raise ValueError(f"the shards of {name} do not make up the whole")
    return found


def _safetensors(shards: dict[str, Shard]) -> Iterator[Any]:
    """Yield the bytes of a safetensors file piece by piece.

    The checksum can then be computed while the file is written.
    """
    places = {
        name: {"saved_offsets": shard.offset, "shape": shard.shape}
        for name, shard in shards.items()
    }
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt", "DCP_VERSION": "1.0", _OFFSETS: json.dumps(places)}
    }
    end = 0
    for name, (local, *_) in shards.items():
        begin, end = end, end + local.numel() * local.element_size()
        header[name] = {
            "dtype": _DTYPES[local.dtype],
            "shape": list(local.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for local, *_ in shards.values():
        yield local.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(file: Path, pieces: Iterable[Any]) -> dict[str, int]:
    """Write ``pieces`` and sync them to disk; returns size and CRC-32."""
    size = checksum = 0
    with open(file, "wb") as out:
        for content in pieces:
            piece = memoryview(content)
            for start in range(0, len(piece), _CHUNK):
                chunk = piece[start : start + _CHUNK]
                out.write(chunk)
                checksum = zlib.crc32(chunk, checksum)
            size += len(piece)
        out.flush()
        os.fsync(out.fileno())
    return {"bytes": size, "crc32": checksum}


def _difference(file: Path, size: int, checksum: int) -> str | None:
    """Return how ``file`` differs from the expected size and checksum, or None."""
    try:
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size} bytes, not {size}"
        found = 0
        with open(file, "rb") as content:
            while chunk := content.read(_CHUNK):
                found = zlib.crc32(chunk, found)
    except OSError as error:
        return f"{file.name}: {error.strerror}"
    return None if found == checksum else f"the checksum of {file.name} is another"
