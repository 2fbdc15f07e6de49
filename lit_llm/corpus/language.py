"""Which language a document is in, by CLD2, and which languages are kept.

IdentifyLanguage(keep=("en", "de"), least_score=0.5)(documents(["..."]))
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, texts, utf8, with_column
from lit_llm.errors import UserError

UNKNOWN = "und"  # BCP 47's tag for an undetermined language
# CLD2 has codes that ISO 639-1 withdrew, and "xx-..." for a script whose language it does not tell.
_RENAMED = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro", "un": UNKNOWN}
_SAMPLE = 16_384  # bytes looked at: the share of a language moves little beyond, and huge documents cost no more
# CLD2 refuses what Unicode does not want interchanged: control characters and noncharacters.
_REFUSED = re.compile(
    "[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


@dataclass(frozen=True)
class IdentifyLanguage(Block):
    """Set "language" (string, BCP 47; "und": not recognised) and "language_score" (float32, share of the text).

    A "language" that a source claimed is overwritten by what the text is.

    Attributes:
        keep: languages to keep, all others are dropped; none given: all. "zh" keeps "zh-Hant" too.
        least_score: drop where less of the text than this, 0 to 1, is in the language.

    Raises:
        UserError: a name in ``keep`` is no language tag, or ``least_score`` no share.
    """

    name = "identify_language"
    keep: tuple[str, ...] = ()
    least_score: float = 0.0

    def __post_init__(self) -> None:
        if wrong := [
            tag for tag in self.keep if not re.fullmatch("[a-z]{2,3}(-[A-Z][A-Za-z]+)?", tag)
        ]:
            raise UserError(
                f"identify_language.keep: {wrong[0]!r} is no language tag; write 'en', 'de' or 'zh-Hant'"
            )
        if not 0 <= self.least_score <= 1:
            raise UserError(
                f"identify_language.least_score: {self.least_score} is no share; write 0 to 1"
            )

    def apply(self, table: pa.Table) -> pa.Table:
        """Add the two columns and fill "dropped"."""
        found = [identify(document) for document in utf8(texts(table["text"]))]
        language = pa.array([tag for tag, _ in found], pa.string())
        score = pa.array([share for _, share in found], pa.float32())
        table = with_column(with_column(table, "language", language), "language_score", score)
        few = pc.less(score, pa.scalar(self.least_score, pa.float32()))
        reasons = pc.if_else(few, "score", pa.scalar(None, pa.string()))
        if self.keep:
            base = pc.replace_substring_regex(language, "-.*", "")
            kept = pc.or_(
                *(
                    pc.is_in(tags, value_set=pa.array(self.keep, pa.string()))
                    for tags in (language, base)
                )
            )
            reasons = pc.if_else(kept, reasons, language)
        return self.drop(table, reasons)


def identify(document: bytes) -> tuple[str, float]:
    """(BCP 47 tag, share of the text in it) of UTF-8 text; ("und", 0.0) where there is too little to tell."""
    _, code, percent, _ = _first(document)
    tag = UNKNOWN if code.startswith("xx") else _RENAMED.get(code, code)
    return tag, 0.0 if tag == UNKNOWN else percent / 100


def likeness(text: str) -> float:
    """How much the text looks like its main language: CLD2's score, comparable between readings of the same bytes."""
    return _first(text.encode())[3]


def _first(document: bytes) -> tuple[str, str, int, float]:
    """CLD2's (name, code, per cent, score) of the language that most of UTF-8 text is in."""
    import pycld2

    sample = (
        document
        if len(document) <= _SAMPLE
        else document[:_SAMPLE].decode(errors="ignore").encode()
    )
    try:
        found = pycld2.detect(sample, isPlainText=True)
    except pycld2.error:
        found = pycld2.detect(
            _REFUSED.sub(" ", sample.decode(errors="replace")).encode(), isPlainText=True
        )
    return found[2][0]
