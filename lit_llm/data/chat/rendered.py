"""RenderedEncoder: token ids of rendered chat text.

The ids equal those of transformers' apply_chat_template(tokenize=True).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_llm.data.chat.template import CUT
from lit_llm.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

Encoded = tuple[list[int], list[tuple[int, int]]]
# Prefix for a text that continues another one. No vocabulary has this character, so no token merges
# it with the text.
_ANCHOR = "\ufdd5"


class RenderedEncoder:
    """Encodes a whole rendered text at once.

    Encoding pieces separately would give other ids: a SentencePiece-like tokenizer adds a space
    mark before every piece, and no token could span the border between two pieces. Prompts,
    training and evaluation therefore encode whole texts.

    A text with `CUT` marks is encoded by a copy of the tokenizer whose normalizer removes the
    marks. The tokenizer searches control tokens before normalization. It therefore does not find a
    control token from a message's text, and encodes it as characters.

    Args:
        tokenizer: its tokenizer.json defines the encoding; message texts cannot produce its
            ``control_tokens``.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._last: tuple[str, Encoded] = ("", ([], []))

    def encode(self, text: str) -> Encoded:
        """Encode ``text``; token i covers its characters offsets[i][0] to offsets[i][1].

        Offsets count `CUT` marks. The tokens of a character that takes several tokens have equal
        offsets.

        Consecutive texts of a conversation have a common beginning. The text between two control
        tokens is encoded independently. The ids up to the last common control token are therefore
        reused, and only the rest is encoded.

        Returns:
            (ids, offsets).
        """
        last, (ids, offsets) = self._last
        if text != last:
            common = _common(text, last) if self._sections and CUT not in text + last else 0
            kept = max(0, bisect_right(offsets, common, key=lambda span: span[1]) - 1)
            while kept and not self._tokenizer.is_control(ids[kept]):
                kept -= 1
            begin = offsets[kept][0] if kept else 0
            backend = self._without_cuts if CUT in text else self._exact
            rest = backend.encode(text[begin:], add_special_tokens=False)
            moved = [(start + begin, end + begin) for start, end in rest.offsets]
            self._last = text, (ids[:kept] + rest.ids, offsets[:kept] + moved)
        return self._last[1]

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        return self.encode(text)[0]

    def continued(self, context: list[int], text: str, begin: int) -> Encoded:
        """Ids and offsets of ``text[begin:]`` after ``context``, the ids of ``text[:begin]`` alone.

        Usually these are the remaining ids of the whole text. If a token of the whole text spans
        ``begin``, the context stays as a server sends it, and the characters up to the next token
        are encoded separately. Example: "answer: " and "answer: yes" give ``answer``, ``:``, space
        and then ``yes``, not ``space yes``.
        """
        ids, offsets = self.encode(text)
        if ids[: len(context)] == context:
            return ids[len(context) :], offsets[len(context) :]
        later = next((i for i, (start, _) in enumerate(offsets) if start >= begin), len(ids))
        end = offsets[later][0] if later < len(ids) else len(text)
        between = self._encode_piece(text[begin:end], context, ids[:later])
        return between + ids[later:], [(begin, end)] * len(between) + offsets[later:]

    def _encode_piece(self, piece: str, context: list[int], whole: list[int]) -> list[int]:
        """Ids of ``piece`` that decode after ``context`` like ``whole``, if there are any."""
        if not piece:
            return []
        expected = self._tokenizer.decode(whole)
        anchor, anchored = self.ids(_ANCHOR), self.ids(_ANCHOR + piece)
        found = self.ids(piece)
        if self._tokenizer.decode(context + found) != expected and (
            anchored[: len(anchor)] == anchor
        ):
            found = anchored[len(anchor) :]  # without the space mark at the beginning of a text
        return found

    @cached_property
    def _sections(self) -> bool:
        """Whether control tokens are searched before the text is normalized.

        Normalization may depend on where a text begins.
        """
        spec = json.loads(self._tokenizer.backend.to_str())
        return not any(
            token["normalized"]
            for token in spec.get("added_tokens", [])
            if token["content"] in self._tokenizer.control_tokens
        )

    @cached_property
    def _exact(self) -> tokenizers.Tokenizer:
        """The tokenizer without post-processor, which trims white space from offsets.

        Ids do not depend on the post-processor.
        """
        return self._copy({"post_processor": None})

    @cached_property
    def _without_cuts(self) -> tokenizers.Tokenizer:
        spec = json.loads(self._tokenizer.backend.to_str())
        remove: dict[str, Any] = {
            "type": "Replace",
            "pattern": {"String": CUT},
            "content": "",
        }
        steps = [remove] if spec["normalizer"] is None else [remove, spec["normalizer"]]
        for token in spec.get("added_tokens", []):
            if token["content"] in self._tokenizer.control_tokens:
                # Searched in the original text, so a token with CUT is not found
                token["normalized"] = False
        return self._copy(
            {
                "post_processor": None,
                "normalizer": {"type": "Sequence", "normalizers": steps},
                "added_tokens": spec.get("added_tokens", []),
            }
        )

    def _copy(self, changes: dict[str, Any]) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer as Backend

        return Backend.from_str(json.dumps(json.loads(self._tokenizer.backend.to_str()) | changes))


def _common(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
