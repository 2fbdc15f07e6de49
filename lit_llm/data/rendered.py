"""RenderedEncoder: token ids of rendered chat text, as transformers'
apply_chat_template(tokenize=True) gives them."""

from __future__ import annotations

import json
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lit_llm.data.template import CUT
from lit_llm.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

Encoded = tuple[list[int], list[tuple[int, int]]]
# Stands before a text that continues another one: no vocabulary has it, so no token merges it with
# what follows.
_ANCHOR = "\ufdd5"


class RenderedEncoder:
    """Encodes one whole rendered text at once.

    Pieces that are encoded alone give other ids: a SentencePiece-like tokenizer puts a space mark
        before every piece,
    and no token may reach over the border between two. So prompts, training and evaluation encode
    whole texts.

    Text that holds `CUT` marks is encoded by a copy of the tokenizer whose normalizer removes them.
    Control tokens are searched before that, so a spelled one is not found and becomes characters.

    Args:
        tokenizer: its tokenizer.json is the rule; its ``control_tokens`` may not be spelled by a
            message.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._last: tuple[str, Encoded] = ("", ([], []))

    def encode(self, text: str) -> Encoded:
        """(ids, offsets): token i stands for the characters offsets[i][0] up to offsets[i][1] of
        ``text``.

        Offsets count `CUT` marks. Tokens of one character in several bytes have the same offsets.

        Consecutive texts of a conversation begin alike. What lies between two control tokens is
        encoded by itself, so ids are taken from the text before up to the last control token that
        both have, and the rest is encoded.
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
        """The ids of ``text`` alone."""
        return self.encode(text)[0]

    def continued(self, context: list[int], text: str, begin: int) -> Encoded:
        """Ids and offsets of ``text[begin:]`` behind ``context``, the ids of ``text[:begin]``
        alone.

        As a rule these are the further ids of the whole text. Where one of its tokens reaches over
        ``begin``, the context stays as a server sends it, and the characters up to the next token
        are encoded by themselves: "answer: " and "answer: yes" give ``answer``, ``:``, space and
        then ``yes``, not ``space yes``.
        """
        ids, offsets = self.encode(text)
        if ids[: len(context)] == context:
            return ids[len(context) :], offsets[len(context) :]
        later = next((i for i, (start, _) in enumerate(offsets) if start >= begin), len(ids))
        end = offsets[later][0] if later < len(ids) else len(text)
        between = self._alone(text[begin:end], context, ids[:later])
        return between + ids[later:], [(begin, end)] * len(between) + offsets[later:]

    def _alone(self, piece: str, context: list[int], whole: list[int]) -> list[int]:
        """Ids of ``piece`` that decode behind ``context`` to what ``whole`` decodes to, where there
        are any."""
        if not piece:
            return []
        expected = self._tokenizer.decode(whole)
        anchor, anchored = self.ids(_ANCHOR), self.ids(_ANCHOR + piece)
        found = self.ids(piece)
        if self._tokenizer.decode(context + found) != expected and (
            anchored[: len(anchor)] == anchor
        ):
            found = anchored[len(anchor) :]  # without the space mark that begins a text
        return found

    @cached_property
    def _sections(self) -> bool:
        """Whether control tokens are found before the text is normalized, which may depend on where
        a text begins."""
        spec = json.loads(self._tokenizer.backend.to_str())
        return not any(
            token["normalized"]
            for token in spec.get("added_tokens", [])
            if token["content"] in self._tokenizer.control_tokens
        )

    @cached_property
    def _exact(self) -> tokenizers.Tokenizer:
        """The tokenizer without its post-processor, which shortens offsets by white space and
        changes no ids."""
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
                token["normalized"] = False  # searched in the text as it is, so never behind a CUT
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
    """How many characters two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
