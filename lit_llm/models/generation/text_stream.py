"""TextStream: the text of tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer


class TextStream:
    """Tokens in, text out as it can be shown: whole characters, and nothing of a stop string.

    A character can be spread over tokens, and so can a stop string: what may still become one is
        held back. The pieces
    together are ``tokenizer.decode`` of all tokens, cut where the first completed stop string
    begins.

    Attributes:
        stopped: a stop string has come; push no more.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise UserError("a stop string must not be empty")
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._shown = (
            0  # tokens of ``_ids`` whose text has been passed on: the context of those that follow
        )
        self._held = ""
        self._in_bytes = False

    def push(self, token: int) -> str:
        """The text that ``token`` makes showable; often a word, sometimes nothing."""
        self._ids.append(token)
        if self._tokenizer.has_token(token):  # decoders skip other ids: they end no run of bytes
            self._in_bytes = token in self._tokenizer.byte_tokens
        # One invalid byte makes U+FFFD of every byte in its run, those of whole characters too.
        return "" if self._in_bytes else self._advance(final=False)

    def flush(self) -> str:
        """At the end: what was held back, U+FFFD for an unfinished character."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, final: bool) -> str:
        # Decoders treat the first token of a text specially, so new tokens are decoded behind those
        # just shown.
        before = self._tokenizer.decode(self._ids[: self._shown])
        text = self._tokenizer.decode(self._ids)
        if text == before or (text.endswith("\ufffd") and not final):
            new = ""  # tokens without text are no context: the next one would be decoded as a first
        else:
            new = text[len(before) :]
            self._ids = self._ids[self._shown :]
            self._shown = len(self._ids)
        self._held += new
        # The string completed first counts, not the one that begins first, whatever pieces the
        # tokens come in.
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._held[: min(ends)[1]]
        keep = 0 if final else self._unfinished_stop()
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def _unfinished_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next(
            (n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0
        )
