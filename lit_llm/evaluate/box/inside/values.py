"""Plain data between the judge and the answer: None, numbers, text, bytes and containers of them.

What arrives is made anew from these types alone. An object with an equality of its own, or a
subclass, arrives as the plain value that it holds or not at all.
"""

from __future__ import annotations

import json
import os
from typing import Any

MAX_MESSAGE = 4 << 20
"""Most bytes of one message."""
_CONTAINERS = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any) -> Any:
    """Plain data as JSON's types.

    Raises:
        TypeError: another type; the message names it.
        RecursionError: nested too deeply, or in itself.
    """
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else {"int": hex(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(one) for one in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(one)] for key, one in value.items()]}
    for name, kind in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(one) for one in value]}
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode(found: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError, TypeError, RecursionError: not what `encode` makes.
    """
    if isinstance(found, list):
        return [decode(one) for one in found]
    if not isinstance(found, dict):
        return found
    ((name, held),) = found.items()
    if name == "int":
        return int(held, 16)
    if name == "complex":
        return complex(*held)
    if name == "bytes":
        return bytes.fromhex(held)
    if name == "dict":
        return {decode(key): decode(one) for key, one in held}
    return _CONTAINERS[name](decode(one) for one in held)


def send(target: int, message: Any) -> None:
    """Write one message: its length in four bytes, and JSON.

    Raises:
        ValueError: the message is longer than `MAX_MESSAGE`.
        OSError: nobody reads.
    """
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"{len(body):,} bytes in one message")
    rest = memoryview(len(body).to_bytes(4, "big") + body)
    while rest:
        rest = rest[os.write(target, rest) :]


def receive(source: int) -> Any:
    """Read one message.

    Raises:
        EOFError: nobody writes any more.
        ValueError, RecursionError: not a message.
    """
    size = int.from_bytes(_read(source, 4), "big")
    if size > MAX_MESSAGE:
        raise ValueError(f"{size:,} bytes in one message")
    return json.loads(_read(source, size))


def _read(source: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(source, min(size, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
