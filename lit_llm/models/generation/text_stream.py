"""Turn a stream of tokens into a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer


class TextStream:
    """Takes tokens and returns text that can be shown: whole characters, no part of a stop string.

    A character can be spread over several tokens, and a stop string too. Text that may still become
    part of one is held back. The pieces together are ``tokenizer.decode`` of all tokens, cut where
    the first completed stop string begins.

    Attributes:
        stopped: whether a stop string has been completed; push no more tokens then.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if not all(stop):
            raise UserError("a stop string must not be empty")
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        # Number of tokens at the start of ``_ids`` whose text has been returned already. They are
        # the context in which the following tokens are decoded.
        self._shown = 0
        self._held = ""
        self._in_bytes = False

    def push(self, token: int) -> str:
        """Return the text that ``token`` completes; often a word, sometimes nothing."""
        self._ids.append(token)
        # Decoders skip ids without a token, so such an id does not end a run of bytes.
        if self._tokenizer.has_token(token):
            self._in_bytes = token in self._tokenizer.byte_tokens
        # One invalid byte turns every byte of its run into U+FFFD, bytes of whole characters too.
        return "" if self._in_bytes else self._advance(final=False)

    def flush(self) -> str:
        """Return the text held back, at the end; U+FFFD for an unfinished character."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, final: bool) -> str:
        # Decoders treat the first token of a text specially. New tokens are therefore decoded
        # together with the tokens shown last.
        before = self._tokenizer.decode(self._ids[: self._shown])
        text = self._tokenizer.decode(self._ids)
        if text == before or (text.endswith("\ufffd") and not final):
            # Tokens without text cannot be the context: the next token would be decoded as a first.
            new = ""
        else:
            new = text[len(before) :]
            self._ids = self._ids[self._shown :]
            self._shown = len(self._ids)
        self._held += new
        # The stop string that is completed first counts, not the one that begins first. The result
        # is then the same for every division into tokens.
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
        """Length of the longest end of the held text that is the start of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next(
            (n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0
        )
