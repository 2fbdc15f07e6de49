"""Replace personal data and keys by placeholders such as <EMAIL>; count them, never store them.

    RedactPII().texts(["Mail jane@corp.org"])  # ["Mail <EMAIL>"]

Typographic spaces and hyphens and the digits of other scripts are treated like their ASCII forms,
see `typography`.

Most of the cost is reading text without personal data. Therefore one scan with an RE2 set of all
patterns finds out which patterns can match (110 to 210 MB/s, measured). Only these are then
searched, on the UTF-8 bytes of Arrow's buffers.

Only data that can belong to a person or a service is replaced. Private, loopback and documentation
address ranges are kept, and so are examples such as "ghp_xxxx".
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from lit_llm.corpus.block import Block, replaced, texts, utf8, with_column
from lit_llm.corpus.privacy import keys, national_ids, phones, recognizers
from lit_llm.corpus.privacy.recognizers import Recognizer
from lit_llm.corpus.privacy.typography import Folds, typed
from lit_llm.errors import UserError

# If two recognizers match overlapping text, the earlier one in this order wins.
ALL = (
    *keys.RECOGNIZERS,
    *recognizers.RECOGNIZERS,
    *national_ids.RECOGNIZERS,
    *phones.RECOGNIZERS,
)
KINDS = tuple(dict.fromkeys(recognizer.kind for recognizer in ALL))
_AROUND = 64  # bytes of context before and after a candidate that a check sees
_PASSES = 8  # a mixed list of a thousand addresses takes 5 passes


class Span(NamedTuple):
    """A finding of ``kind`` in bytes ``start`` to ``end`` of a text's UTF-8."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class RedactPII(Block):
    """Replace personal data in "text" and add "pii", a struct of int32 counts of each kind.

    Redaction is idempotent: a text is redacted until nothing more is found in it.

    Attributes:
        kinds: what to look for: secret (keys, tokens, passwords in URLs), email, iban, card,
            ip_address, national_id, phone.
        placeholder: the replacement of a value; "{kind}" becomes its kind in capitals.
    """

    name = "redact_pii"
    kinds: tuple[str, ...] = KINDS
    placeholder: str = "<{kind}>"

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise UserError(
                f"redact_pii.kinds: unknown kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}"
            )
        if any(self._find_once(self._stand_in(kind)) for kind in self.kinds):
            raise UserError(
                f"redact_pii.placeholder: {self.placeholder!r} looks like personal data itself"
            )

    def apply(self, table: pa.Table) -> pa.Table:
        """Redact "text" and add "pii"."""
        text = texts(table["text"])
        suspects, changed = [], []
        counts = {kind: [0] * len(text) for kind in self.kinds}
        for row, document in enumerate(utf8(text)):
            redacted, spans = self._redact(document)
            if spans:
                suspects.append(row)
                changed.append(redacted)
            for span in spans:
                counts[span.kind][row] += 1
        table = with_column(table, "text", replaced(text, suspects, changed))
        columns = [pa.array(counts[kind], pa.int32()) for kind in self.kinds]
        return with_column(
            table, "pii", pa.StructArray.from_arrays(columns, names=list(self.kinds))
        )

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """(start, end, kind) of what would be replaced, in order; positions are in characters."""
        data = text.encode()
        found, at, characters = [], 0, 0
        for start, end, kind in self._redact(data)[1]:
            first = characters + len(data[at:start].decode())
            at, characters = end, first + len(data[start:end].decode())
            found.append((first, characters, kind))
        return found

    def _stand_in(self, kind: str) -> bytes:
        return self.placeholder.replace("{kind}", kind.upper()).encode()

    def _redact(self, data: bytes) -> tuple[bytes, list[Span]]:
        """The redacted text, and the spans of ``data`` that were replaced.

        One pass is not enough, because a placeholder can change how its neighbour is judged:
        "1.2.3.4" is a version, but behind "<IP_ADDRESS> " it is an address. A list of thousands of
        addresses could need one pass for each. Therefore, after `_PASSES` passes, every candidate
        of a recognizer that still confirms one is accepted by its form alone.
        """
        spans: list[Span] = []
        hidden: list[Span] = []  # their placeholders in ``redacted``, in the same order
        redacted = data
        passes = itertools.count(1)
        while found := _apart(self._find_once(redacted, by_form=next(passes) > _PASSES), hidden):
            # Positions of the findings are in ``redacted``. Map them back to ``data``: behind a
            # placeholder, positions are shifted by the difference of the two ends.
            starts = [0, *(stand_in.end for stand_in in hidden)]
            shifts = [
                0,
                *(span.end - stand_in.end for span, stand_in in zip(spans, hidden, strict=True)),
            ]
            for start, end, kind in found:
                moved = shifts[bisect_right(starts, start) - 1]
                spans.append(Span(start + moved, end + moved, kind))
            spans.sort()
            parts, at, length = [], 0, 0
            hidden = []
            for span in spans:
                stand_in = self._stand_in(span.kind)
                parts += [data[at : span.start], stand_in]
                length += span.start - at + len(stand_in)
                hidden.append(Span(length - len(stand_in), length, span.kind))
                at = span.end
            redacted = b"".join(parts) + data[at:]
        return redacted, spans

    def _find_once(self, data: bytes, by_form: bool = False) -> list[Span]:
        """Spans of one pass over ``data``, without overlaps: the earlier recognizer wins.

        With ``by_form``, all candidates of a recognizer are accepted if it confirms one of them.
        """
        every, compiled = _compiled(self.kinds)
        written, data = data, typed(data)
        taken: list[Span] = []
        for index in sorted(every.Match(data) or ()):
            recognizer, pattern = compiled[index]
            spans = _spans(data, recognizer, pattern)
            if spans and by_form:
                spans = _spans(
                    data, dataclasses.replace(recognizer, accept=recognizers.as_it_is), pattern
                )
            taken = sorted([*taken, *_apart(spans, taken)])
        if data is written or not taken:
            return taken
        before = Folds.of(written).before
        return [Span(before(start), before(end), kind) for start, end, kind in taken]


def _spans(data: bytes, recognizer: Recognizer, pattern: Any) -> list[Span]:
    """The candidates of one recognizer in ``data`` that its check confirms, in order."""
    found, at = [], 0
    group = 1 if pattern.groups else 0
    while match := pattern.search(data, at):
        start, end = match.span(group)
        before = data[max(0, start - _AROUND) : start].decode(errors="ignore")
        after = data[end : end + _AROUND].decode(errors="ignore")
        value = recognizer.accept(before, data[start:end].decode(), after)
        if value:
            at = start + len(value.encode())
            found.append(Span(start, at, recognizer.kind))
        else:
            at = match.start() + 1 if recognizer.retry else match.end()
    return found


def _apart(spans: list[Span], taken: list[Span]) -> list[Span]:
    """Those of ``spans`` that overlap none of ``taken``; ``taken`` is sorted without overlaps."""
    starts = [other.start for other in taken]
    before = [bisect_left(starts, span.end) for span in spans]
    return [
        span
        for span, at in zip(spans, before, strict=True)
        if not at or taken[at - 1].end <= span.start
    ]


@functools.cache
def _compiled(kinds: tuple[str, ...]) -> tuple[Any, list[tuple[Recognizer, Any]]]:
    """(re2.Set of all patterns, [(recognizer, pattern)] in its order); cached in the process."""
    import re2

    options = re2.Options()
    # With less memory, RE2 discards the set's automaton and builds it again within a document.
    options.max_mem = 256 << 20
    every = re2.Set.SearchSet(options)
    compiled = []
    for recognizer in (r for r in ALL if r.kind in kinds):
        every.Add(recognizer.pattern)
        compiled.append((recognizer, re2.compile(recognizer.pattern, options)))
    every.Compile()
    return every, compiled
