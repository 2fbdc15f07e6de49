"""The second half of pii_cases.jsonl: forms of thirty countries, services' keys, and numbers of
science.

Phones, cards, bank accounts and national numbers stand with the separators of typesetters and in
the digits of other scripts too. Written from numbering plans, issuers' documents and what services
say of their keys.
"""

# ruff: noqa: RUF001 (tables of texts)
from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterable

UPPER, DIGITS, HEX = string.ascii_uppercase, string.digits, "0123456789abcdef"
ALNUM, URL = string.ascii_letters + DIGITS, string.ascii_letters + DIGITS + "_-"
BASE64 = string.ascii_letters + DIGITS + "+/"
_CLASSES = {"#": DIGITS, "%": DIGITS[1:], "&": DIGITS[2:]}

# --- separators -----------------------------------------------------------------------------------
# No-break, narrow no-break, thin, figure, six-per-em, en, ideographic space.
SPACES = "\u00a0\u202f\u2009\u2007\u2006\u2002\u3000"
HYPHENS = "\u2011\u2010\u2013\u2012"  # non-breaking, typographic, en dash, figure dash
FULL_WIDTH = {ord(c): ord(c) + 0xFEE0 for c in DIGITS + UPPER + "+()-@."}
ARABIC, PERSIAN, DEVANAGARI = (
    {ord("0") + i: first + i for i in range(10)} for first in (0x660, 0x6F0, 0x966)
)


def shaped(draw: random.Random, shape: str) -> str:
    """ "#" becomes a digit, "%" one of 1-9, "&" one of 2-9."""
    return "".join(draw.choice(_CLASSES[c]) if c in _CLASSES else c for c in shape)


def pick(draw: random.Random, alphabet: str, n: int) -> str:
    return "".join(draw.choice(alphabet) for _ in range(n))


def typeset(draw: random.Random, value: str) -> str:
    """``value`` with other spaces and hyphens."""
    space, hyphen = draw.choice(SPACES), draw.choice(HYPHENS)
    return value.replace(" ", space).replace("-", hyphen)


# --- phones ---------------------------------------------------------------------------------------
# Country: international form | national forms after a label.
PHONES = {
    "us": "+1 &## &## ####|Phone: (&##) &##-####|Cell: &##-&##-####|Call me at &##.&##.####|Fax "
    "&## &## ####",
    "gb": "+44 7### ######|Tel: 020 7### ####|Mobile: 07### ######|Phone 01### ######|Telephone "
    "number: 0121 4## ####",
    "ie": "+353 87 ### ####|Tel: 01 %## ####|Mobile 087 ### ####",
    "de": "+49 (0) 171 #######|Tel. 030 / %## ## ##|Mobil: 0151 ########|Telefon (089) %## ## "
    "##|Fax: 0221-%######",
    "at": "+43 664 #######|Tel.: 01/%######|Handy: 0664 ### ## ##",
    "ch": "+41 79 ### ## ##|Tel. 044 %## ## ##|Natel/Mobile: 079 ### ## ##",
    "fr": "+33 (0)6 ## ## ## ##|Tél : 01 %# ## ## ##|Portable : 06 ## ## ## ##|Fax : "
    "04.##.##.##.##",
    "be": "+32 475 ## ## ##|Tel. 02 %## ## ##|GSM: 0475 ## ## ##",
    "nl": "+31 6 ########|Tel: 020 %## ## ##|Mobiel: 06 %## ## ###",
    "es": "+34 6## ## ## ##|Tel. 91 %## ## ##|Móvil: 6## ### ###|Teléfono 93 %## ## ##",
    "pt": "+351 21 %## ####|Tel.: 21 %## ## ##|Telemóvel: 91# ### ###",
    "it": "+39 34# ### ####|Tel. 02 %### ####|Cell.: 33# %## ####|Telefono: 055-%######",
    "se": "+46 70 ### ## ##|Tel: 08-%## ### ##|Mobil: 070-### ## ##",
    "no": "+47 9## ## ###|Tlf.: 22 %# ## ##|Mobil: 9## ## ###",
    "dk": "+45 ## ## ## ##|Tlf. 33 %# ## ##|Telefon: %# ## ## ##",
    "fi": "+358 9 %## ####|Puh. 09 %## ####|Puhelin: 040 ### ####",
    "pl": "+48 6## ### ###|Tel. 22 %## ## ##|Telefon kom.: 6## ### ###",
    "cz": "+420 6## ### ###|Tel.: 2## ### ###|Telefon: 7## ### ###",
    "hu": "+36 30 ### ####|Telefon: 06 1 %## ####|Mobil: 06 20 ### ####",
    "ro": "+40 7## ### ###|Telefon: 021 %## ####|Mobil: 07## ### ###",
    "gr": "+30 69# ### ####|Τηλ.: 210 %## ####|Τηλέφωνο: 69# ### ####",
    "tr": "+90 5## ### ## ##|Telefon: 0212 %## ## ##|Cep tel: 05## ### ## ##",
    "ru": "+7 9## ### ## ##|Телефон: 8 (812) ### ## ##|Моб.: 8-9##-###-##-##",
    "ua": "+380 67 ### ## ##|Тел.: 044 %## ## ##|Телефон: 067 ### ## ##",
    "jp": "+81 3 %### ####|電話：03-%###-####|携帯：090-####-####|TEL 06-%###-####",
    "kr": "+82 10 %### ####|전화: 02-%##-####|휴대폰: 010-####-####",
    "cn": "+86 13# #### ####|电话：010-%#######|手机：13#########|传真：021-%#######",
    "in": "+91 98### #####|Phone: 022 %### ####|Mobile: 98### #####|Mobile no. 9#########",
    "au": "+61 4## ### ###|Phone: (02) 9### ####|Mobile: 04## ### ###",
    "br": "+55 11 9#### ####|Telefone: (21) %###-####|Celular: (11) 9####-####",
    "mx": "+52 55 %### ####|Tel. 55 %### ####|Cel. 33 %### ####",
    "za": "+27 11 %## ####|Tel: 011 %## ####|Cell: 082 ### ####",
    "il": "+972 3 %## ####|טלפון: 03-%######|נייד: 052-%######",
    "eg": "+20 10 #### ####|هاتف: 02 %### ####|موبايل: 010########",
}
LOCAL_DIGITS = {
    "jp": FULL_WIDTH,
    "cn": FULL_WIDTH,
    "kr": FULL_WIDTH,
    "eg": ARABIC,
    "in": DEVANAGARI,
}
AROUND = ["{}", "{}.", "{}, bitte", "({})", "{}; e-mail below"]


def labelled(draw: random.Random, line: str) -> tuple[str, str]:
    """(label, number) of a form such as "Tel. 030 %##"; a number begins at the first sign of
    one."""
    at = next(i for i, c in enumerate(line) if c in "+#%&0123456789(")
    return line[:at], shaped(draw, line[at:])


def phones(draw: random.Random) -> list[tuple[str, str]]:
    """(template, value), each as typed and as typeset, and some in the country's own digits."""
    found = []
    for country, forms in PHONES.items():
        international, *national = forms.split("|")
        pairs = [("", shaped(draw, international)), *(labelled(draw, line) for line in national)]
        for number, (label, value) in enumerate(pairs):
            around = AROUND[number % len(AROUND)]
            found.append((label + around, value))
            again = typeset(draw, shaped(draw, international) if not number else value)
            if again != value:
                found.append((label + AROUND[(number + 1) % len(AROUND)], again))
            if number and country in LOCAL_DIGITS:
                found.append((label + "{}", value.translate(LOCAL_DIGITS[country])))
    found.append(("تلفن: {}", "021 8888 1234".translate(PERSIAN)))
    found.append(("ＴＥＬ：{}", "03-5555-0188".translate(FULL_WIDTH)))
    return found


# --- national numbers that pii_cases.py does not make ---------------------------------------------
def _born(draw: random.Random) -> tuple[int, int, int]:
    return draw.randrange(30, 100), draw.randrange(1, 13), draw.randrange(1, 29)


def _sum(digits: str, weights: Iterable[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=True))


def no_number(draw: random.Random) -> str:
    """Fødselsnummer: two control digits mod 11, of which neither may be 10."""
    year, month, day = _born(draw)
    body = f"{day:02d}{month:02d}{year:02d}{pick(draw, DIGITS, 3)}"
    for weights in ((3, 7, 6, 1, 8, 9, 4, 5, 2), (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)):
        control = -_sum(body, weights) % 11
        if control == 10:
            return no_number(draw)
        body += str(control)
    return f"{body[:6]} {body[6:]}"


def kr_number(draw: random.Random) -> str:
    year, month, day = _born(draw)
    return f"{year:02d}{month:02d}{day:02d}-{draw.choice('12')}{pick(draw, DIGITS, 6)}"


def mx_curp(draw: random.Random) -> str:
    year, month, day = _born(draw)
    body = (
        f"{pick(draw, UPPER, 4)}{year:02d}{month:02d}{day:02d}{draw.choice('HM')}"
        f"{pick(draw, UPPER, 5)}0"
    )
    places = {c: i for i, c in enumerate("0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ")}
    return body + str(-sum(places[c] * (18 - i) for i, c in enumerate(body)) % 10)


def dk_cpr(draw: random.Random) -> str:
    """Since 2007 there is no control digit."""
    year, month, day = _born(draw)
    return f"{day:02d}{month:02d}{year:02d}-{pick(draw, DIGITS, 4)}"


def cz_number(draw: random.Random) -> str:
    """Rodné číslo: ten digits divisible by 11; women's months are 50 higher."""
    year, month, day = _born(draw)
    head = f"{year:02d}{month + draw.choice((0, 50)):02d}{day:02d}{pick(draw, DIGITS, 3)}"
    last = -int(head + "0") % 11
    return f"{head[:6]}/{head[6:]}{last}" if last < 10 else cz_number(draw)


def tr_number(draw: random.Random) -> str:
    """T.C. kimlik no: 7 times the odd places less the even ones, mod 10; then the sum of ten."""
    body = shaped(draw, "%########")
    d = [int(c) for c in body]
    tenth = (7 * sum(d[::2]) - sum(d[1::2])) % 10
    return f"{body}{tenth}{(sum(d) + tenth) % 10}"


def pt_nif(draw: random.Random) -> str:
    body = draw.choice("12") + pick(draw, DIGITS, 7)
    control = 11 - _sum(body, range(9, 1, -1)) % 11
    plain = body + str(0 if control > 9 else control)
    return f"{plain[:3]} {plain[3:6]} {plain[6:]}"


def za_number(draw: random.Random) -> str:
    """Date, serial, citizenship, 8, and Luhn's digit."""
    year, month, day = _born(draw)
    body = f"{year:02d}{month:02d}{day:02d}{pick(draw, DIGITS, 4)}{draw.choice('01')}8"
    doubled = sum(sum(divmod(int(c) * (2 if i % 2 else 1), 10)) for i, c in enumerate(body))
    return body + str(-doubled % 10)


IDS: dict[Callable[[random.Random], str], list[str]] = {
    no_number: ["Fødselsnummer: {}", "fnr. {}"],
    kr_number: ["주민등록번호: {}", "주민번호 {}"],
    mx_curp: ["CURP: {}", "con CURP {} y domicilio en Puebla"],
    dk_cpr: ["CPR-nr. {}", "Personnummer: {}"],
    cz_number: ["Rodné číslo: {}", "r. č. {}"],
    tr_number: ["T.C. Kimlik No: {}", "TC kimlik numarası {}"],
    pt_nif: ["NIF: {}", "Contribuinte n.º {}"],
    za_number: ["ID number: {}", "SA ID {}"],
}


# --- keys -----------------------------------------------------------------------------------------
def service_keys(draw: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Service: (template, key). Heads are cut in two, so that no scanner takes this file for a
    leak."""

    def hexadecimal(n: int) -> str:
        return pick(draw, HEX, n)

    def mixed(n: int) -> str:
        return pick(draw, ALNUM, n)

    token = mixed(40)
    return {
        "openrouter": [("OPENROUTER_API_KEY={}", "sk-" + "or-v1-" + hexadecimal(64))],
        "deepseek": [("DEEPSEEK_API_KEY: '{}'", "sk-" + hexadecimal(32)),
            ("api_key=\"{}\"", "sk-" + hexadecimal(32))],
        "groq": [("export GROQ_API_KEY={}", "gsk" + "_" + mixed(52))],
        "replicate": [("REPLICATE_API_TOKEN={}", "r8" + "_" + mixed(37))],
        "xai": [("XAI_API_KEY={}", "xai" + "-" + mixed(80))],
        "digitalocean": [("token: {}", f"do{kind}_" + "v1_" + hexadecimal(64)) for kind in "por"],
        "databricks": [("DATABRICKS_TOKEN={}", "dap" + "i" + hexadecimal(32)),
            ("pat {}", "dap" + "i" + hexadecimal(32) + "-2")],
        "vault": [("VAULT_TOKEN={}", "hvs" + "." + pick(draw, URL, 90) + "A"),
            ("batch: {}", "hvb" + "." + pick(draw, URL, 140) + "A")],
        "shopify": [("X-Shopify-Access-Token: {}",
            f"shp{kind}_" + hexadecimal(32)) for kind in ("at", "ca", "pa", "ss")],
        "linear": [("LINEAR_API_KEY={}", "lin_" + "api_" + mixed(40))],
        "slack": [("SLACK_APP_TOKEN={}",
            f"xap{'p'}-1-{pick(draw, UPPER + DIGITS, 11)}-{pick(draw, DIGITS, 13)}-"
            f"{hexadecimal(64)}")],
        "azure": [
            ("DefaultEndpointsProtocol=https;AccountName=store;AccountKey={};"
                "EndpointSuffix=core.windows.net", pick(draw, BASE64, 86) + "=="),
            ("Endpoint=sb://bus/;SharedAccessKeyName=Root;SharedAccessKey={}",
                pick(draw, BASE64, 43) + "="),
        ],
        "bearer": [
            ("Authorization: Bearer {}", token), ("curl -H 'authorization: bearer "
                                                  "{}'", pick(draw, ALNUM, 32)),
            ('"Authorization": "Bearer {}"', f"{mixed(24)}.{mixed(12)}-{mixed(20)}"),
            ('headers = {{"Authorization": f"Bearer {}"}}', mixed(44)),
            ("Authorization: Basic {}", pick(draw, ALNUM, 30) + "0Q=="),
        ],
        "aws": [
            ('"SecretAccessKey": "{}"', pick(draw, BASE64, 40)),
            ('"secretAccessKey":"{}",', pick(draw, BASE64, 40)),
            ("aws_secret_access_key={}", pick(draw, BASE64, 40)),
            ('"SessionToken": "{}"', "IQoJ" + pick(draw, BASE64, 300) + "="),
            ("AWS_SECRET_ACCESS_KEY: {}", pick(draw, BASE64, 40)),
        ],
        "gitlab": [
            ("GITLAB_TOKEN={}",
                f"glpa{'t'}-{pick(draw, URL, 30)}A.01.{pick(draw, DIGITS + HEX, 9)}"),
            ("token {}", f"glpa{'t'}-{pick(draw, URL, 27)}A.{pick(draw, DIGITS + HEX, 9)}"),
            ("runner {}", f"glr{'t'}-{pick(draw, ALNUM, 20)}"),
        ],
        "others": [
            ("NVIDIA_API_KEY={}", "nvap" + "i-" + pick(draw, URL, 63) + "A"),
            ("PPLX={}", "ppl" + "x-" + mixed(48)),
            ("docker login -p {}", "dckr" + "_pat_" + pick(draw, URL, 26) + "A"),
            ("FIGMA={}", "fig" + "d_" + mixed(40)),
            ("notion: {}", "nt" + "n_" + mixed(46)), ("{}",
                "GOCSP" + "X-" + pick(draw, URL, 27) + "A"),
            ("LANGSMITH={}", f"lsv2_{'pt'}_{hexadecimal(32)}_{hexadecimal(10)}"),
            ("{}", "sb" + "p_" + hexadecimal(40)),
            ("GRAFANA={}", f"gls{'a'}_{mixed(32)}_{hexadecimal(8)}"),
            ("gem {}", "rubyg" + "ems_" + hexadecimal(48)),
            ("export VAULT_TOKEN={}", "s" + "." + mixed(24)), ("MISTRAL_API_KEY={}", mixed(32)),
            ('secret_key = "{}"', pick(draw, BASE64, 40)),
            ("TWILIO_AUTH_TOKEN={}", hexadecimal(32)),
            ("mail {}", "ke" + "y-" + hexadecimal(32)), ("base {}",
                "pa" + "t" + mixed(14) + "." + hexadecimal(64)),
            ("https://a.blob.core.windows.net/c?sv=2022&sig={}", mixed(42) + "%3D"),
            ("webhook secret {}", "whs" + "ec_" + pick(draw, BASE64, 32)),
            ("x-api-key: {}", mixed(40)),
        ],
    }  # fmt: skip


# --- look-alikes ----------------------------------------------------------------------------------
# Shapes are filled in; each line is written out twice.
SCIENCE = r"""doi:10.1016/j.cell.20#%.0%.0##
https://doi.org/10.1016/j.molcel.201%.##.0##
https://doi.org/10.1016/j.cell.201%.0%.031
10.1038/s415##-0##-0####-%
doi 10.1016/j.stem.2018.##.0## and 10.1016/j.cels.2017.0%.002
10.1093/mobile/20#%0%1#12
10.1101/2020.0%.1#.###%##
10.1007/978-3-030-%####-#_1#
10.1145/%######.%######
The cell line at %000000 cells per well was split.
Seed each cell type at 1000000 cells/ml.
HeLa cell density %500000 per ml
cell count: 12500000 per litre
cell volume 2019, pages 12-25
Cell 1## (2019) 1234-125%
Cell 2018; 17%: 1888-1902
Cell 161 1187-1201
Mol. Cell 2008 30 12-25
Mobile 2019-2020
Mobile 2019–2020
Mobile subscribers 1 234 5##
Mobile World Congress 2018, 2019, 2020
mobile phase 0.1 25.0 30.5 35.2
Mobil 1000000 Stück im Jahr 2019
Telephones in use 1 234 5## in 1980
Telephone lines 2019 2020 2021
Telefonanschlüsse: 2019–2020
Contact 2015-2018
contact angle 10# 11# 12# degrees
Contact maps of 20#% residues, 1000000 contacts
portable 1999-2003
Fax volumes 1990 1995 2000
phone calls 1000000 a day
phone masts 2 500 000 by 2030
call text 1234567 bytes at 0x100
GSM 850/900/1800/1900 MHz
GSM 03.40 03.38 2000
Handy 2010/2011
kernel 2.6.32.%#
Linux kernel 2.6.3%.##
Linux 4.19.0.%##
kernel: 5.15.0.9#
the 2.6.32.6# kernel series
kernel version 4.4.0.116
upgrade the kernel from 2.6.32.5# to 2.6.32.6#
Kernel 3.10.0.%57
kernel size 3.3.64.128
[    0.000000] e820: BIOS-provided physical RAM map 0010 2030 4050
0020 4000 1234 5678 0000
kernel: CPU 0 1 2 3 4 5 6 7
Table 12.34.5.6%
Tab. 4.1.2.3%
Figure 3.2.41.5
Fig. 10.4.33.2
Eq. 2.14.35.7
Theorem 5.34.2.1
Algorithm 1.2.45.3
Appendix 1.5.66.2
Tabelle 3.40.1.2
tableau 2.3.44.5
таблица 3.2.41.5
表 3.2.41.5
EC 1.14.13.%#
EC number 3.4.24.8%
enzyme EC 2.7.10.4#
EC:1.14.14.5#
05 10 15 20 25
05 15 25 35 45
02 04 06 08 10
+36 12.50 13.75 14.20
+41 52.10 53.75 54.20
12.5 13.5 14.5 15.5 16.5
mean 120  134  156  178
Mobile  120  134  156
Desktop 45  52  61  Mobile 39  48  39
| Mobile | 120 | 134 | 156 | 178 |
| Phone | 2019 | 2020 | 2021 |
Phone	1200	1300	1400
N = 1 234 567, p < 0.001
n = 1 234 567 890
2 345 678 ± 12 345
€ 1 234 567,89
10 000 000 000
1‑2‑3 trinitro, 2,4‑D
1999–2004, 2005–2010
chr7:551#####-552#####
chr1 12345### 12346###
NCT0%######
rs12345####
GSE1#####
GO:000815%
PMID 2%###### PMCID PMC5######
CAS 7732-18-5 and 64-17-5
ORCID 0000-0002-1825-009%
arXiv:19##.#####
UniProt P0%#12, PDB 1ABC
Phys. Rev. Lett. 116, 06110%
J. Cell Biol. 2019 218 12-25
Nature 2019 571 343-34%
ISO/IEC 27001:2013
IEC 61000-4-2 2008
ASTM D1234-56 2019
lat 48.856614 lon 2.352222
RA 05 34 31.94 Dec +22 00 52.2
HD 209458, NGC 1234, 2MASS J05345
+22 00 52.2 J2000
Z = 1.96, 95 per cent CI 1.23 4.56
1.00 0.95 0.90 0.85
https://shop.example/mobile/20191012/1234567
6.022 140 76e23
SMILES CC1=CC=CC=C1 10 20 30
PO box 1000000
Budget 2019–2020: 1 250 000
2018/2019 2019/2020
12:30–13:45
§ 12 Abs. 3 Nr. 45
ISBN 978‑3‑16‑148410‑0
ISBN 978 3 16 148410 0
２０１９－２０２０
１２３４５６７
１，２３４，５６７
٢٠١٩-٢٠٢٠
१२३४५६७
Telefonnummern 2019
Telefon seit 1990
tel. 12
Tel. (nur 2019-2020)
Fig. 3 of mobile 4G 2600
mobile 802.11 2400 5000
Handy 3310 6110 8210
cellular 850/900/1800 MHz
kontakt 2020/2021 1 500 000
hotline 2000 2005 2010
phone 12, 13 and 14
phone 2012-2014, phone 2015-2019
text me 10 20 30
portable 486 1994 1995""".splitlines()

# With keys' heads, but forms to fill in, names and words.
NO_KEYS = r"""Authorization: Bearer <token>
Authorization: Bearer YOUR_API_KEY_GOES_HERE_0
Authorization: Bearer ${ACCESS_TOKEN}
headers: Bearer {token}
'Authorization': 'Bearer ' + api_key
the bearer of this certificate 12345
Bearer authentication-is-required-for-this
Bearer xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
sk-or-v1-...
sk-or-v1-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
sk-your-deepseek-api-key-goes-here
sk-learn-contrib-estimators-and-more
gsk_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
gsk_widget_set_sensitive(widget, TRUE)
r8_to_r9
xai-explainability-methods-compared
dop_v1_<64 hexadecimal digits>
dapi/v1/products
dapixxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
hvs.example.com
vault token hvs.XXXXXXXXXXXXXXXXXXXXXXXXXXXX
shpat_your_access_token
lin_api_url
xapp-1-A-example
AccountKey=<your key>;EndpointSuffix=core.windows.net
AccountName=store;AccountKey=...
"SecretAccessKey": "<secret>"
SecretAccessKey = "EXAMPLE"
glpat-your-token-here
glpat-xxxxxxxxxxxxxxxxxxxx
x-api-key: YOUR_API_KEY
x-api-key header is required
nvapi-xxxxxxxx
whsec_...
ntn_token
figd_example
api-key authentication-with-query-parameters-is-here1
SecretAccessKey: AwsSecretAccessKeyParameterReferenceArn1
api_key = settings.SOME_PROVIDER_API_KEY_OF_2024
Authorization: Bearer mF_9.B5f-4.1JqM
access_token=1234567890123456789012345678901234567890
session_token = request.headers.get("X-Session-Token")
Basic authentication, basic_auth(user, password)
Authorization: Basic <credentials>
class glrt-runner-table-row-header
pplx-7b-online""".splitlines()


def rows(
    draw: random.Random,
    card: Callable[[], str],
    iban: Callable[[], str],
    ids: dict[Callable[[], str], list[str]],
) -> list[dict[str, str]]:
    """Rows as in pii_cases.jsonl; ``card``, ``iban`` and the keys of ``ids`` make values."""
    found: list[dict[str, str]] = []

    def add(kind: str, template: str, value: str) -> None:
        shown = value[:2] + "¦" + value[2:] if kind == "secret" else value
        found.append({"kind": kind, "text": template.format(f"⟦{kind}|{shown}⟧")})

    for template, value in phones(draw):
        add("phone", template, value)
    for number in range(60):
        value = card()
        while " " not in value and "-" not in value and number % 3:
            value = card()
        value = value.translate(FULL_WIDTH) if number % 6 == 0 else typeset(draw, value)
        add("card", ("Card {}", "carte n° {}", "{}", "卡号：{}")[number % 4], value)
    for number in range(60):
        value = iban()
        while " " not in value and number % 4:
            value = iban()
        value = value.translate(FULL_WIDTH) if number % 8 == 0 else typeset(draw, value)
        add("iban", ("IBAN {}", "IBAN : {}.", "compte {}", "({})")[number % 4], value)
    for make, templates in ids.items():
        for template in templates[:2]:
            add("national_id", template, typeset(draw, make()))
    for of_country, templates in IDS.items():
        for number, template in enumerate(templates * 3):
            value = of_country(draw)
            add("national_id", template, typeset(draw, value) if number % 3 == 2 else value)
    for keys in service_keys(draw).values():
        for template, key in keys:
            add("secret", template, key)
    add("email", "メール：{}", "tanaka@example.co.jp".translate(FULL_WIDTH))
    add("ip_address", "IP {}", "81.2.69.160".translate(FULL_WIDTH))
    for line in [*SCIENCE, *SCIENCE]:
        found.append(
            {"kind": "none", "text": shaped(draw, line) if set(line) & set("#%") else line}
        )
    found += [{"kind": "none", "text": line} for line in NO_KEYS]
    return found
