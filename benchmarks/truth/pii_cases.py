"""Makes pii_cases.jsonl, what `lit_llm.corpus.privacy.personal_data` is measured on: personal data
in running text, and look-alikes.

    python benchmarks/truth/pii_cases.py

Written from the formats' specifications before the patterns were, with check digits of its own, and
not fitted to them since; the second half is in pii_countries.py. A row is {"kind", "text"}; what
has to be found is marked ⟦kind|value⟧, rows of kind "none" have no mark. A "¦" stands in values of
kind secret, and is taken out by `read_cases`, so that scanners for leaked keys pass it.
"""

# ruff: noqa: RUF001, SIM905 (tables of texts)
from __future__ import annotations

import json
import random
import re
import string
from dataclasses import dataclass
from pathlib import Path

from truth import pii_countries

FILE = Path(__file__).with_suffix(".jsonl")
MARK = re.compile("⟦([a-z_]+)\\|(.*?)⟧", re.S)


@dataclass(frozen=True)
class Case:
    """A text, and the (start, end, kind) in characters of what is personal in it."""

    kind: str
    text: str
    spans: list[tuple[int, int, str]]


def read_cases() -> list[Case]:
    """The rows of pii_cases.jsonl with their marks taken out."""
    return [parse(json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def parse(row: dict[str, str]) -> Case:
    """A row with its marks taken out."""
    text, spans, end = "", [], 0
    for mark in MARK.finditer(row["text"]):
        text += row["text"][end : mark.start()]
        value = mark[2].replace("¦", "") if mark[1] == "secret" else mark[2]
        spans.append((len(text), len(text) + len(value), mark[1]))
        text, end = text + value, mark.end()
    return Case(row["kind"], text + row["text"][end:], spans)


def core(text: str, start: int, end: int, kind: str) -> tuple[int, int, str]:
    """Without brackets, signs and blanks at the ends: whether "(030" begins at the bracket is no
    difference."""
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not text[end - 1].isalnum():
        end -= 1
    return start, end, kind


SEED = 20261124
R = random.Random(SEED)
UPPER, DIGITS, ALNUM = string.ascii_uppercase, string.digits, string.ascii_letters + string.digits


def pick(alphabet: str, n: int) -> str:
    return "".join(R.choice(alphabet) for _ in range(n))


def number(shape: str) -> str:
    """ "#" becomes a digit, "%" one of 1-9, "N" one of 2-9."""
    one = {"#": DIGITS, "%": DIGITS[1:], "N": DIGITS[2:]}
    return "".join(R.choice(one[c]) if c in one else c for c in shape)


# --- values ---------------------------------------------------------------------------------------
FIRST = (
    "anna bob chen dmitri elena fatima george hiro ines jürgen katarzyna luís maria nils olga priya"
).split()
LAST = (
    "smith müller garcia rossi ivanov tanaka kowalska silva jansen nguyen okafor lindqvist haddad"
).split()
ASCII = str.maketrans("üí", "ui")
DOMAINS = """gmail.com web.de orange.fr uni-jena.de mail.ru 163.com company.co.uk
sub.dept.example.edu proton.me t-online.de libero.it wp.pl bol.com.br hotmail.es
startup.io museum-of-art.museum kyoto-u.ac.jp example.com""".split()


def email() -> str:
    first, last = R.choice(FIRST).translate(ASCII), R.choice(LAST).translate(ASCII)
    local = R.choice(
        ["{f}.{l}", "{f}", "{f}_{l}", "{f}{n}", "{f}.{l}+news", "{F}.{L}", "{i}{l}", "{f}-{l}.{n}"]
    )
    values = {
        "f": first,
        "l": last,
        "F": first.title(),
        "L": last.title(),
        "i": first[0],
        "n": R.randrange(1, 2000),
    }
    return local.format(**values) + "@" + R.choice(DOMAINS)


def ipv4() -> str:
    """Public: outside the ranges of IANA's special-purpose registry, which all lie in these first
    octets."""
    special = {0, 10, 100, 127, 169, 172, 192, 198, 203, *range(224, 256)}
    first = R.choice([n for n in range(1, 224) if n not in special])
    return ".".join(map(str, [first, R.randrange(256), R.randrange(256), R.randrange(1, 255)]))


def ipv6() -> str:
    groups = [
        f"{x:x}"
        for x in [R.choice([0x2A00, 0x2A02, 0x2600, 0x2607, 0x2400]), *R.sample(range(1, 65536), 7)]
    ]
    if R.random() < 0.5:
        return ":".join(groups)
    return ":".join(groups[: R.randrange(2, 5)]) + "::" + ":".join(groups[-R.randrange(1, 3) :])


INTERNATIONAL = """+1 (N##) N##-####|+1-N##-N##-####|+1N##N######|+44 20 7### ####
+44 (0)161 4## ####|+447###%#####|+49 30 %#######|+49 (0)89 %######|+49 171 #######
+33 1 %# ## ## ##|+33 6 ## ## ## ##|+34 9## ### ###|+34 6########|+39 06 %#######|+39 3## #######
+31 20 %## ####|+31 6 %#######|+48 %## ### ###|+7 (495) ###-##-##|+7 9## ###-##-##|+81-3-%###-####
+81 90-####-####|+82-10-####-####|+86 138 #### ####|+86-10-%#######|+91 9#### #####
+91-22-%### ####|+55 (11) 9####-####|+55 21 %###-####|+52 55 %### ####|+61 2 9### ####
+41 44 %## ## ##|+43 1 %######|+46 8 %## ### ##|+45 %# ## ## ##|+358 40 %######|+351 9## ### ###
+90 532 ### ## ##|+972 54-###-####|+27 82 ### ####|+234 803 ### ####|+380 44 ### ## ##
+30 21# ### ####|+353 1 %## ####|0049 30 %#######|0033 6 ## ## ## ##""".replace("\n", "|").split(
    "|"
)
# National forms: the first stand alone as far as people write them so, the others after a word that
# says what they are.
ALONE = (
    "(N##) N##-####|N##-N##-####|N##.N##.####|1-8##-N##-####|0% ## ## ## ##|0%.##.##.##.##".split(
        "|"
    )
)
LABELLED = {
    "en": ["Phone: {}", "Call me on {} after six.", "tel {}", "Mobile: {} (evenings)", "Fax: {}"],
    "de": [
        "Telefon: {}",
        "Sie erreichen uns unter Tel. {} werktags.",
        "Handy {}",
        "Rückruf bitte: Mobil {}.",
    ],
    "fr": ["Tél. : {}", "Téléphone {} (standard)", "Mon numéro de téléphone est le {}."],
    "es": ["Teléfono: {}", "Llámame al móvil {} por favor.", "Tfno. {}"],
    "it": ["Telefono: {}", "Cell. {}", "chiamare il numero di telefono {} in orario d'ufficio"],
    "nl": ["Telefoon: {}", "Bel ons: tel. {}"],
    "pl": ["Telefon: {}", "tel. {}", "Numer telefonu {} lub komórka."],
    "pt": ["Telefone: {}", "Celular {}"],
    "ru": ["Телефон: {}", "тел. {}", "Звоните: моб. {}"],
    "ja": ["電話番号：{}", "電話 {}"],
    "zh": ["电话：{}", "联系电话:{}。", "手机{}"],
}
NATIONAL = {
    "en": "020 7### ####|07### ######|0161 4## ####|N## N## ####|(0131) 4## ####|N##N######",
    "de": "030 %#######|0171 #######|089/%#######|(0221) %######|0176-########|03641 %#####",
    "fr": "01 %# ## ## ##|06.##.##.##.##|04########|02-##-##-##-##",
    "es": "9## ### ###|6## ## ## ##|9## ## ## ##|6########",
    "it": "06 %#######|347 #######|02-%#######",
    "nl": "020-%######|06-########|030 %## ## ##",
    "pl": "%## ### ###|22 %## ## ##|%##-###-###",
    "pt": "(11) 9####-####|21 %###-####|9## ### ###",
    "ru": "8 (495) ###-##-##|8 9## ### ## ##|8-800-###-##-##",
    "ja": "03-%###-####|090-####-####|0120-###-###",
    "zh": "138####%###|010-%#######|021 %### ####",
}


def luhn(body: str) -> str:
    total = sum(
        sum(divmod(int(d) * (2 if i % 2 == 0 else 1), 10)) for i, d in enumerate(reversed(body))
    )
    return body + str(-total % 10)


def card() -> str:
    shape = R.choice(
        "4%.16 4%.16 51.16 55.16 2221.16 2720.16 34.15 37.15 6011.16 65.16 645.16 36.14 305.14 "
        "3528.16 62.16 2202.16 4.13"
        .replace("%", "5").split()
    )  # fmt: skip
    prefix, length = shape.split(".")
    digits = luhn(prefix + pick(DIGITS, int(length) - 1 - len(prefix)))
    between = R.choice(["", "", " ", "-"])
    sizes = {15: (4, 6, 5), 14: (4, 6, 4), 16: (4, 4, 4, 4), 13: (13,)}[len(digits)]
    parts, at = [], 0
    for size in sizes:
        parts.append(digits[at : at + size])
        at += size
    return between.join(parts)


# Length and shape of the account part, SWIFT's IBAN registry: n digits, a capital letters, c
# either.
BBAN = {
    "DE": "18n", "FR": "10n11c2n", "GB": "4a14n", "ES": "20n", "IT": "1a10n12c", "NL": "4a10n",
    "BE": "12n", "AT": "16n",
    "CH": "5n12c", "PL": "24n", "PT": "21n", "SE": "20n", "NO": "11n", "DK": "14n", "FI": "14n",
    "IE": "4a14n",
    "CZ": "20n", "GR": "7n16c", "HU": "24n", "RO": "4a16c", "LU": "3n13c", "TR": "6n16c",
    "AE": "19n", "SA": "2n18c",
    "MT": "4a5n18c", "UA": "6n19c", "LI": "5n12c", "EE": "16n", "BR": "23n1a1c", "IL": "19n",
}  # fmt: skip


def iban() -> str:
    country = R.choice(list(BBAN))
    alphabet = {"n": DIGITS, "a": UPPER, "c": DIGITS + UPPER}
    body = "".join(
        pick(alphabet[kind], int(n)) for n, kind in re.findall(r"(\d+)([nac])", BBAN[country])
    )
    numeric = "".join(str(int(c, 36)) for c in body + country + "00")
    plain = f"{country}{98 - int(numeric) % 97:02d}{body}"
    return (
        plain if R.random() < 0.5 else " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))
    )


def weighted(digits: str, weights: list[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True))


def birth() -> tuple[int, int, int]:
    return R.randrange(30, 100), R.randrange(1, 13), R.randrange(1, 29)


def us_ssn() -> str:
    return (
        f"{R.choice([n for n in range(1, 900) if n != 666]):03d}-{R.randrange(1, 100):02d}-"
        f"{R.randrange(1, 10000):04d}"
    )


def uk_nino() -> str:
    prefix = R.choice(["AB", "CE", "JG", "PW", "SX", "YZ", "HK", "LM"])
    return R.choice(["{}{}{}{}{}", "{} {} {} {} {}"]).format(
        prefix, *(pick(DIGITS, 2) for _ in range(3)), R.choice("ABCD")
    )


def de_steuer_id() -> str:
    digits = R.sample(DIGITS, 9)
    digits.insert(R.randrange(1, 10), digits[R.randrange(9)])
    if digits[0] == "0":
        return de_steuer_id()
    product = 10
    for d in digits:
        product = ((int(d) + product) % 10 or 10) * 2 % 11
    plain = "".join(digits) + str((11 - product) % 10)
    return R.choice([plain, f"{plain[:2]} {plain[2:5]} {plain[5:8]} {plain[8:]}"])


def fr_nir() -> str:
    year, month, _ = birth()
    body = (
        f"{R.choice('12')}{year:02d}{month:02d}{R.choice(['75', '13', '2A', '69'])}{number('%##')}"
        f"{number('%##')}"
    )
    key = 97 - int(body.replace("2A", "19")) % 97
    plain = f"{body}{key:02d}"
    if R.random() < 0.5:
        return plain
    return " ".join(
        [plain[:1], plain[1:3], plain[3:5], plain[5:7], plain[7:10], plain[10:13], plain[13:]]
    )


def es_dni() -> str:
    if R.random() < 0.4:
        n = R.randrange(10**7)
        first = R.randrange(3)
        return f"{'XYZ'[first]}{R.choice(['', '-'])}{n:07d}{R.choice(['', '-'])}" + letter_es(
            first * 10**7 + n
        )
    n = R.randrange(10**7, 10**8)
    return f"{n:08d}{R.choice(['', '-'])}{letter_es(n)}"


def letter_es(n: int) -> str:
    return "TRWAGMYFPDXBNJZSQVHLCKE"[n % 23]


def it_codice_fiscale() -> str:
    year, month, day = birth()
    consonants = "BCDFGLMNPRSTVZ"
    day += R.choice([0, 40])
    body = (
        f"{pick(consonants, 6)}{year:02d}{'ABCDEHLMPRST'[month - 1]}{day:02d}{R.choice('FHLAG')}"
        f"{number('%##')}"
    )
    odd = dict(zip(DIGITS + UPPER, [1, 0, 5, 7, 9, 13, 15, 17, 19, 21] * 2, strict=False))
    odd |= dict(zip(UPPER, [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14,
        16, 10, 22, 25, 24, 23],
                    strict=True))  # fmt: skip
    even = {c: i for i, c in enumerate(UPPER)} | {c: i for i, c in enumerate(DIGITS)}
    total = sum(odd[c] if i % 2 == 0 else even[c] for i, c in enumerate(body))
    return body + UPPER[total % 26]


def br_cpf() -> str:
    body = pick(DIGITS, 9)
    for size in (9, 10):
        rest = weighted(body, list(range(size + 1, 1, -1))) * 10 % 11
        body += str(rest % 10)
    return f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"


def pl_pesel() -> str:
    year, month, day = birth()
    body = f"{year:02d}{month:02d}{day:02d}{pick(DIGITS, 4)}"
    return body + str(-weighted(body, [1, 3, 7, 9, 1, 3, 7, 9, 1, 3]) % 10)


def se_personnummer() -> str:
    year, month, day = birth()
    plain = luhn(f"{year:02d}{month:02d}{day:02d}{pick(DIGITS, 3)}")
    return R.choice(["", "19"]) + plain[:6] + "-" + plain[6:]


def fi_hetu() -> str:
    year, month, day = birth()
    serial = R.randrange(2, 900)
    check = "0123456789ABCDEFHJKLMNPRSTUVWXY"[
        int(f"{day:02d}{month:02d}{year:02d}{serial:03d}") % 31
    ]
    return f"{day:02d}{month:02d}{year:02d}-{serial:03d}{check}"


def nl_bsn() -> str:
    body = number("%#######")
    rest = weighted(body, list(range(9, 1, -1))) % 11
    return body + str(rest) if rest < 10 else nl_bsn()


def cn_id() -> str:
    year, month, day = birth()
    body = (
        f"{R.choice(['110105', '310115', '440106'])}19{year:02d}{month:02d}{day:02d}"
        f"{pick(DIGITS, 3)}"
    )
    return body + "10X98765432"[sum(int(d) * pow(2, 17 - i, 11) for i, d in enumerate(body)) % 11]


def in_aadhaar() -> str:
    """Verhoeff's check digit by the group itself: D5 as permutations of the pentagon."""

    def times(a: int, b: int) -> int:
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b - 5) % 5
        return 5 + (a - 5 - b) % 5 if b < 5 else (a - b) % 5

    permuted = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for _ in range(6):
        permuted.append([permuted[-1][permuted[1][j]] for j in range(10)])
    body = number("N##########")
    c = 0
    for i, d in enumerate(reversed(body), start=1):
        c = times(c, permuted[i % 8][int(d)])
    check = next(d for d in range(10) if times(c, d) == 0)
    plain = body + str(check)
    return f"{plain[:4]} {plain[4:8]} {plain[8:]}"


def be_national() -> str:
    year, month, day = birth()
    body = f"{year:02d}{month:02d}{day:02d}{R.randrange(1, 998):03d}"
    return f"{body[:2]}.{body[2:4]}.{body[4:6]}-{body[6:]}.{97 - int(body) % 97:02d}"


def ch_ahv() -> str:
    body = "756" + pick(DIGITS, 9)
    plain = body + str(-weighted(body, [1, 3] * 6) % 10)
    return f"{plain[:3]}.{plain[3:7]}.{plain[7:11]}.{plain[11:]}"


def ca_sin() -> str:
    plain = luhn(number("%#######"))
    return f"{plain[:3]} {plain[3:6]} {plain[6:]}"


IDS = {
    us_ssn: [
        "SSN: {}",
        "Her social security number is {}.",
        "{},John Smith,1980-02-11",
        "applicant {} was approved",
    ],
    uk_nino: ["NI number {}", "National Insurance: {}.", "My NINO is {} if payroll asks."],
    de_steuer_id: ["Steuer-ID: {}", "Meine Steueridentifikationsnummer lautet {}.", "IdNr. {}"],
    fr_nir: ["Numéro de sécurité sociale : {}", "NIR {}", "assuré n° {} depuis 2010"],
    es_dni: ["DNI: {}", "con DNI {} y domicilio en Madrid", "NIF/NIE {}"],
    it_codice_fiscale: ["Codice fiscale: {}", "C.F. {}", "il sottoscritto {} dichiara"],
    br_cpf: ["CPF: {}", "inscrito no CPF sob o nº {}", "{} - Maria Silva"],
    pl_pesel: ["PESEL: {}", "numer PESEL {}"],
    se_personnummer: ["Personnummer: {}", "född {}"],
    fi_hetu: ["Henkilötunnus: {}", "hetu {}"],
    nl_bsn: ["BSN: {}", "Burgerservicenummer {}"],
    cn_id: ["身份证号：{}", "身份证号码 {} 已核实"],
    in_aadhaar: ["Aadhaar: {}", "My Aadhaar number is {}."],
    be_national: ["Rijksregisternummer {}", "Numéro national : {}"],
    ch_ahv: ["AHV-Nr. {}", "No AVS {}"],
    ca_sin: ["SIN: {}", "social insurance number {}"],
}


def pem() -> str:
    label = R.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY"])
    lines = [pick(ALNUM + "+/", 64) for _ in range(R.randrange(3, 12))] + [
        pick(ALNUM + "+/", 30) + "=="
    ]
    return f"-----BEGIN {label}-----\n" + "\n".join(lines) + f"\n-----END {label}-----"


def jwt() -> str:
    return f"eyJhbGciOiJ{pick(ALNUM, 25)}.eyJ{pick(ALNUM + '_-', 70)}.{pick(ALNUM + '_-', 43)}"


SECRETS = [
    lambda: "AKIA" + pick(UPPER + "234567", 16),
    lambda: "ASIA" + pick(UPPER + "234567", 16),
    lambda: R.choice(["ghp_", "gho_", "ghs_"]) + pick(ALNUM, 36),
    lambda: f"github_pat_{pick(ALNUM, 22)}_{pick(ALNUM, 59)}",
    lambda: "glpat-" + pick(ALNUM + "_-", 19) + pick(ALNUM, 1),
    lambda: f"xoxb-{pick(DIGITS, 12)}-{pick(DIGITS, 12)}-{pick(ALNUM, 24)}",
    lambda: (
        f"xoxp-{pick(DIGITS, 11)}-{pick(DIGITS, 11)}-{pick(DIGITS, 12)}-"
        f"{pick('0123456789abcdef', 32)}"
    ),
    lambda: f"sk-{pick(ALNUM, 20)}T3BlbkFJ{pick(ALNUM, 20)}",
    lambda: "sk-proj-" + pick(ALNUM + "_-", 119) + pick(ALNUM, 1),
    lambda: "sk-ant-api03-" + pick(ALNUM + "_-", 93) + "AA",
    lambda: "AIza" + pick(ALNUM + "_-", 34) + pick(ALNUM, 1),
    lambda: R.choice(["sk_live_", "rk_live_"]) + pick(ALNUM, 24),
    lambda: "hf_" + pick(string.ascii_letters, 34),
    lambda: "npm_" + pick(ALNUM, 36),
    lambda: f"SG.{pick(ALNUM + '_-', 22)}.{pick(ALNUM + '_-', 42)}{pick(ALNUM, 1)}",
    jwt,
    jwt,
    pem,
    pem,
]

TEXTS = {
    "email": [
        "Write to {} for details.", "Bei Fragen: {}", "Contactez-nous ({}) avant "
                                                      "lundi.", "Escríbeme a {}, gracias.",
        "From: Jane <{}>", '{{"user": "{}", "active": true}}', "mailto:{}",
        "请联系{}获取更多信息。",
        "お問い合わせは{}まで",
        "Author: X <{}>\nDate: 2024-01-02", "1,{},2020-01-01,ok", "E-mail:{};", "Пишите на {}.",
        "https://x.org/?to={}&a=1",
        "# maintainer: {}\n@decorator\ndef f(): ...", "Cc: {}, ops", "*{}*", "[mail](mailto:{})",
        "'{}'", "e-mail={}|tel=",
    ],
    "ip_address": [
        "Client {} connected.", '{} - - [10/Oct/2023:13:55:36 +0200] "GET / HTTP/1.1" 200',
        "ping {}", "src={} dst=10.0.0.1",
        "Die IP-Adresse lautet {}.", "banned {} after 5 tries", '{{"remote_addr": "{}"}}',
        "L'adresse IP {} est bloquée",
        "Failed password for root from {} port 22 ssh2", "edit by {} (talk)", "IP地址：{}", "({})",
        "host {};",
    ],
    "phone": ["Reach me at {}.", "Kontakt: {}", "+ office {}", "Appelez le {} demain", "{}",
        "WhatsApp {} or e-mail", "联系 {}"],
    "card": [
        "Card number {} exp 04/27", "Kreditkarte: {}", "paid with {}", '{{"pan":"{}"}}',
        "Visa/MC {} CVV 123",
        "Mi tarjeta es {}.", "carte bancaire n° {}", "{}", "卡号：{}",
    ],
    "iban": [
        "IBAN: {}", "Bitte überweisen Sie auf {} bis Freitag.", "virement sur le compte {}", "{}",
        "IBAN {}, BIC COBADEFF",
        "cuenta {}.", '"iban": "{}"', "Konto ({})", "account {} please",
    ],
    "secret": ["key = '{}'", "export TOKEN={}", '{{"auth": "{}"}}', "Authorization: Bearer {}",
        "{}", "leaked: {} (rotate it)"],
}  # fmt: skip


def positives() -> list[dict[str, str]]:
    rows = []

    def add(kind: str, template: str, value: str) -> None:
        shown = value[:2] + "¦" + value[2:] if kind == "secret" else value
        rows.append({"kind": kind, "text": template.format(f"⟦{kind}|{shown}⟧")})

    for kind, make, n in (("email", email, 60), ("ip_address", ipv4, 40), ("ip_address", ipv6, 20),
        ("card", card, 50),
                          ("iban", iban, 50)):  # fmt: skip
        for i in range(n):
            add(kind, TEXTS[kind][i % len(TEXTS[kind])], make())
    for i, shape in enumerate(INTERNATIONAL + ALONE):
        add("phone", TEXTS["phone"][i % len(TEXTS["phone"])], number(shape))
    for language, shapes in NATIONAL.items():
        for i, shape in enumerate(shapes.split("|")):
            add("phone", LABELLED[language][i % len(LABELLED[language])], number(shape))
    for make, templates in IDS.items():
        for template in templates * 2:
            add("national_id", template, make())
    for i, make in enumerate(SECRETS * 2):
        add("secret", TEXTS["secret"][i % len(TEXTS["secret"])], make())
    return rows


def isbn13() -> str:
    body = "978" + pick(DIGITS, 9)
    return body + str(-weighted(body, [1, 3] * 6) % 10)


def isbn10() -> str:
    body = pick(DIGITS, 9)
    check = -weighted(body, list(range(10, 1, -1))) % 11
    return f"{body[0]}-{body[1:4]}-{body[4:]}-{'X' if check == 10 else check}"


def failing_luhn() -> str:
    digits = "4" + pick(DIGITS, 14)
    right = luhn(digits)[-1]
    return digits + R.choice([d for d in DIGITS if d != right])


def failing_iban() -> str:
    good = iban().replace(" ", "")
    return good[:-1] + R.choice([c for c in DIGITS if c != good[-1]])


HEX = "0123456789abcdef"
LOOK_ALIKES = [
    (lambda: number("%.#.#.#"), ["version {}", "upgrade to v{} now", "pip install tool=={}",
        "see section {} of the manual"]),
    (lambda: number("1#.#.##.#"), ["Release {} fixes two bugs", "App/{} (Linux)",
        "library-{}.tar.gz"]),
    (lambda: "1.3.6.1.4.1." + number("####.#.#"), ["OID {}", "snmpwalk {}"]),
    (lambda: R.choice(["10.", "192.168.", "127.0.",
        "172.16."]) + "0.1" if R.random() < 0.3 else number("192.168.%.%#"),
     ["listen on {}", "gateway {} is down", "http://{}:8080/"]),
    (lambda: R.choice(["192.0.2.", "198.51.100.", "203.0.113."]) + number("%#"),
        ["use {} in examples", "server {};"]),
    (lambda: R.choice(["fe80::1", "::1", "2001:db8::1", "fd00::12",
        "2001:db8:85a3::8a2e:370:7334"]), ["address {}", "[{}]"]),
    (isbn13, ["ISBN {}", "ISBN-13: {}", "EAN {} in stock"]),
    (isbn10, ["ISBN {}", "ISBN-10 {}, paperback"]),
    (lambda: f"{pick(HEX, 8)}-{pick(HEX, 4)}-4{pick(HEX, 3)}-a{pick(HEX, 3)}-{pick(HEX, 12)}",
        ["id {}", "/items/{}"]),
    (lambda: pick(HEX, 32), ["md5 {}", "{}  file.iso"]),
    (lambda: pick(HEX, 40), ["commit {}", "Reverts {}."]),
    (lambda: pick(HEX, 64), ["sha256:{}", "image@sha256:{}"]),
    (lambda: pick(DIGITS, 7), ["fixed in {}", "PR-{}", "commit {}"]),
    (lambda: number("202#-0%-1#"), ["on {}", "{} 12:30:45.123", "{}T10:20:30Z"]),
    (lambda: number("1#.0%.20##"), ["am {} um 9 Uhr", "{} 10:00-12:30"]),
    (lambda: number("17########"), ["ts={}", "created_at: {}"]),
    (lambda: number("17###########"), ["epoch ms {}", '"time":{}']),
    (lambda: "0." + pick(DIGITS, 17), ["p = {}", "weights: [{}, 1.0]"]),
    (lambda: number("%##,###,###"), ["population {}", "${} in revenue"]),
    (lambda: number("%## ### ###"), ["Umsatz {} Euro", "около {} рублей"]),
    (lambda: ":".join(pick(HEX, 2) for _ in range(6)), ["MAC {}", "ether {} brd "
                                                                  "ff:ff:ff:ff:ff:ff"]),
    (lambda: number("4%.####, -1##.#####"), ["at {}", "GPS: {}"]),
    (failing_luhn, ["card {} was declined", "id {}"]),
    (failing_iban, ["IBAN {} is wrong", "code {}"]),
    (lambda: number("9##-##-####"), ["SSN-like {} is never issued"]),
    (lambda: number("%##-%####-##"), ["Part no. {}", "SKU {}"]),
    (lambda: number("N##-N##-####"), ["part number {}", "order no. {}", "Bestellnummer "
                                                                        "{}", "Serial: {}"]),
    (lambda: number("####-####"), ["ISSN {}", "DIN {}"]),
    (lambda: number("10.####/j.####.##.###"), ["doi:{}", "https://doi.org/{}"]),
    (lambda: number("RFC %###"), ["see {}", "({}, section 3.2.1.4)"]),
    (lambda: number("%###### +%######,## @@"), ["@@ -{}"]),
    (lambda: number("%##"), ["HTTP {}", "room {}", "x{}px"]),
    (lambda: number("19##-20##"), ["({})", "the years {}"]),
    (lambda: number("%#:## - %#:##"), ["open {}", "({})"]),
    (lambda: " ".join(pick(HEX, 4) for _ in range(8)), ["00000010: {}", "fingerprint {}"]),
    (lambda: " ".join(number("%##") for _ in range(6)), ["{}", "values: {}"]),
    (lambda: pick(DIGITS, 30), ["pi-ish {}", "{}"]),
    (lambda: "1Z" + pick(DIGITS + UPPER, 16), ["tracking {}"]),
    (lambda: f"{number('%#')}.{number('###')}.{number('###')}-{pick(ALNUM, 3)}", ["build {}"]),
    (lambda: pick(ALNUM + "+/", 120) + "==", ["data:image/png;base64,{}"]),
    (lambda: "\n".join([pick(ALNUM + "+/", 64)] * 3), [
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----",
    ]),
]  # fmt: skip

# What a generator does not think of: each is the kind of line that fooled somebody's pattern, or
# that one forgets.
HAND = """Contact ⟦email|o'brien@corp.ie⟧ or ⟦email|first.last@sub.domain.co.jp⟧.
Mail ⟦email|jane (at) corp (dot) com⟧ to unsubscribe
reach me: ⟦email|max.muster [at] uni-jena [dot] de⟧
⟦email|jürgen@müller.de⟧ ist erreichbar
请写信给 ⟦email|用户@例子.公司⟧
user ⟦email|x@y.co⟧, also ⟦email|UPPER.CASE@EXAMPLE.ORG⟧!
https://site.org/unsubscribe?email=⟦email|jane.doe%40mail.com⟧&id=3
Signed-off-by: Linus <⟦email|linus@kernel-dev.org⟧>
<a href="mailto:⟦email|info@verein.de⟧?subject=Hi">⟦email|info@verein.de⟧</a>
Kontakt:⟦email|a.b@web.de⟧,Tel.:⟦phone|030/1234567⟧
call ⟦phone|+1.415.555.2671⟧ ext. 12 or fax ⟦phone|(415) 555-2672⟧
⟦phone|+49-30-9018-2000⟧ / ⟦phone|+49 30 9018-2001⟧
Tel.: ⟦phone|+43/1/58801-0⟧
tel:⟦phone|+4915112345678⟧
Phone:⟦phone|415-555-2671⟧x99
服务热线：⟦phone|400-820-8820⟧
Rufen Sie ⟦phone|0800 1234567⟧ an, Telefon kostenlos
电话⟦phone|13800138000⟧，微信同号
☎ ⟦phone|01 40 20 50 50⟧
Cards: ⟦card|4111 1111 1111 1111⟧, ⟦card|5500-0000-0000-0004⟧; amex ⟦card|3782 822463 10005⟧
order 77 paid by ⟦card|4012888888881881⟧ on 2024-01-02
Send money to ⟦iban|GB82 WEST 1234 5698 7654 32⟧ or ⟦iban|de89370400440532013000⟧
IBAN:⟦iban|FR76-3000-6000-0112-3456-7890-189⟧
⟦iban|NL91ABNA0417164300⟧ t.n.v. J. Jansen
Login from ⟦ip_address|81.2.69.142⟧:51234 and [⟦ip_address|2a00:1450:4001:81b::200e⟧]:443
whois ⟦ip_address|8.8.4.4⟧
X-Forwarded-For: ⟦ip_address|91.198.174.192⟧, 10.1.2.3
http://⟦ip_address|93.184.216.34⟧/index.html
server ⟦ip_address|5.9.10.11⟧ is down, IP blocked
route ⟦ip_address|2606:4700:4700::1111⟧/64 via eth0
SSN ⟦national_id|078051120⟧ (printed in wallets)
ssn=⟦national_id|219-09-9999⟧&x=1
Taxpayer ⟦national_id|AB 12 34 56 C⟧ owes
postgres://app:⟦secret|Xk¦9vQ2pLm7⟧@db.corp.net:5432/prod
aws_secret_access_key = ⟦secret|wJ¦alrXUtnFEMI/K7MDENG+bPxRfiCYZk3bQ9aVrT⟧
curl -H "Authorization: token ⟦secret|gh¦p_16C7e42F292c6912E7710c838347Ae178B4a⟧"
https://hooks.slack.com/services/⟦secret|T0¦24FGHJK/B024LMNPQ/aZ8xQwErTyUiOpAsDfGhJkLz⟧
telegram bot ⟦secret|11¦0201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw⟧"""

PLAIN = """git clone git@github.com:org/repo.git
scp report.pdf deploy@web1.corp.net:/srv/www/
ssh admin@gateway.corp.net -p 2222
https://medium.com/@someone/a-story-1234567890ab
npm install @babel/core@7.23.0 lodash@4.17.21
https://unpkg.com/react@18.2.0/umd/react.production.min.js
uses: actions/checkout@v4.1.7
@app.route("/users/<id>")
@pytest.mark.parametrize("x", [1, 2])
y = a@b.T + x@self.weight.transpose(0, 1)
background: url(icon@2x.png)
systemctl status user@1000.service
this@MainActivity.finish()
root@host:~# ls -la
pip install git+https://github.com/org/pkg.git@feature.x
ftp://anonymous@ftp.gnu.org/gnu/
object@meta.data$cluster
he said @ 5.30 pm @home.now
user@localhost and root@server
M-x package-install RET foo@bar
Windows 10.0.19041.1 and Chrome/96.0.4664.45 Safari/537.36
Mozilla/5.0 (X11) Gecko/20100101 Firefox/3.6.1.2
assembly version 4.0.0.0, PublicKeyToken=b77a5c561934e089
§ 2.3.4.5 Absatz 1
0.0.0.0:8080 and 255.255.255.0
multicast 224.0.0.251, 239.255.255.250
iptables 1.8.7.1-2ubuntu
the ratio 3:1:2::4 and std::vector<int>
namespace abc::def { int face::dead; }
Exif 2024:01:15 12:30:45
cafe::babe at 12:30:45:10
1234567890
123456789012345
1 000 000 000 000 000
GTIN 4006381333931, UPC 036000291452
4,111,111,111,111,111
Matrix: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
score 21-19 19-21 21-17
pages 415-555, 2671
1990-1995, 2001-2005
ZIP 94103-1234, PLZ 10117
lotto 03 12 23 34 45 49
lat=+48.856614 lon=+2.352222
UTC+01:00, GMT+0200
offset +1000000, -2000000
E = 6.02214076e23, 3.14159265358979
#123456 #fff000 rgba(10,20,30,0.5)
0x7fffd4e8c9a0 0xdeadbeef
A4 210x297mm, 1920x1080
Kapitel 1.2.3.4 beschreibt
arXiv:2301.12345v2
PMID: 12345678, PMC1234567
CVE-2021-44228 CWE-79
Bug 1234567 - crash
JIRA-12345, #67890
IEEE 802.11ac, ISO 8601-1:2019
de-DE en-US sk-SK
sk-learn and scikit-image
xoxo, see you
ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
OPENAI_API_KEY=sk-...
postgres://user:password@localhost:5432/db
https://user:${TOKEN}@github.com/x/y.git
ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 comment
SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDFXxBnM1Ww3Ck3bLk
DE12 is a road; FR76 is a train
GB29 NWBK is the start of one
AB123456 is a passport-like code
BG123456A has a prefix never used
000-12-3456 and 666-12-3456 and 123-00-4567
12345678A is no DNI
111.111.111-11
VIN WVWZZZ1JZXW000001
Tel Aviv 2024, tel quel 12
Telefonnummer siehe Impressum
call 911 or 112
phone 5 and phone 6
fax 1994
mobile 2.0 and cell 12-A-4
Inv. 2024-000123-01
Auftrag 4711-0815-2024
bus 100, line 200-300
2023-10-05-14-30-00.log
20231005143000
192.168.0.1-192.168.0.254
10.0.0.0/8, 172.31.255.255
127.0.0.1:5432
::ffff:10.0.0.1
[fe80::1%eth0]
0-306-40615-2
978-3-16-148410-0
ISBN 0198526636
LCCN 2003-123456
tab\\t123-45-678
1.800.000 Einwohner
+1 for this idea, +10 points
C++11/14/17, +2/-3""".splitlines()


def generate(seed: int = SEED) -> list[dict[str, str]]:
    """All rows; another seed makes other values of the same kinds."""
    R.seed(seed)
    rows = positives()
    for make, templates in LOOK_ALIKES:
        rows += [{"kind": "none", "text": template.format(make())} for template in templates * 2]
    for text in HAND.splitlines():
        mark = MARK.search(text)
        assert mark
        rows.append({"kind": mark[1], "text": text})
    rows += [{"kind": "none", "text": text} for text in PLAIN]
    return rows + pii_countries.rows(R, card, iban, IDS)


if __name__ == "__main__":
    rows = generate()
    FILE.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    print(
        len(rows),
        "rows",
        {
            kind: sum(row["kind"] == kind for row in rows)
            for kind in sorted({r["kind"] for r in rows})
        },
    )
