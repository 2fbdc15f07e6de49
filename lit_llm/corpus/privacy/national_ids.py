"""Recognizers of national identity, tax and health numbers, confirmed by their check digits.

Numbers without a check digit need a distinctive form or a name before them. Lengths, weights and
moduli are those of the issuing authorities. If form and check accept more than about one in a
hundred random numbers, the number is recognized only after a word that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lit_llm.corpus.privacy.recognizers import (
    IN_DOI,
    THING,
    Recognizer,
    digits_of,
    in_a_row,
    luhn,
    za_id,
)


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _date(day: str, month: str) -> bool:
    return 1 <= int(day) <= 31 and 1 <= int(month) <= 12


def us_ssn(value: str) -> bool:
    """US Social Security number (SSA): no area 000, 666 or 9xx, no group 00, no serial 0000."""
    d = digits_of(value)
    return d[:3] not in ("000", "666") and d[0] != "9" and d[3:5] != "00" and d[5:] != "0000"


def uk_nino(value: str) -> bool:
    """UK National Insurance number: without the prefixes that HMRC never issues."""
    return value[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def de_tax_id(value: str) -> bool:
    """German Steuer-IdNr: check digit by ISO 7064 mod 11,10.

    Exactly one of the first ten digits occurs twice or three times.
    """
    d = digits_of(value)
    counts = sorted(d[:10].count(c) for c in set(d[:10]))
    if d[0] == "0" or counts[-1] not in (2, 3) or counts[-2] > 1:
        return False
    product = 10
    for c in d[:10]:
        product = ((int(c) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(d[10])


def fr_nir(value: str) -> bool:
    """French NIR (INSEE): key = 97 - number mod 97; Corsica's 2A and 2B count as 19 and 18."""
    plain = re.sub(r"\s", "", value)
    month = int(plain[3:5])
    if not (1 <= month <= 12 or 20 <= month <= 42 or month >= 50):
        return False
    return 97 - int(plain[:13].replace("2A", "19").replace("2B", "18")) % 97 == int(plain[13:])


def es_dni(value: str) -> bool:
    """Spanish DNI and NIE: the letter is the number mod 23."""
    plain = re.sub(r"[-. ]", "", value).upper()
    return (
        "TRWAGMYFPDXBNJZSQVHLCKE"[int(plain[:-1].translate(str.maketrans("XYZ", "012"))) % 23]
        == plain[-1]
    )


# Values of the characters at odd places of a codice fiscale.
_ODD = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
_ODD_LETTERS = (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23,
)  # fmt: skip
_ODD |= dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", _ODD_LETTERS, strict=True))


def it_codice_fiscale(value: str) -> bool:
    """Italian codice fiscale (decree of 23 December 1976): check letter mod 26.

    Characters at odd places count by a table, characters at even places by their value.
    """
    plain = value.upper()
    even = sum(int(c) if c.isdigit() else ord(c) - 65 for c in plain[1:15:2])
    return chr((sum(_ODD[c] for c in plain[:15:2]) + even) % 26 + 65) == plain[15]


def nl_bsn(value: str) -> bool:
    """Dutch BSN: the weighted sum is divisible by 11 (elfproef)."""
    return _weighted(digits_of(value), (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def br_cpf(value: str) -> bool:
    """Brazilian CPF: two check digits mod 11; eleven equal digits are never issued."""
    d = digits_of(value)
    checks = [_weighted(d, range(n, 1, -1)) * 10 % 11 % 10 for n in (10, 11)]
    return len(set(d)) > 1 and [int(d[9]), int(d[10])] == checks


def pl_pesel(value: str) -> bool:
    """Polish PESEL: the century is added to the month as 80, 20, 40 or 60; check digit mod 10."""
    d = digits_of(value)
    return (
        _date(d[4:6], str(int(d[2:4]) % 20))
        and _weighted(d, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    )


def se_personnummer(value: str) -> bool:
    """Swedish personal number: Luhn over the last ten digits.

    Coordination numbers add 60 to the day.
    """
    d = digits_of(value)[-10:]
    return _date(str(int(d[4:6]) % 60), d[2:4]) and luhn(d)


def fi_hetu(value: str) -> bool:
    """Finnish HETU: the check character is date and serial mod 31."""
    d = digits_of(value[:10])
    return _date(d[:2], d[2:4]) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(d[:9]) % 31] == value[-1]


def no_fodselsnummer(value: str) -> bool:
    """Norwegian birth number: two check digits mod 11."""
    d = digits_of(value)
    checks = (3, 7, 6, 1, 8, 9, 4, 5, 2, 1), (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)
    return _date(str(int(d[:2]) % 40), str(int(d[2:4]) % 40)) and all(
        _weighted(d, w) % 11 == 0 for w in checks
    )


def cn_resident_id(value: str) -> bool:
    """Chinese resident identity number (GB 11643-1999): ISO 7064 mod 11-2."""
    total = sum((10 if c in "Xx" else int(c)) * pow(2, 17 - i, 11) for i, c in enumerate(value))
    return _date(value[12:14], value[10:12]) and total % 11 == 1


# Verhoeff's tables: the multiplication table of the dihedral group of order ten, and the
# permutation that is applied once per place.
_D5 = [
    [(i + j) % 5 + 5 * (j > 4) if i < 5 else (i - j) % 5 + 5 * (j < 5) for j in range(10)]
    for i in range(10)
]
_SHIFT = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def in_aadhaar(value: str) -> bool:
    """Indian Aadhaar: Verhoeff's check digit (1969), over the dihedral group of the pentagon."""
    total = 0
    for i, c in enumerate(reversed(digits_of(value))):
        digit = int(c)
        for _ in range(i % 8):
            digit = _SHIFT[digit]
        total = _D5[total][digit]
    return total == 0


def ca_sin(value: str) -> bool:
    """Canadian Social Insurance number: Luhn."""
    return luhn(digits_of(value))


def be_national(value: str) -> bool:
    """Belgian national number: key = 97 - number mod 97; births from 2000 have a 2 before it."""
    d = digits_of(value)
    return any(97 - int(century + d[:9]) % 97 == int(d[9:]) for century in ("", "2"))


def ch_ahv(value: str) -> bool:
    """Swiss AHV number: an EAN-13 that begins with 756."""
    return _weighted(digits_of(value), (1, 3) * 6 + (1,)) % 10 == 0


def kr_rrn(value: str) -> bool:
    """Korean RRN: a date and a century digit 1 to 8; no check digit since October 2020."""
    d = digits_of(value)
    return _date(d[4:6], d[2:4])


def mx_curp(value: str) -> bool:
    """Mexican CURP: weights 18 to 2, mod 10; a letter counts as its place in an alphabet with Ñ."""
    alphabet = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    total = sum(alphabet.index(c) * (18 - i) for i, c in enumerate(value[:17]))
    return _date(value[8:10], value[6:8]) and -total % 10 == int(value[17])


def dk_cpr(value: str) -> bool:
    """Danish CPR number: a date; no check digit since 2007."""
    d = digits_of(value)
    return _date(d[:2], d[2:4])


def cz_rodne_cislo(value: str) -> bool:
    """Czech birth number: date and serial, divisible by 11.

    A woman's month is 50 higher. A further 20 is added when the serials of a day are used up.
    """
    d = digits_of(value)
    return _date(d[4:6], str(int(d[2:4]) % 50 % 20)) and int(d) % 11 == 0


def tr_kimlik(value: str) -> bool:
    """Turkish identity number: two check digits mod 10.

    The first is seven times the sum of the odd places minus the even ones, the second the sum of
    the first ten digits.
    """
    d = [int(c) for c in value]
    return (7 * sum(d[:9:2]) - sum(d[1:8:2])) % 10 == d[9] and sum(d[:10]) % 10 == d[10]


def pt_nif(value: str) -> bool:
    """Portuguese NIF: check digit mod 11, 0 for 10 and 11."""
    d = digits_of(value)
    check = 11 - _weighted(d[:8], range(9, 1, -1)) % 11
    return (0 if check > 9 else check) == int(d[8])


def ru_snils(value: str) -> bool:
    """Russian SNILS: the check number is the weighted sum of nine digits mod 101, 0 for 100."""
    d = digits_of(value)
    return _weighted(d[:9], range(9, 0, -1)) % 101 % 100 == int(d[9:])


def ru_inn(value: str) -> bool:
    """Russian INN of a person, with twelve digits: two check digits mod 11, mod 10."""
    weights = (7, 2, 4, 10, 3, 5, 9, 4, 6, 8), (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)
    return all(_weighted(value, w) % 11 % 10 == int(value[len(w)]) for w in weights)


def cl_rut(value: str) -> bool:
    """Chilean RUT: weights 2 to 7 from the right, mod 11; K for 10."""
    body = digits_of(value[:-1])
    total = sum(int(c) * (2 + i % 6) for i, c in enumerate(reversed(body)))
    return "0123456789K0"[11 - total % 11] == value[-1].upper()


def uk_nhs(value: str) -> bool:
    """UK NHS number: check digit mod 11, 0 for 11; numbers with check digit 10 are not issued."""
    d = digits_of(value)
    return (11 - _weighted(d[:9], range(10, 1, -1)) % 11) % 11 == int(d[9])


def ro_cnp(value: str) -> bool:
    """Romanian CNP: a date, and a check digit mod 11, 1 for 10."""
    check = _weighted(value[:12], (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return _date(value[5:7], value[3:5]) and (1 if check == 10 else check) == int(value[12])


def bg_egn(value: str) -> bool:
    """Bulgarian EGN: a date, and a check digit mod 11, 0 for 10.

    The month is 20 or 40 higher for other centuries.
    """
    check = _weighted(value[:9], (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10
    return _date(value[4:6], str(int(value[2:4]) % 20)) and check == int(value[9])


def hr_oib(value: str) -> bool:
    """Croatian OIB: ISO 7064 mod 11,10."""
    product = 10
    for c in value[:10]:
        product = ((int(c) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(value[10])


def au_tfn(value: str) -> bool:
    """Australian tax file number: the weighted sum of nine digits is divisible by 11."""
    return _weighted(digits_of(value), (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def jp_my_number(value: str) -> bool:
    """Japanese My Number: weights 6 to 2 and 7 to 2, mod 11; 0 for 10 and 11."""
    d = digits_of(value)
    left = _weighted(d[:11], (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if left < 2 else 11 - left) == int(d[11])


def sg_nric(value: str) -> bool:
    """Singapore NRIC and FIN: weights 2, 7 to 2, an offset for the century, mod 11.

    Each series has its own table of check letters.
    """
    total = _weighted(value[1:8], (2, 7, 6, 5, 4, 3, 2))
    total += {"T": 4, "G": 4, "M": 3}.get(value[0], 0)
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "XWUTRQPNJLK"}
    return letters.get(value[0], "XWUTRQPNMLK")[total % 11] == value[8]


def tw_id(value: str) -> bool:
    """Taiwanese identity number: the letter counts as two digits; weights 1, 9 to 1, 1, mod 10."""
    letter = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(value[0]) + 10
    weights = (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)
    return _weighted(str(letter) + value[1:], weights) % 10 == 0


def hk_id(value: str) -> bool:
    """Hong Kong identity number: weights 9 to 2, mod 11, A for 10.

    Letters count as 10 to 35, a missing letter (blank) as 36.
    """
    plain = re.sub("[()]", "", value)
    codes = [36] * (len(plain) == 8) + [int(c, 36) for c in plain[:-1]]
    total = sum(code * weight for code, weight in zip(codes, range(9, 1, -1), strict=True))
    return "0123456789A0"[11 - total % 11] == plain[-1]


def _id(pattern: str, check: Callable[[str], bool], named: str = "") -> Recognizer:
    """A recognizer of one number; one of the words in ``named`` must stand before the number."""
    name = re.compile(rf"(?i)(?:{named})[^\d\n]{{0,30}}$") if named else None

    def accept(before: str, value: str, after: str) -> str:
        if re.search(r"[\w.+-]$" if value[0].isascii() else "$^", before) or re.match(
            r"[\w-]|[.,]\d", after
        ):
            return ""
        if IN_DOI.search(before) or (name is None and THING.search(before)):
            return ""
        if name is None and re.fullmatch(r"\d{4} \d{4} \d{4}", value):
            # Three years in a row: one in ten has a correct check digit by chance.
            years = re.fullmatch(r"(?:(?:19|20)\d\d ?)+", value)
            if years or in_a_row(before, after, 3):
                return ""
        return value if (name is None or name.search(before)) and check(value) else ""

    return Recognizer("national_id", rf"\b{pattern}\b", accept, retry=True)


RECOGNIZERS = (
    _id("[0-9]{3}-[0-9]{2}-[0-9]{4}", us_ssn),
    _id("[0-9]{3} ?[0-9]{2} ?[0-9]{4}", us_ssn, r"\bssn\b|social security"),
    _id("[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", uk_nino),
    _id("[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", de_tax_id),
    _id("[123478] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", fr_nir),
    _id("(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z]", es_dni),
    _id("[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", it_codice_fiscale),
    _id("[0-9]{9}", nl_bsn, r"\bbsn\b|burgerservicenummer|sofi-?nummer"),
    _id(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", br_cpf),
    _id("[0-9]{11}", br_cpf, r"\bcpf\b"),
    _id("[0-9]{11}", pl_pesel, "pesel"),
    _id("(?:19|20)?[0-9]{6}[-+][0-9]{4}", se_personnummer),
    _id("[0-3][0-9]{5}[-+A-FU-Y][0-9]{3}[0-9A-Y]", fi_hetu),
    _id("[0-7][0-9]{5} ?[0-9]{5}", no_fodselsnummer),
    _id("[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9Xx]", cn_resident_id),
    _id("[2-9][0-9]{3} [0-9]{4} [0-9]{4}", in_aadhaar),
    _id("[2-9][0-9]{3} [0-9]{4} [0-9]{4}", in_aadhaar, "aadhaar|uidai|आधार"),
    _id("[2-9][0-9]{11}", in_aadhaar, "aadhaar|uidai|आधार"),
    _id("[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{3}", ca_sin, r"\bsin\b|social insurance"),
    _id(r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", be_national),
    _id(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", ch_ahv),
    _id("[0-9]{6}-[1-8][0-9]{6}", kr_rrn),
    _id("[0-3][0-9][01][0-9]{3}[- ]?[0-9]{4}", dk_cpr, r"\bcpr\b|personnummer"),
    _id("[0-9]{6}/[0-9]{4}", cz_rodne_cislo),
    _id("[1-9][0-9]{10}", tr_kimlik, r"kimlik|\btckn\b|\bt\.?c\.?\b"),
    _id("[1-35689][0-9]{2} ?[0-9]{3} ?[0-9]{3}", pt_nif, r"\bnif\b|contribuinte"),
    _id("[0-9]{13}", za_id),
    _id("[0-9]{3}-[0-9]{3}-[0-9]{3}[ -][0-9]{2}", ru_snils),
    _id("[0-9]{11}", ru_snils, "снилс|snils"),
    _id("[0-9]{12}", ru_inn, r"\bинн\b|\binn\b"),
    _id(r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]", cl_rut, r"\brut\b|\brun\b|c[eé]dula"),
    _id("[0-9]{7,8}-[0-9Kk]", cl_rut, r"\brut\b|\brun\b"),
    _id("[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}", uk_nhs, r"\bnhs\b"),
    _id("[1-8][0-9]{12}", ro_cnp, r"\bcnp\b"),
    _id("[0-9]{10}", bg_egn, r"\begn\b|егн"),
    _id("[0-9]{11}", hr_oib, r"\boib\b"),
    _id("[0-9]{3} ?[0-9]{3} ?[0-9]{3}", au_tfn, r"\btfn\b|tax file number"),
    _id("[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{4}", jp_my_number, "マイナンバー|個人番号|my number"),
    _id("[STFGM][0-9]{7}[A-Z]", sg_nric, r"\bnric\b|\bfin\b|identity card"),
    _id("[A-Z][12][0-9]{8}", tw_id, "身分證|身份證|national id"),
    _id(r"[A-Z]{1,2}[0-9]{6}\([0-9A]", hk_id, "hkid|香港|身份證"),
    _id("[A-Z]{3}[ABCFGHLJPT][A-Z][0-9]{4}[A-Z]", bool, r"\bpan\b|permanent account"),
    _id("[A-Z]{4}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]", mx_curp),
)
