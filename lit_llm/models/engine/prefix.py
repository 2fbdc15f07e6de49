"""The prefix cache: keys and values of whole chunks of prompts, least recently used first out.

A chunk is found by a chain of SHA-256 digests over everything that its keys and values depend on:
adapter, cache dtype, scope, and all tokens from the beginning of the prompt. The model's weights
are not part of it, since a cache belongs to one engine and its model.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from lit_llm.models.engine.slots import CHUNK


@dataclass(frozen=True)
class Entry:
    """One chunk: its tokens, and keys and values (layers, K, CHUNK, D)."""

    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor


def root(adapter: str | None, dtype: str, scope: str) -> bytes:
    """First digest of a chain. Prompts of different roots never share a chunk."""
    return hashlib.sha256(repr((adapter, dtype, scope)).encode()).digest()


def digests(begin: bytes, prompt: Sequence[int]) -> Iterator[bytes]:
    """Yield the digest of each whole chunk of ``prompt``, of the chunks before it, and ``begin``.

    A chunk with the prompt's last token is left out: an answer begins with the logits of that
    token, which the cache does not hold.
    """
    digest = begin
    for start in range(0, (len(prompt) - 1) // CHUNK * CHUNK, CHUNK):
        tokens = array("q", prompt[start : start + CHUNK])
        digest = hashlib.sha256(digest + tokens.tobytes()).digest()
        yield digest


class PrefixCache:
    """Chunks by their digest.

    Args:
        budget: largest number of tokens; 0 keeps nothing.
    """

    def __init__(self, budget: int):
        self._most = budget // CHUNK
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def tokens(self) -> int:
        """Tokens in the cache."""
        return len(self._entries) * CHUNK

    def keeps(self, digest: bytes, place: int) -> bool:
        """Whether the chunk at this place of a prompt, just computed, should be put in.

        A chunk for which its own beginning would have to go should not.
        """
        return place < self._most and digest not in self._entries

    def get(self, digest: bytes, tokens: Sequence[int]) -> Entry | None:
        """Return a chunk, or None. The tokens must be equal too, not only their digest."""
        entry = self._entries.get(digest)
        if entry is None or entry.tokens != tuple(tokens):
            return None
        self._entries.move_to_end(digest)
        return entry

    def touch(self, chain: Sequence[bytes]) -> None:
        """Mark the chunks of a prompt as used, its first chunk last.

        A later chunk is of no use without those before it, so it must go before them.
        """
        for digest in reversed(chain):
            if digest in self._entries:
                self._entries.move_to_end(digest)

    def put(self, digest: bytes, tokens: Sequence[int], keys: Tensor, values: Tensor) -> None:
        """Keep a chunk, and drop the least recently used ones beyond the budget."""
        self._entries[digest] = Entry(tuple(tokens), keys, values)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
