"""Answers that follow a grammar, by llguidance (https://github.com/guidance-ai/llguidance, MIT).

Masks of the allowed tokens are computed in a thread while the model computes the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Grammars:
    """Makes the matchers of a tokenizer's grammars.

    Args:
        tokenizer: of the model.
        vocab_size: number of logits; at least the tokenizer's number of tokens.

    Raises:
        UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        try:
            import llguidance  # noqa: F401
        except ImportError:
            raise UserError("grammars need llguidance: pip install 'lit_llm[serve]'") from None
        self._json, self._vocab_size = tokenizer.backend.to_str(), vocab_size
        self._tokenizers: dict[tuple[int, ...], Any] = {}
        self._thread = ThreadPoolExecutor(1, "grammar masks")

    def check(self, grammar: str, stop_ids: Sequence[int]) -> None:
        """Refuse a grammar that cannot be enforced.

        Raises:
            UserError: with llguidance's message.
        """
        from llguidance import LLMatcher

        tokenizer = self._tokenizer(stop_ids)
        message = LLMatcher.validate_grammar(grammar, tokenizer)
        if not message:
            # Some schemas, such as {"$ref": "#"}, are valid and describe no text.
            matcher = LLMatcher(tokenizer, grammar)
            matcher.compute_bitmask()
            if matcher.is_error():
                reason = matcher.get_error().partition("<state>")[0].strip()
                message = f"no token may begin the answer ({reason})"
        if message:
            raise UserError(f"grammar: {' '.join(message.split())}")

    def match(self, grammar: str, stop_ids: Sequence[int]) -> GrammarState:
        """Begin an answer that follows ``grammar``, which `check` accepts."""
        from llguidance import LLMatcher

        return GrammarState(LLMatcher(self._tokenizer(stop_ids), grammar), self._thread)

    def _tokenizer(self, stop_ids: Sequence[int]) -> Any:
        """llguidance's tokenizer with the tokens that may end an answer."""
        from llguidance import LLTokenizer

        stops = tuple(sorted(set(stop_ids)))
        if stops not in self._tokenizers:
            self._tokenizers[stops] = LLTokenizer(
                self._json, n_vocab=self._vocab_size, eos_token=list(stops) or None
            )
        return self._tokenizers[stops]


class GrammarState:
    """How far an answer has got in its grammar.

    Attributes:
        complete: whether no token may follow but one that ends the answer.
    """

    def __init__(self, matcher: LLMatcher, thread: ThreadPoolExecutor):
        self._matcher, self._thread = matcher, thread
        self.complete = False
        self._mask: Future[bytes] = thread.submit(matcher.compute_bitmask)

    def mask(self) -> Tensor:
        """Bits of the tokens that may come next: int32 (ceil(V / 32),).

        Raises:
            RuntimeError: llguidance has met a limit of its parser.
        """
        mask = self._mask.result()
        if self._matcher.is_error():
            raise RuntimeError(self._matcher.get_error())
        return torch.frombuffer(bytearray(mask), dtype=torch.int32)

    def accept(self, token: int) -> None:
        """Add a token that `mask` allows, and begin to compute the next mask."""
        self._matcher.consume_token(token)
        self.complete = self._matcher.is_stopped()
        if not self.complete:
            self._mask = self._thread.submit(self._matcher.compute_bitmask)
