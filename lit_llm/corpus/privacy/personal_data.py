"""Personal data and keys -> placeholders such as <EMAIL>, with counts and never values.

    RedactPII().texts(["Mail jane@corp.org"])  # ["Mail <EMAIL>"]

Typesetters' spaces and hyphens and the digits of other scripts count as those of a keyboard, see
`typography`.

What costs is reading text that has nothing in it: one scan by an RE2 set of all patterns tells
    which could match (110
to 210 MB/s, measured), and only these are looked for, on UTF-8 out of Arrow's buffers. What is
somebody's is taken as personal; private, loopback and documentation ranges of addresses are
nobody's, nor is what a form shows ("ghp_xxxx").
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

# Where two kinds claim the same place the first has it.
ALL = (
    *keys.RECOGNIZERS,
    *recognizers.RECOGNIZERS,
    *national_ids.RECOGNIZERS,
    *phones.RECOGNIZERS,
)
KINDS = tuple(dict.fromkeys(recognizer.kind for recognizer in ALL))
_AROUND = 64  # bytes that a check sees of what stands before and after
_PASSES = 8  # a mixed list of a thousand addresses takes 5


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of a text's UTF-8 are of ``kind``."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class RedactPII(Block):
    """Replace personal data in "text"; "pii" is a struct of int32, how many of each kind a document
    had.

    Redacting twice changes nothing: a text is redacted until nothing is found in it.

    Attributes:
        kinds: what to look for: secret (keys, tokens, passwords in URLs), email, iban, card,
            ip_address, national_id, phone.
        placeholder: what stands for a value; "{kind}" becomes its kind in capitals.
    """

    name = "redact_pii"
    kinds: tuple[str, ...] = KINDS
    placeholder: str = "<{kind}>"

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise UserError(
                f"redact_pii.kinds: no kind {unknown[0]!r}; there are {', '.join(KINDS)}"
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
        """(start, end, kind) of what would be replaced, in characters of ``text``, in order."""
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

        More than one pass, since what is hidden can give its neighbour away: "1.2.3.4" is a
            version, but behind
        "<IP_ADDRESS> " it is an address. In a list of thousands that is a pass for each, so after
        `_PASSES` whatever has the form of what is still being found counts.
        """
        spans: list[Span] = []
        hidden: list[Span] = []  # what stands for them, in ``redacted``
        redacted = data
        passes = itertools.count(1)
        while found := _apart(self._find_once(redacted, by_form=next(passes) > _PASSES), hidden):
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
        """Spans of one pass over ``data``, none in another; where two overlap, the earlier
        recognizer's.

        With ``by_form`` a recognizer that confirms one candidate is believed all of them.
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
    """Those of ``spans`` that overlap none of ``taken``, which are in order and apart from each
    other."""
    starts = [other.start for other in taken]
    before = [bisect_left(starts, span.end) for span in spans]
    return [
        span
        for span, at in zip(spans, before, strict=True)
        if not at or taken[at - 1].end <= span.start
    ]


@functools.cache
def _compiled(kinds: tuple[str, ...]) -> tuple[Any, list[tuple[Recognizer, Any]]]:
    """(re2.Set of all patterns, each with its recognizer); once in a process."""
    import re2

    options = re2.Options()
    options.max_mem = (
        256 << 20
    )  # below, the set's automaton is thrown away and built again within a document
    every = re2.Set.SearchSet(options)
    compiled = []
    for recognizer in (r for r in ALL if r.kind in kinds):
        every.Add(recognizer.pattern)
        compiled.append((recognizer, re2.compile(recognizer.pattern, options)))
    every.Compile()
    return every, compiled
