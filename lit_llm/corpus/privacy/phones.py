"""Recognizers of telephone numbers.

International numbers are recognized by the length that their country uses, national numbers by
their form or by a word before them.
"""

from __future__ import annotations

import re
from itertools import pairwise

from lit_llm.corpus.privacy.recognizers import IN_DOI, IN_URL, THING, Recognizer, digits_of

# Country codes of ITU-T E.164 and the least and most digits that follow, from the national
# numbering plans. Other countries: 7 to 12.
_LENGTHS = {
    "1": (10, 10), "7": (10, 10), "20": (8, 10), "27": (9, 9), "30": (10, 10), "31": (9, 9),
    "32": (8, 9), "33": (9, 9), "34": (9, 9), "36": (8, 9), "39": (6, 11), "40": (9, 9),
    "41": (9, 9), "43": (5, 12), "44": (9, 10), "45": (8, 8), "46": (7, 10), "47": (8, 8),
    "48": (9, 9), "49": (6, 11), "51": (8, 9), "52": (10, 11), "54": (10, 11), "55": (10, 11),
    "56": (9, 9), "57": (8, 10), "60": (8, 10), "61": (9, 9), "62": (8, 12), "63": (8, 10),
    "64": (8, 10), "65": (8, 8), "66": (8, 9), "81": (9, 10), "82": (8, 10), "84": (9, 10),
    "86": (10, 11), "90": (10, 10), "91": (10, 10), "92": (9, 10), "98": (10, 10), "234": (8, 10),
    "351": (9, 9), "352": (5, 11), "353": (7, 9), "358": (6, 11), "380": (9, 9), "420": (9, 9),
    "421": (9, 9), "852": (8, 8), "886": (8, 9), "966": (8, 9), "971": (8, 9), "972": (8, 9),
}  # fmt: skip
_CODE = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|35\d|37\d|38[0-79]|"
    r"42[013]|50\d|59\d|67\d|68\d|69[0-2]|85[0235-9]|88[06]|96\d|97[0-79]|99[2-68]"
)
# Separators and a run of digits. Two blanks separate the columns of a table, so they end a number.
_GROUP = re.compile(r"(?! -\d|  )[ ./()-]{0,3}(\d+)")
# A coordinate. The form "+49.3012345678" of domain registrars has more digits.
_SIGNED = re.compile(r"\+\d{1,3}\.\d{3,7}(?!\d|[ .-]?\(?\d)")
_DECIMALS = re.compile(r"\d\.\d+ +[+-]?\d+\.\d")


def _groups(text: str) -> list[tuple[int, str]]:
    """(end of each run of digits, its digits), as long as only separators are between them."""
    found, at = [], 0
    while group := _GROUP.match(text, at):
        found.append((group.end(), group[1]))
        at = group.end()
    return found


def _ends(text: str, end: int) -> bool:
    """Whether a number ends at ``end``: no digit, decimal or word follows directly.

    An extension may follow ("x12", "ext. 3").
    """
    return not re.match(r"\d|[.,:/-]\d|[A-Za-z_@]", text[end:]) or bool(
        re.match(r"(?:x|ext|доб|int)\.? ?\d", text[end:])
    )


def _longest(text: str, skipped: int, least: int, most: int) -> str:
    """The longest prefix of ``text`` that is a number of ``least`` to ``most`` digits.

    The first ``skipped`` digits are not counted. The prefix ends with a run of digits.
    """
    best, total = "", -skipped
    for end, group in _groups(text):
        total += len(group)
        if total > most:
            break
        if len(group) == 1 and text[:end].endswith(f".{group}"):  # a decimal number
            break
        if total >= least and _ends(text, end):
            best = text[:end]
    return best


def _international(before: str, value: str, after: str) -> str:
    """A number with "+" or "00" and a country code.

    Refused are arithmetic, coordinates, columns of decimals, counters padded with zeros, and DOIs.
    """
    text = value + after
    prefix = re.match(r"\+ ?\(?|00", text)
    if not prefix or re.search(
        r"[\d.,)/-]$|\w\+?$" if prefix[0] == "00" else r"[\d)]$|\d\.?[eE]$|@@.*$", before
    ):
        return ""
    if _SIGNED.match(text) and not _LABEL.search(before):
        return ""
    rest = text[prefix.end() :]
    if IN_DOI.search(before) or re.match(r"\d+ \d+\.\d+ +[+-]?\d+\.\d", rest):
        return ""  # columns of decimal numbers
    if not (code := _CODE.match(rest)):
        return ""
    least, most = _LENGTHS.get(code[0], (7, 12))
    trunk = re.match(r"\d+[ )]*\(0\)", rest)  # +44 (0)20: the 0 is not dialled
    plain = _longest(re.sub(r"^\(", "", rest), len(code[0]) + (trunk is not None), least, most)
    if code[0] == "1" and not re.match(r"1[2-9]\d\d[2-9]", digits_of(plain)):
        return ""
    # A counter padded with zeros, or columns of four digits.
    padded = re.fullmatch(r"\d+|\d\d(?: \d{4})+", plain)
    if prefix[0] == "00" and padded and not _LABEL.search(before):
        return ""
    return text[: text.index(plain, prefix.end()) + len(plain)] if plain else ""


def _north_american(before: str, value: str, after: str) -> str:
    """(NXX) NXX-XXXX: area code and exchange begin with 2 to 9 (North American Numbering Plan)."""
    labelled = before.endswith(("tel:", "el.:", "ne:"))
    if THING.search(before) or (re.search(r"[\w.+/=#-]$", before) and not labelled):
        return ""
    return value if _ends(value + after, len(value)) and not _UNIT.match(after) else ""


def _french(before: str, value: str, after: str) -> str:
    """Five pairs of digits, the first from 01 to 09.

    Six pairs or more are a list of numbers, and so are pairs with equal steps (05 10 15...).
    """
    pairs = [int(pair) for pair in re.findall(r"\d\d", value)]
    more = (
        len({b - a for a, b in pairwise(pairs)}) == 1
        or IN_DOI.search(before)
        or re.search(r"\d[ .-]?$", before)
        or re.match(r"[ .-]?\d", after)
    )
    return (
        "" if more or THING.search(before) or len(set(re.findall(r"[ .-]", value))) > 1 else value
    )


# Words that always announce a telephone number.
_NAMES = (
    r"\b(?:tel|telephone|telefon\w*|telefax|telefoon\w*|tele[fm]one|(?:cell|mobile )?phone|fax|"
    r"tlf|tlfn|tfno|celular|whatsapp|numer telefonu|puh|(?:matka)?puhelin|cep tel|telp|"
    r"mobil(?:nummer|nr|telefon\w*)|handy(?:nummer|nr))\b|"
    r"tél|téléphone|teléfono|móvil|telemóvel|telefónní|тел|телефон|моб|факс|звоните|"
    r"電話|电话|電話番号|手机|手機|热线|熱線|携帯|联系|传真|전화|휴대폰|핸드폰|연락처|팩스|โทร|☎|📞|📱|"
    r"هاتف|تلفون|تلفن|موبايل|موبایل|جوال|טלפון|נייד|τηλ|κινητό|κιν\.|điện thoại|sđt|फ़ोन|मोबाइल"
)
# Words that also have other meanings (a cell of a body, a mobile phase, a contact angle). The
# number must follow them directly, or after words of `_LINKS` alone.
_WORDS = (
    r"\b(?:mobile?|mobil|mobiel|cell(?:ular)?|cel|(?:call|text|ring) (?:me|us)|handy|cellulare|mob|"
    r"cep|hp|portable|hotline|rufen sie|gsm|natel|kontakt|contact)\b"
)
_LINKS = (
    r"(?:[^\w\n<>]|\b(?:number|numbers|no|nr|num|phone|tel|me|us|on|at|is|under|via|by|my|our|or|"
    r"office|home|work|now|today|nummer|rufnummer|unter|ist|lautet|uns|mich|bitte|numéro|est|le|au|"
    r"número|numero|es|é|è|al|il|el|op|numer|pod|på|номер)\b){0,8}"
)
_LABEL = re.compile(rf"(?i)(?:{_NAMES})(?! aviv)[^\d\n<>]{{0,24}}$")
_WEAK = re.compile(rf"(?i)(?<![._-])(?:{_WORDS}){_LINKS}$")
_YEAR = r"(?:1[89]|20)\d\d"
_UNIT = re.compile(
    r"(?i)\s?(?:(?:[kmgt]?hz|[km]?ah|rpm|psi|bp|[kmg]wh?|[kmgt]?i?b(?:ytes?|its?)?|[kmµn]?[gml]|"
    r"eur|usd|cells?|units?|users?|per|a day)\b|[%‰°€$£¥])"
)
_SAID = re.compile(r"(?i)[:.\uff1a]|\b(?:n(?:umber|ummer|umer|r|o|º)|n[uú]mero|numéro)")


def _counts(before: str, number: str, after: str) -> bool:
    """Whether the number behind a label is a quantity: years, dates, pages, thousands, decimals."""
    groups = re.findall(r"\d+", number)
    if sum(re.fullmatch(_YEAR, group) is not None for group in groups) > 1:
        return True
    if re.match(r"\d{4}([-./])\d\d?\1\d\d?\b|\d\d?([./])\d\d?\2(?:19|20)\d\d\b", number):
        return True
    if re.search(rf"\({_YEAR}$|\({_YEAR}\)", number) or _DECIMALS.search(number + after):
        return True
    if len(groups) == 1 and re.fullmatch(
        rf"[1-9]\d{{0,3}}0{{4,}}|{_YEAR}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])", number
    ):
        return True
    if _UNIT.match(after):
        return True
    thousands = re.fullmatch(r"[1-9]\d?(?: \d{3}){2,}", number)
    return thousands is not None and not _SAID.search(before[-12:])


def _pages(number: str) -> bool:
    """Whether it is volume and pages of a journal ("161 1187-1201"), model numbers or a decimal.

    Model numbers have four digits each.
    """
    pages = re.search(r"[ (](\d{2,5})-(\d{2,5})$", number)
    if pages and len(pages[1]) == len(pages[2]) and 0 < int(pages[2]) - int(pages[1]) < 200:
        return True
    return re.match(r"[1-9]\d{3} \d{4} \d{4}$|\d{1,3}\.\d\d? ", number) is not None


def _labelled(before: str, value: str, after: str) -> str:
    """A number of 7 to 12 digits behind a word for a telephone."""
    weak = not _LABEL.search(before)
    if IN_DOI.search(before) or THING.search(before):
        return ""
    if weak and (IN_URL.search(before) or not _WEAK.search(before)):
        return ""
    text = value + after
    found = _longest(re.sub(r"^\(", " ", text), 0, 7, 12)  # a bracket opens before the first group
    number = text[: len(found)]
    if re.search(r"(?i)\bcep\W{0,3}$", before) and re.fullmatch(r"\d{5}-?\d{3}", number):
        return ""  # Brazil's postal code
    if _counts(before, number, text[len(found) :]) or (weak and _pages(number)):
        return ""
    return number


RECOGNIZERS = (
    Recognizer("phone", r"\+ ?\(?[1-9][0-9() ./-]*[0-9]{2}", _international),
    Recognizer("phone", r"\b00[1-9][0-9][0-9() ./-]*[0-9]{2}", _international),
    Recognizer(
        "phone",
        r"(?:\b1[ .-])?(?:\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[.-]|"
        r"\b[2-9][0-9]{2}-[2-9][0-9]{2}-|\b[2-9][0-9]{2}\.[2-9][0-9]{2}\.)[0-9]{4}",
        _north_american,
        retry=True,
    ),
    Recognizer("phone", r"\b0[1-9](?:[ .-][0-9]{2}){4}", _french, retry=True),
    Recognizer(
        "phone",
        rf"(?i)(?:{_NAMES}|{_WORDS})[^0-9+\n<>]{{0,24}}?(\(?[0-9][0-9() ./-]*[0-9]{{2}})",
        _labelled,
    ),
)
