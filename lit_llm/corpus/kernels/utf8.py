"""Conversion between Arrow strings and code points, for kernels.

Bytes that are not valid UTF-8 become U+DC80 to U+DCFF, and are written back as the same bytes
(Python's "surrogateescape"). So a kernel can process any text, and text that it does not change
keeps its bytes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lit_llm.corpus.kernels.jit import kernel

_ESCAPE = 0xDC00


def buffers(text: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """(bytes uint8, offsets int64 (len(text) + 1)) of an array without nulls, without a copy.

    String i is ``bytes[offsets[i]:offsets[i + 1]]``. The array may be a slice.
    """
    _, offsets, data = text.buffers()
    bytes_ = np.frombuffer(data or b"", np.uint8)
    ends = np.frombuffer(offsets or bytes(8), np.int64)[text.offset : text.offset + len(text) + 1]
    # A read-only array is another type for numba. Without this, kernels would be compiled for both
    # types.
    for array in (bytes_, ends):
        array.flags.writeable = False
    return bytes_, ends


def from_buffers(data: np.ndarray, offsets: np.ndarray) -> pa.LargeStringArray:
    """The inverse of `buffers`: an array over ``data`` and ``offsets``, without a copy."""
    return pa.LargeStringArray.from_buffers(
        len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data)
    )


@kernel
def longest(offsets: np.ndarray) -> int:
    """Bytes of the longest string: an upper limit of a string's code points and words."""
    found = 0
    for i in range(len(offsets) - 1):
        found = max(found, offsets[i + 1] - offsets[i])
    return found


@kernel
def decode(data: np.ndarray, begin: int, end: int, points: np.ndarray) -> int:
    """Write the code points of ``data[begin:end]`` to ``points`` (int32); returns their number."""
    count = 0
    i = begin
    while i < end:
        lead = np.int32(data[i])
        size = 1
        point = lead
        # The lead byte gives the length of the sequence and the least code point that needs that
        # length. Overlong forms, surrogates and truncated sequences are invalid: then the lead
        # byte alone is escaped, and decoding continues at the next byte.
        if lead >= 0x80:
            if 0xC2 <= lead < 0xE0:
                size, point, least = 2, lead & 0x1F, 0x80
            elif 0xE0 <= lead < 0xF0:
                size, point, least = 3, lead & 0x0F, 0x800
            elif 0xF0 <= lead < 0xF5:
                size, point, least = 4, lead & 0x07, 0x10000
            valid = size > 1 and i + size <= end
            if valid:
                for k in range(i + 1, i + size):
                    if data[k] & 0xC0 != 0x80:
                        valid = False
                    point = (point << 6) | np.int32(data[k] & 0x3F)
                if not least <= point <= 0x10FFFF or 0xD800 <= point <= 0xDFFF:
                    valid = False
            if not valid:
                size, point = 1, _ESCAPE + lead
        points[count] = point
        count += 1
        i += size
    return count


@kernel
def encode(points: np.ndarray, begin: int, end: int, data: np.ndarray, at: int) -> int:
    """Write ``points[begin:end]`` as UTF-8 to ``data[at:]``; returns the position after it."""
    for i in range(begin, end):
        point = points[i]
        if point < 0x80:
            data[at] = point
            at += 1
        elif point < 0x800:
            data[at] = 0xC0 | point >> 6
            data[at + 1] = 0x80 | point & 0x3F
            at += 2
        elif _ESCAPE <= point < _ESCAPE + 0x100:
            data[at] = point - _ESCAPE
            at += 1
        elif point < 0x10000:
            data[at] = 0xE0 | point >> 12
            data[at + 1] = 0x80 | point >> 6 & 0x3F
            data[at + 2] = 0x80 | point & 0x3F
            at += 3
        else:
            data[at] = 0xF0 | point >> 18
            data[at + 1] = 0x80 | point >> 12 & 0x3F
            data[at + 2] = 0x80 | point >> 6 & 0x3F
            data[at + 3] = 0x80 | point & 0x3F
            at += 4
    return at
