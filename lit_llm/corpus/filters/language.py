"""Identify the language of a document with CLD2, and drop unwanted languages.

IdentifyLanguage(keep=("en", "de"), least_score=0.5)(documents(["..."]))
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, texts, utf8, with_column
from lit_llm.corpus.ranges import check_section
from lit_llm.errors import UserError

UNKNOWN = "und"  # BCP 47's tag for an undetermined language
# CLD2 uses codes that ISO 639-1 withdrew, and "xx-..." for a script whose language it cannot tell.
_RENAMED = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv", "mo": "ro", "un": UNKNOWN}
# Other tags for the detector's languages: ISO 639-3, and 639-2 where it differs. Of a
# macrolanguage's members, those that the detector's tag stands for are listed.
_SAME = {
    other: tag
    for tag, others in {
        "aa": "aar", "ab": "abk", "af": "afr", "ak": "aka", "am": "amh", "ar": "ara arb",
        "as": "asm", "ay": "aym ayr", "az": "aze azj", "ba": "bak", "be": "bel", "bg": "bul",
        "bi": "bis", "bn": "ben", "bo": "bod tib", "br": "bre", "bs": "bos", "ca": "cat",
        "co": "cos", "cs": "ces cze", "cy": "cym wel", "da": "dan", "de": "deu ger", "dv": "div",
        "dz": "dzo", "el": "ell gre", "en": "eng", "eo": "epo", "es": "spa", "et": "est ekk",
        "eu": "eus baq", "fa": "fas per pes prs", "fi": "fin", "fj": "fij", "fo": "fao",
        "fr": "fra fre", "fy": "fry", "ga": "gle", "gd": "gla", "gl": "glg", "gn": "grn gug",
        "gu": "guj", "gv": "glv", "ha": "hau", "he": "heb iw", "hi": "hin", "hr": "hrv",
        "ht": "hat", "hu": "hun", "hy": "hye arm", "ia": "ina", "id": "ind in", "ie": "ile",
        "ig": "ibo", "ik": "ipk", "is": "isl ice", "it": "ita", "iu": "iku", "ja": "jpn",
        "jv": "jav jw", "ka": "kat geo", "kk": "kaz", "kl": "kal", "km": "khm", "kn": "kan",
        "ko": "kor", "ks": "kas", "ku": "kur kmr", "ky": "kir", "la": "lat", "lb": "ltz",
        "lg": "lug", "ln": "lin", "lo": "lao", "lt": "lit", "lv": "lav lvs", "mg": "mlg plt",
        "mi": "mri mao", "mk": "mkd mac", "ml": "mal", "mn": "mon khk", "mr": "mar",
        "ms": "msa may zsm", "mt": "mlt", "my": "mya bur", "na": "nau", "ne": "nep npi",
        "nl": "nld dut", "nn": "nno", "no": "nor nob nb", "nr": "nbl", "ny": "nya", "oc": "oci",
        "om": "orm gaz", "or": "ori ory", "pa": "pan", "pl": "pol", "ps": "pus pbt", "pt": "por",
        "qu": "que quy", "rm": "roh", "rn": "run", "ro": "ron rum mo", "ru": "rus", "rw": "kin",
        "sa": "san", "sd": "snd", "sg": "sag", "si": "sin", "sk": "slk slo", "sl": "slv",
        "sm": "smo", "sn": "sna", "so": "som", "sq": "sqi alb als", "sr": "srp", "ss": "ssw",
        "st": "sot", "su": "sun", "sv": "swe", "sw": "swa swh", "ta": "tam", "te": "tel",
        "tg": "tgk", "th": "tha", "ti": "tir", "tk": "tuk", "tl": "tgl fil", "tn": "tsn",
        "to": "ton", "tr": "tur", "ts": "tso", "tt": "tat", "ug": "uig", "uk": "ukr", "ur": "urd",
        "uz": "uzb uzn", "ve": "ven", "vi": "vie", "vo": "vol", "wo": "wol", "xh": "xho",
        "yi": "yid ydd ji", "yo": "yor", "za": "zha", "zh": "zho chi cmn", "zu": "zul",
    }.items()
    for other in others.split()
}  # fmt: skip
# Scripts and regions of Chinese (CLDR's likely subtags).
_CHINESE = {"zh": {"hans", "cn", "sg", "my"}, "zh-Hant": {"hant", "tw", "hk", "mo"}}
_SEVERAL_SCRIPTS = frozenset(
    "az bs kk ks ku ky mn ms pa sd sr tg tk tt ug uz yi zh".split()  # noqa: SIM905
)
# Bytes of a document that are looked at: with more, the share of a language changes little, and
# very large documents would take longer.
_SAMPLE = 16_384
# CLD2 refuses characters that Unicode excludes from interchange: control and noncharacters.
_REFUSED = re.compile(
    "[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


@dataclass(frozen=True)
class IdentifyLanguage(Block):
    """Detect each document's language, and drop documents in unwanted languages.

    Sets "language" (string, BCP 47; "und": not recognised) and "language_score" (float32, share of
    the text). A "language" that a source claimed is replaced by the detected one.

    Attributes:
        keep: languages to keep, all others are dropped; empty: all are kept. BCP 47 tags or ISO
            639-3 codes of languages that CLD2 detects, such as "de", "nb" or "fil". "zh" keeps
            Chinese in both scripts, "zh-Hans" and "zh-Hant" keep one.
        least_score: minimum share of the text, 0 to 1, that is in the language.

    Raises:
        UserError: a name in ``keep`` is not a language that CLD2 detects, or ``least_score`` is not
            between 0 and 1.
    """

    name = "identify_language"
    keep: tuple[str, ...] = ()
    least_score: float = 0.0

    def __post_init__(self) -> None:
        for written in self.keep:
            detected_tags(written)
        check_section(self, "language")

    def apply(self, table: pa.Table) -> pa.Table:
        """Add the two columns and fill "dropped"."""
        found = [identify(document) for document in utf8(texts(table["text"]))]
        language = pa.array([tag for tag, _ in found], pa.string())
        score = pa.array([share for _, share in found], pa.float32())
        table = with_column(with_column(table, "language", language), "language_score", score)
        few = pc.less(score, pa.scalar(self.least_score, pa.float32()))
        reasons = pc.if_else(few, "score", pa.scalar(None, pa.string()))
        if self.keep:
            wanted = sorted(frozenset().union(*map(detected_tags, self.keep)))
            kept = pc.is_in(language, value_set=pa.array(wanted, pa.string()))
            reasons = pc.if_else(kept, reasons, language)
        return self.drop(table, reasons)


def detected_tags(written: str) -> frozenset[str]:
    """Return the tags of `identify` for a language as a user writes it.

    Raises:
        UserError: CLD2 does not detect the language, or does not distinguish the script or region.
    """
    language, *subtags = re.split("[-_]", written.strip().lower())
    language = _SAME.get(language, language)
    if language == "zh":
        scripts = {tag for subtag in subtags for tag, like in _CHINESE.items() if subtag in like}
        if not subtags or (len(scripts) == 1 and set(subtags) <= set().union(*_CHINESE.values())):
            return frozenset(scripts or _CHINESE)
    if language == UNKNOWN and not subtags:
        return frozenset({UNKNOWN})
    known = _detected()
    if language not in known:
        near = difflib.get_close_matches(language, known | _SAME.keys(), n=1, cutoff=0.6)
        raise UserError(
            f"language.keep: {written!r} is not a language that CLD2 detects; "
            f"write a tag such as {(near or ['en'])[0]!r}"
        )
    if len(subtags) == 1 and len(subtags[0]) == 4 and language not in _SEVERAL_SCRIPTS:
        subtags = []  # a script, as FLORES and FineWeb-2 write it: "eng_Latn"
    if subtags:
        raise UserError(
            f"language.keep: scripts and regions are not told apart in {written!r}; "
            f"write {language!r}"
        )
    return frozenset({language})


@functools.cache
def _detected() -> frozenset[str]:
    """Return all tags that `identify` can give."""
    import pycld2

    codes = [code for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES]
    return frozenset(_RENAMED.get(code, code) for code in codes if not code.startswith("xx"))


def identify(document: bytes) -> tuple[str, float]:
    """Return (BCP 47 tag, share of the text in it) of UTF-8 text.

    If there is too little text to tell: ("und", 0.0).
    """
    _, code, percent, _ = _first(document)
    tag = UNKNOWN if code.startswith("xx") else _RENAMED.get(code, code)
    return tag, 0.0 if tag == UNKNOWN else percent / 100


def likeness(text: str) -> float:
    """Return CLD2's score of how much the text looks like its main language.

    Scores of different decodings of the same bytes can be compared.
    """
    return _first(text.encode())[3]


def _first(document: bytes) -> tuple[str, str, int, float]:
    """Return CLD2's (name, code, per cent, score) of the main language of UTF-8 text."""
    import pycld2

    # The slice may cut a character; decoding and encoding removes the rest of it.
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
