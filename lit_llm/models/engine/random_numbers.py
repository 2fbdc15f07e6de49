"""Uniform random numbers that depend on a seed and a place alone, not on what was drawn before."""

from __future__ import annotations

import hashlib
import struct


def uniform(seed: int, choice: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits.

    A counter-based generator, as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
    (2011), with BLAKE2b as its function. An answer's numbers are thus the same in any batch, after
    a restart, and in any order.

    Args:
        seed: any integer; its lowest 64 bits count.
        choice: number of the answer among those to one prompt.
        position: number of the token in the answer.
    """
    counter = struct.pack("<QQQ", seed % 2**64, choice, position)
    digest = hashlib.blake2b(counter, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
