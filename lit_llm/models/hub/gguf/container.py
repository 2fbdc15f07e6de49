"""The GGUF container: header, metadata and tensors of one file.

Every length is checked before it is used. The format (versions 2 and 3, little-endian) is described
in ``ggml/docs/gguf.md`` of llama.cpp. The ``gguf`` package's own reader trusts the counts in a file
and turns an array into a string. The header is therefore parsed here, and the package only
dequantises.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.io.git_lfs import refuse_pointer

_MAGIC = b"GGUF"
_ALIGNMENT = 32  # of tensors in the file, unless general.alignment gives another value
_MAX_DIMENSIONS = 4
# Metadata types: uint8, int8, uint16, int16, uint32, int32, float32, bool, then, after a gap,
# uint64, int64, float64
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclass
class StoredTensor:
    """The position of a tensor in the file."""

    shape: tuple[int, ...]
    """In torch's order; the file stores the innermost dimension first."""
    kind: str
    """Name of its ggml type, such as Q8_0."""
    begin: int
    """Offset in the file, in bytes."""
    size: int
    """Size in bytes."""


class _Cursor:
    """Reads forward through the header; a read past the end of the file is an error."""

    def __init__(self, data: np.memmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def broken(self, what: str) -> UserError:
        return UserError(f"{self.path}: not a whole GGUF file ({what})")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.broken(f"it ends at byte {len(self.data)}, inside its header")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        try:
            return self.take(self.scalar("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"a text before byte {self.at} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            if inner == _STRING:
                # Each text is preceded by its length of eight bytes.
                if count > (len(self.data) - self.at) // 8:
                    raise self.broken(f"a list before byte {self.at} has {count} texts")
                return [self.string() for _ in range(count)]
            if inner in _SCALARS:
                dtype = np.dtype("<" + _SCALARS[inner])
                return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        if kind in _SCALARS:
            number = self.scalar(_SCALARS[kind])
            # The shortest decimal number with this float32 value: 1e-06, as in the config, instead
            # of 9.99999997e-07.
            return float(str(np.float32(number))) if kind == _FLOAT32 else number
        raise self.broken(f"metadata of type {kind} before byte {self.at}")


class GGUFFile:
    """An open GGUF file. Only the header is read until `read` is called.

    Attributes:
        path: of the file.
        metadata: key -> value.
        tensors: name -> position in the file.

    Raises:
        UserError: the file is missing, is no GGUF file, is truncated, or has an invalid header.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.path = path
        if path.stat().st_size == 0:
            raise UserError(f"{path}: not a whole GGUF file (it is empty)")
        refuse_pointer(path)
        self._data = np.memmap(path, mode="r")
        cursor = _Cursor(self._data, path)
        if cursor.take(4) != _MAGIC:
            raise UserError(f"{path}: not a GGUF file: it does not begin with the letters GGUF")
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise UserError(
                f"{path}: GGUF version {version} is not known; 2 and 3 are (little-endian)"
            )
        num_tensors, num_keys = cursor.scalar("Q"), cursor.scalar("Q")
        # The smallest entry of either kind takes more than 12 bytes.
        if num_tensors + num_keys > len(self._data) // 12:
            raise cursor.broken(
                f"it claims {num_tensors} tensors and {num_keys} keys in {len(self._data)} bytes"
            )
        self.metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = cursor.string()
            if key in self.metadata:
                raise cursor.broken(f"key {key} occurs twice")
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        self.tensors = self._read_infos(cursor, num_tensors)

    def _read_infos(self, cursor: _Cursor, count: int) -> dict[str, StoredTensor]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        infos: dict[str, StoredTensor] = {}
        for _ in range(count):
            name, rank = cursor.string(), cursor.scalar("I")
            if rank > _MAX_DIMENSIONS:
                raise cursor.broken(f"tensor {name} has {rank} dimensions")
            shape = tuple(reversed([cursor.scalar("Q") for _ in range(rank)]))
            code, offset = cursor.scalar("I"), cursor.scalar("Q")
            if name in infos:
                raise cursor.broken(f"tensor {name} occurs twice")
            try:
                kind = GGMLQuantizationType(code)
            except ValueError:
                raise UserError(f"{self.path}: tensor {name} has the unknown type {code}") from None
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if not shape or 0 in shape or shape[-1] % block:
                raise cursor.broken(f"tensor {name} of type {kind.name} has shape {shape}")
            infos[name] = StoredTensor(
                shape, kind.name, offset, math.prod(shape) // block * block_bytes
            )
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise cursor.broken(f"general.alignment is {alignment!r}")
        start = -(-cursor.at // alignment) * alignment
        for name, info in infos.items():
            info.begin += start
            if info.begin + info.size > len(self._data):
                raise cursor.broken(
                    f"tensor {name} ends at byte {info.begin + info.size}, the file at "
                    f"{len(self._data)}"
                )
        return infos

    def read(self, name: str) -> Tensor:
        """Return tensor ``name`` dequantised: float32, contiguous.

        Raises:
            UserError: the gguf package cannot dequantise the tensor's type.
        """
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        raw = self._data[info.begin : info.begin + info.size]
        kind = GGMLQuantizationType[info.kind]
        try:
            if info.kind in ("F32", "F16"):
                values = raw.view("<f4" if info.kind == "F32" else "<f2").astype(np.float32)
            else:
                values = dequantize(raw.reshape(*info.shape[:-1], -1), kind)
        except NotImplementedError:
            raise UserError(
                f"{self.path}: tensor {name} has type {info.kind}, which cannot be dequantised "
                "here; take a file of another quantisation"
            ) from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(info.shape)

    def equal(self, name: str, other: str) -> bool:
        """Whether both tensors are in the file, with the same type, shape and bytes."""
        a, b = self.tensors.get(name), self.tensors.get(other)
        if a is None or b is None or (a.kind, a.shape) != (b.kind, b.shape):
            return False
        return np.array_equal(
            self._data[a.begin : a.begin + a.size], self._data[b.begin : b.begin + b.size]
        )
