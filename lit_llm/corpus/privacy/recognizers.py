"""Recognizers of personal data: a pattern proposes candidates, and a check confirms them.

Patterns have RE2 syntax. RE2 has no look-around, and counted repeats are expensive. So the patterns
are simple. Python code checks structure, check digits and the words around a candidate, because
there are few candidates.

This module recognizes e-mail and IP addresses, payment cards and bank accounts. Keys are in `keys`,
national numbers in `national_ids`, telephone numbers in `phones`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Recognizer:
    """Pattern and check of one form of personal data.

    Attributes:
        kind: the name of its count and its placeholder.
        pattern: RE2 syntax, on UTF-8. The candidate is group 1 if there is one, else the match.
        accept: (before, candidate, after) -> the part to redact, a prefix of candidate + after; ""
            for none. ``before`` and ``after`` are up to 64 bytes of context.
        retry: whether to search inside a refused candidate, because it may contain the start of a
            valid one. Only for patterns whose matches end within some dozens of characters: the
            cost is quadratic in the length of a match.
    """

    kind: str
    pattern: str
    accept: Callable[[str, str, str], str]
    retry: bool = False


# A number after one of these words identifies a thing, not a person.
THING = re.compile(
    r"(?i)(?:part|order|serial|item|model|invoice|ticket|sku|isbn|issn|doi|ref|article|tracking|"
    r"version|bestell|artikel|"
    r"auftrags?|rechnungs?|serien|commande|pedido|fattura|заказ\w*|артикул|订单)"
    r"(?:[ -]?(?:nummer|number|num|no|nr|n°|№|id|code)?)[.:#]*\s*$"
)

# Inside a DOI, whose suffix may consist of any words and numbers (ISO 26324).
IN_DOI = re.compile(r"\b10\.\d{4,9}/\S*$")


def digits_of(value: str) -> str:
    """The ASCII digits of a string."""
    return "".join(c for c in value if "0" <= c <= "9")


def in_a_row(before: str, after: str, groups: int) -> bool:
    """Whether a candidate of ``groups`` groups of four digits is only a part of a table's row.

    It is, if more groups of four digits are beside it, and their number is no multiple of
    ``groups``.
    """
    others = re.search(r"(?:(?<!\d)\d{4}[ -])*$", before), re.match(r"(?:[ -]\d{4}(?!\d))*", after)
    return any(len(found[0]) // 5 % groups for found in others if found)


def luhn(digits: str) -> bool:
    """Whether the check digit is right (Luhn's algorithm, ISO/IEC 7812-1, annex B)."""
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(d), 10)) for d in even)) % 10 == 0


# --- E-mail addresses ---
# Endings after the last dot that are no mail domain: file endings, unit names of systemd,
# attributes in code, and the special-use names of RFC 6762 and of home networks.
_NO_DOMAIN = frozenset(
    """png jpg jpeg gif svg webp ico pdf js jsx ts tsx css scss html htm json yaml yml xml txt csv
    log conf ini lock jar tgz whl exe dll service socket timer target mount slice scope local
    localdomain localhost internal lan data meta shape dtype transpose finish context this self
    class java kt swift cpp hpp""".split()  # noqa: SIM905
)
_NO_PERSON = frozenset({"git", "this", "super", "self", "return"})
_REMOTE_SHELL = re.compile(r"\b(?:ssh|scp|sftp|rsync|mosh|ssh-copy-id)\s+(?:-\S+\s+)*(?:\S+\s+)*$")
IN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s<>\"']*$", re.I)


def _email(before: str, value: str, after: str) -> str:
    """A mail address, but not code, a remote shell's target or the user of a URL."""
    at = re.search("@|%40", value)
    assert at
    local, host = value[: at.start()], value[at.end() :]
    last = host.rsplit(".", 1)[1].lower()
    if (
        last in _NO_DOMAIN
        or local.lower() in _NO_PERSON
        or len(local.encode()) > 64
        or len(host.encode()) > 255
    ):
        return ""
    # Code such as a@W.mean(), or scp's host:path. A port or a time may follow an address.
    if after[:1] in ("(", "[", "$") or re.match(r":[~/\w]*/", after):
        return ""
    if _REMOTE_SHELL.search(before):
        return ""
    # https://user@host and https://site/@user are kept. In a query string it is a mail address.
    if (url := IN_URL.search(before + local)) and not re.search(r"[=&?]\S*$", url[0]):
        return ""
    return "" if before.endswith("/") and not before.endswith("//") else value


# --- IP addresses ---
# Words before other numbers with four parts: versions of software, sections of texts, shapes of
# arrays, and enzymes (EC 1.14.13.39).
_VERSION = re.compile(
    r"(?i)(?:\bv|\b(?:version|ver|release|rev|revision|build|section|sect?|chapter|clause|kapitel|"
    r"abschnitt|chapitre|firmware|oid|upgrade to|assembly|windows|app|tab(?:le|elle|leau)?|"
    r"fig(?:ure)?|abb(?:ildung)?|eq(?:uation)?|theorem|lemma|proposition|corollary|definition|"
    r"algorithm|appendix|anhang|annexe?|example|exercise|listing|"
    r"табл(?:ица)?|рис(?:унок)?|ec|enzyme|size|shape|stride)s?"
    r"[.:]?[\s-]*(?:nr\.?|no\.?|number)?\s*v?|[表图図圖]\s*|§+\s*|[=<>~^!]=?=|[a-z]/|[a-z_]-|[\w.]\.)$"
)
_KERNEL = re.compile(r"(?i)\b(?:kernel|linux)(?:\s+(?:series|release|from|to))?[:\s]+$")
_NETWORK = re.compile(
    r"(?i)(?:\bip|ipv4|addr|host|server|client|ping|from|src|dst|dns|whois|listen|connect|"
    r"nameserver|gateway|peer|forwarded-for|https?://|адрес|адреса|地址|banned|blocked)"
    r"\W{0,4}\w{0,12}\W{0,3}$"
)


def _of_a_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not address.is_multicast


def _ipv4(before: str, value: str, after: str) -> str:
    """A public IPv4 address that is not a version number or a section."""
    parts = value.split(".")
    if any(len(part) > 1 and part[0] == "0" for part in parts) or any(
        int(part) > 255 for part in parts
    ):
        return ""
    if re.match(r"\.?\d|\.[a-z]|[-_+~][\w]", after) or not _of_a_host(ipaddress.IPv4Address(value)):
        return ""
    network = _NETWORK.search(before) is not None
    if IN_DOI.search(before) or (int(parts[0]) < 10 and _KERNEL.search(before)):
        return ""
    # Linux stayed at 2.6 for eight years, and its versions then had four numbers.
    if value.startswith("2.6.") and (not network or re.search("(?i)kernel|linux", before + after)):
        return ""
    if _VERSION.search(before) and not before.endswith("=") and not before.endswith("//"):
        return ""
    # Four numbers below 32 are far more often a version or a section than an address (only 1 in
    # 4,096 addresses is that small).
    if max(map(int, parts)) < 32 and not network and not re.match(r":\d{2,5}\b|/\d{1,2}\b", after):
        return ""
    return value


def _ipv6(before: str, value: str, after: str) -> str:
    """A public IPv6 address. Only 2000::/3 is assigned (RFC 4291, section 2.4)."""
    value = value if value.endswith("::") else value.rstrip(":")
    if before[-1:] in (":", ".") or after[:1].isalnum():
        return ""
    try:
        return value if _of_a_host(ipaddress.IPv6Address(value)) else ""
    except ValueError:
        return ""


# --- Payment cards and bank accounts ---
_CARD = re.compile(
    r"\d{13,19}(?!\d)|\d{4}([ .-])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?(?!\d)|"
    r"\d{4}([ -])\d{6}\2\d{4,5}(?!\d)"
)
# ISO/IEC 7812 issuer prefixes and the lengths they come in: Visa, Mastercard, American Express,
# Discover, Diners Club, JCB, UnionPay, Mir, Maestro.
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3})?(?:\d{3})?|"
    r"(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|"
    r"(?:6011|64[4-9]\d|65\d\d)\d{12,15}|(?:30[0-5]\d|36\d\d|3[89]\d\d)\d{10}|"
    r"35(?:2[89]|[3-8]\d)\d{12,15}|62\d{14,17}|220[0-4]\d{12}|"
    r"(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"
)


def za_id(digits: str) -> bool:
    """Whether it is a South African identity number: date, citizenship 0 to 2, an 8 or 9.

    Its last digit is a Luhn check digit, as that of a payment card.
    """
    return re.fullmatch(
        r"\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{4}[0-2][89]\d", digits
    ) is not None and luhn(digits)


def _card(before: str, value: str, after: str) -> str:
    """A payment card number, with its security code if that follows."""
    text = value + after
    found = _CARD.match(text)
    if not found or IN_DOI.search(before) or re.search(r"\d[.,]$|[\w+#-]$", before):
        return ""
    # Three digits after sixteen may be the security code on the back.
    ends = {found.end(), 19} if found[1] and found.end() == 23 else {found.end()}
    if found[1] and in_a_row(before, text[19:], 4):
        ends.discard(19)
    return next((text[:end] for end in sorted(ends, reverse=True) if _is_card(text, end)), "")


def _is_card(text: str, end: int) -> bool:
    digits, after = digits_of(text[:end]), text[end:]
    if re.match(r"[.,]\d|-\d|[A-Za-z_]", after):
        return False
    return _ISSUERS.fullmatch(digits) is not None and luhn(digits) and not za_id(digits)


# Total length of an IBAN in characters, by country (SWIFT's IBAN registry).
_IBAN_LENGTHS = {
    country: int(length)
    for entry in """15:NO 16:BE 18:DK,FI,FO,GL,NL,SD 19:MK,SI,FK 20:AT,BA,EE,KZ,LT,LU,MN,XK,SO
    21:CH,HR,LI,LV 22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,TL
    24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST 26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM
    28:AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE 31:MT,SC 32:LC
    33:RU""".split()  # noqa: SIM905
    for length, countries in [entry.split(":")]
    for country in countries.split(",")
}


def _iban(before: str, value: str, after: str) -> str:
    """An IBAN (ISO 13616): it has the country's length, and its number is 1 modulo 97.

    The number is made by moving the first four characters to the end and writing letters as 10 to
    35.
    """
    length = _IBAN_LENGTHS.get(value[:2].upper())
    found = length and re.match(
        rf"[A-Za-z0-9](?:[ -]?[A-Za-z0-9]){{{length - 1}}}(?![A-Za-z0-9])", value + after
    )
    if not found or before[-1:] in ("_", "-"):
        return ""
    plain = re.sub("[ -]", "", found[0])
    return (
        found[0] if int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1 else ""
    )


# --- All recognizers of this module ---
def as_it_is(before: str, value: str, after: str) -> str:
    """Accept every candidate: its form is enough."""
    return value


_SCRIPTS = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Greek}\p{Arabic}\p{Hebrew}"
    r"\p{Devanagari}\p{Bengali}\p{Tamil}\p{Thai}\p{Armenian}\p{Georgian}]"
)
_LATIN = r"\p{Latin}0-9"
RECOGNIZERS = (
    Recognizer(
        "email",
        rf"[{_LATIN}](?:[{_LATIN}._+'-]*[{_LATIN}_+-])?"
        rf"(?:@|%40)[{_LATIN}](?:[{_LATIN}-]*\.)+\p{{Latin}}{{2,24}}",
        _email,
    ),
    # Internationalised addresses (RFC 6531) in other scripts. Text of such scripts may also stand
    # directly, without a space, before a Latin address.
    Recognizer(
        "email",
        _SCRIPTS + r"[\p{L}\p{N}._+-]*@[\p{L}\p{N}][\p{L}\p{N}-]*\.[\p{L}\p{N}.-]*\p{L}{2,}",
        _email,
    ),
    Recognizer(
        "email",
        r"(?i)\b[a-z0-9][a-z0-9._+-]* ?[\[({](?:at|@)[\])}] ?[a-z0-9-]+"
        r"(?: ?[\[({](?:dot|\.)[\])}] ?[a-z0-9-]+|\.[a-z0-9-]+)+",
        as_it_is,
    ),
    Recognizer(
        "email",
        r"\b[A-Za-z0-9][A-Za-z0-9._+-]* AT [A-Za-z0-9-]+(?: DOT [A-Za-z0-9-]+)+",
        as_it_is,
    ),
    Recognizer(
        "iban", r"\b[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{4}[ -]?[A-Za-z0-9]{3}", _iban, retry=True
    ),
    Recognizer(
        "card", r"\b[2-6][0-9]{3}[ .-]?[0-9]{4}[ .-]?[0-9]{2}[ .-]?[0-9]{2}", _card, retry=True
    ),
    Recognizer(
        "ip_address", r"\b[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\b", _ipv4, retry=True
    ),
    Recognizer("ip_address", r"\b[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*[0-9A-Fa-f:]", _ipv6),
)
