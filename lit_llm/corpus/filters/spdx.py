"""SPDX licence expressions: parse them from free text, and check them against an allow-list.

    normalize_license("Apache License, Version 2.0")  # "Apache-2.0"
    normalize_license("MIT/Apache-2.0")  # "MIT OR Apache-2.0"
    permitted("MIT OR GPL-3.0-only", GROUPS["permissive"])  # True

An identifier is of the SPDX list where that has one, else a LicenseRef. What is not in the tables
here is not recognised. The package license-expression parses expressions alone and is slower:
docs/decisions.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

PUBLIC_DOMAIN = "LicenseRef-Public-Domain"
COMMONS_CLAUSE = "LicenseRef-Commons-Clause"
UNRECOGNISED = "LicenseRef-Unrecognised"
"""A licence is named, but is not known here. No allow-list permits this value."""
# Identifiers of the SPDX licence list, grouped by their conditions.
GROUPS: Mapping[str, frozenset[str]] = {
    "permissive": frozenset(
        f"""0BSD AFL-3.0 Apache-1.1 Apache-2.0 Artistic-2.0 BSD-2-Clause
        BSD-2-Clause-Patent BSD-3-Clause BSD-4-Clause BSL-1.0 BlueOak-1.0.0 CC-BY-1.0
        CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 CC-PDM-1.0 CC0-1.0 CDLA-Permissive-1.0
        CDLA-Permissive-2.0 ECL-2.0 FTL HPND ICU ISC Libpng MIT MIT-0 MS-PL MulanPSL-2.0
        NCSA ODC-By-1.0 OFL-1.1 OLDAP-2.8 OpenSSL PDDL-1.0 PHP-3.01 PSF-2.0 PostgreSQL
        Python-2.0 Ruby TCL UPL-1.0 Unicode-3.0 Unicode-DFS-2016 Unlicense Vim W3C WTFPL
        X11 ZPL-2.1 Zlib bzip2-1.0.6 curl {PUBLIC_DOMAIN} LicenseRef-CC-BY""".split()
    ),
    "copyleft": frozenset(
        """AGPL-1.0-only AGPL-3.0-only AGPL-3.0-or-later CC-BY-SA-1.0 CC-BY-SA-2.0
        CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 CDDL-1.0 CDDL-1.1 CDLA-Sharing-1.0
        CECILL-2.1 CPL-1.0 EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 GFDL-1.1-or-later
        GFDL-1.2-only GFDL-1.2-or-later GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-or-later
        GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later LGPL-2.0-only
        LGPL-2.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later
        MPL-1.1 MPL-2.0 MS-RL ODbL-1.0 OSL-3.0 LicenseRef-CC-BY-SA""".split()  # noqa: SIM905
    ),
    "noncommercial": frozenset(
        [
            f"CC-BY-NC{more}-{v}"
            for more in ("", "-SA", "-ND")
            for v in ("1.0", "2.0", "2.5", "3.0", "4.0")
        ]
        + [
            "LicenseRef-CC-BY-NC",
            "LicenseRef-CC-BY-NC-SA",
            "LicenseRef-CC-BY-NC-ND",
            "PolyForm-Noncommercial-1.0.0",
        ]
    ),
    "noderivatives": frozenset(
        [f"CC-BY-ND-{v}" for v in ("1.0", "2.0", "2.5", "3.0", "4.0")] + ["LicenseRef-CC-BY-ND"]
    ),
    # The source may be read, but some uses or some users are excluded.
    "restricted": frozenset(["BUSL-1.1", "Elastic-2.0", "JSON", "SSPL-1.0", COMMONS_CLAUSE]),
}
_IDS = {name.lower(): name for group in GROUPS.values() for name in group}
_EXCEPTIONS = {
    name.lower(): name
    for name in """Classpath-exception-2.0 GCC-exception-3.1 LLVM-exception
    Autoconf-exception-3.0 Bison-exception-2.2 Font-exception-2.0 OpenSSL-exception
    Linux-syscall-note""".split()  # noqa: SIM905
}
# Names as people write them, in the form that `_key` gives: lower case, without "the", "license",
# "version", "v" and punctuation.
_NAMES = {
    "mit": "MIT",
    "expat": "MIT",
    "mit expat": "MIT",
    "mit mit": "MIT",
    "mit no attribution": "MIT-0",
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache2": "Apache-2.0",
    "apache software": "Apache-2.0",
    "apache software 2.0": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
    "al 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "bsd 3": "BSD-3-Clause",
    "3 clause bsd": "BSD-3-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "bsd 2": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "freebsd": "BSD-2-Clause",
    "2 clause bsd": "BSD-2-Clause",
    "bsd 2 clause": "BSD-2-Clause",
    "bsd 4 clause": "BSD-4-Clause",
    "original bsd": "BSD-4-Clause",
    "zero clause bsd": "0BSD",
    "boost": "BSL-1.0",
    "boost software 1.0": "BSL-1.0",
    "boost software": "BSL-1.0",
    "isc": "ISC",
    "zlib": "Zlib",
    "zlib/libpng": "Zlib",
    "unlicense": "Unlicense",
    "unlicence": "Unlicense",
    "wtfpl": "WTFPL",
    "psf": "PSF-2.0",
    "python software foundation": "PSF-2.0",
    "postgresql": "PostgreSQL",
    "sil open font 1.1": "OFL-1.1",
    "ofl": "OFL-1.1",
    "open data commons attribution 1.0": "ODC-By-1.0",
    "odc by": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "open database 1.0": "ODbL-1.0",
    "eclipse public 2.0": "EPL-2.0",
    "eclipse public 1.0": "EPL-1.0",
    "mozilla public 2.0": "MPL-2.0",
    "mozilla public": "MPL-2.0",
    "mpl": "MPL-2.0",
    "mpl 2": "MPL-2.0",
    "mpl2": "MPL-2.0",
    "cc0": "CC0-1.0",
    "cc0 1.0": "CC0-1.0",
    "cc0 1.0 universal": "CC0-1.0",
    "cc0 1.0 universal cc0 1.0 public domain dedication": "CC0-1.0",
    "cc zero": "CC0-1.0",
    "creative commons zero": "CC0-1.0",
    "creative commons zero 1.0 universal": "CC0-1.0",
    "pdm": "CC-PDM-1.0",
    "public domain mark": "CC-PDM-1.0",
    "public domain mark 1.0": "CC-PDM-1.0",
    "commons clause": COMMONS_CLAUSE,
    "business source 1.1": "BUSL-1.1",
    "busl": "BUSL-1.1",
    "bsl 1.1": "BUSL-1.1",
    "elastic 2.0": "Elastic-2.0",
    "elastic": "Elastic-2.0",
    "sspl": "SSPL-1.0",
    "server side public 1": "SSPL-1.0",
    "server side public": "SSPL-1.0",
    "public domain": PUBLIC_DOMAIN,
    "publicdomain": PUBLIC_DOMAIN,
    "pd": PUBLIC_DOMAIN,
    "domaine public": PUBLIC_DOMAIN,
    "gemeinfrei": PUBLIC_DOMAIN,
}
_GNU = re.compile(
    r"(?:gnu )?(?P<kind>agpl|lgpl|gpl|gfdl|affero general public|lesser general public"
    r"|library general public|general public|free documentation)(?: agpl| lgpl| gpl)? "
    r"?v?(?P<version>\d(?:\.\d)?)?(?:\.0)? ?"
    r"(?P<later>\+|or later|or newer|(?:or )?\(?at your option\)? any later)?(?: ?only)?"
)
_GNU_KINDS = {
    "affero": "AGPL",
    "lesser": "LGPL",
    "library": "LGPL",
    "general": "GPL",
    "free": "GFDL",
}
_CC = re.compile(r"(?:creative commons|cc) (?P<words>by(?: .*)?|(?:nc|nd|sa) .*)")
_CC_TERMS = {"by", "nc", "nd", "sa"}
# Words that a Creative Commons licence's name may contain besides its terms and version: the
# jurisdiction that it was adapted to, as a code or a name, and words that change nothing.
_CC_HARMLESS = frozenset(
    """creative commons cc deed legalcode legal code igo ported intergovernmental organization
    organisations organizations public en united states kingdom america new zealand costa
    rica czech republic hong kong puerto south africa korea viet nam england wales scotland
    argentina armenia australia austria azerbaijan belgium brazil bulgaria canada chile china
    colombia croatia denmark ecuador egypt estonia finland france georgia germany greece guatemala
    hungary india ireland israel italy japan luxembourg macedonia malaysia malta mexico netherlands
    norway peru philippines poland portugal romania serbia singapore slovenia spain sweden
    switzerland taiwan thailand uganda ukraine venezuela
    am ar at au az be bg br ca ch cl cn co cr cz de dk ec ee eg es fi fr ge gr gt hk hr hu ie il it
    jp kr lu mk mt mx my ng nl no nz pe ph pl pr pt ro rs se sg si th tw ua ug uk us ve vn
    za""".split()  # noqa: SIM905
)
CC_URL = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?", re.I)
_CC_WORDS = {
    "attribution": "by",
    "noncommercial": "nc",
    "non commercial": "nc",
    "noderivatives": "nd",
    "noderivs": "nd",
    "no derivatives": "nd",
    "sharealike": "sa",
    "share alike": "sa",
}


_TWICE = re.compile(r"([^()]+)\(([^()]+)\)")  # a name, and its short form in parentheses
_CLASSIFIER = re.compile(r"License :: (?:OSI Approved :: )?")  # prefix on the Python package index


def normalize_license(written: str) -> str | None:
    """Return the SPDX expression (specification 2.3, annex D) for a licence as written.

    None if it is not recognised. "public domain" becomes LicenseRef-Public-Domain, a Creative
    Commons licence without its version LicenseRef-CC-...
    """
    if one := single_license(written):
        return one
    tokens = [
        token
        for token in re.split(r"(?i)(\(|\)|(?<=[\s)])(?:AND|OR|WITH)(?=[\s(])|/|,|;)", written)
        if token.strip()
    ]
    if len(tokens) < 3:
        return None
    try:
        return _joined(_parse([token.strip() for token in tokens]))
    except ValueError:
        return None


def all_of(expressions: Iterable[str | None]) -> str | None:
    """Return the expression that requires all of ``expressions``; None if there are none.

    `UNRECOGNISED` if one of them is None or unrecognised, because its conditions are not known.
    """
    found = list(dict.fromkeys(expression or UNRECOGNISED for expression in expressions))
    if len(found) < 2:
        return found[0] if found else None
    return (
        normalize_license(" AND ".join(f"({expression})" for expression in found)) or UNRECOGNISED
    )


def permitted(expression: str, allowed: frozenset[str]) -> bool:
    """Whether the ``allowed`` identifiers satisfy an SPDX expression.

    One side of OR must be allowed, both sides of AND; WITH adds rights.
    """
    tokens = re.findall(r"\(|\)|[^\s()]+", expression)

    def holds(tree: object) -> bool:
        if isinstance(tree, str):
            return tree.split(" WITH ")[0] in allowed
        assert isinstance(tree, tuple)
        operator, left, right = tree
        return (holds(left) or holds(right)) if operator == "OR" else (holds(left) and holds(right))

    return holds(_parse(tokens))


@functools.lru_cache(maxsize=4096)
def single_license(written: str) -> str | None:
    """Return the identifier of one licence, without AND, OR, WITH; None if not recognised."""
    written = written.strip().strip("\"'`.")
    if known := _IDS.get(written.lower()):
        return known
    # Addresses of licences.
    if url := CC_URL.search(written):
        if url[1].lower() == "publicdomain":
            return {"zero": "CC0-1.0", "mark": "CC-PDM-1.0"}.get(url[2].lower())
        return _creative_commons(url[2].lower().split("-"), url[3])
    if re.search(r"apache\.org/licenses/LICENSE-2\.0", written):
        return "Apache-2.0"
    if page := re.search(
        r"(?:opensource|spdx)\.org/licen[sc]es?/([\w.-]+?)(?:\.html|\.php)?/?$", written
    ):
        return _IDS.get(page[1].lower()) or _NAMES.get(_key(page[1]))
    if page := re.search(
        r"gnu\.org/licenses/(?:old-licenses/)?(agpl|lgpl|gpl|fdl)-(\d\.\d)", written
    ):
        return _IDS.get(f"{page[1].replace('fdl', 'gfdl')}-{page[2]}-only")
    # "Name (SHORT)": both must mean the same licence.
    if (twice := _TWICE.fullmatch(written)) and (name := single_license(twice[1])):
        return name if single_license(twice[2]) == name else None
    # Names in free text: known names, GNU licences with their versions, Creative Commons.
    written = _CLASSIFIER.sub("", written)
    written = re.sub(r"(?i)^(attribution\b.*\d)", r"Creative Commons \1", written)
    key = _key(written)
    if key in _NAMES:
        return _NAMES[key]
    if gnu := _GNU.fullmatch(key):
        kind = _GNU_KINDS.get(gnu["kind"].split()[0], gnu["kind"].upper())
        version = gnu["version"] or ""
        if not version:
            return "GPL-1.0-or-later" if kind == "GPL" else None
        version = version if "." in version else f"{version}.0"
        return _IDS.get(f"{kind}-{version}-{'or-later' if gnu['later'] else 'only'}".lower())
    for word, term in _CC_WORDS.items():
        key = key.replace(word, term)
    if cc := _CC.fullmatch(key.replace("creative commons creative commons", "creative commons")):
        return _creative_commons_name(cc["words"].split())
    return None


def _creative_commons_name(words: list[str]) -> str | None:
    """Return the licence named by the words after "Creative Commons"; None for an unknown word.

    The order of the terms does not matter: "BY 4.0 non-commercial" is BY-NC.
    """
    versions = [word for word in words if re.fullmatch(r"\d(?:\.\d)?", word)]
    rest = set(words) - set(versions) - _CC_TERMS - _CC_HARMLESS
    if rest or len(set(versions)) > 1:
        return None
    terms = [word for word in words if word in _CC_TERMS]
    return _creative_commons(terms, versions[0] if versions else None)


def _creative_commons(terms: list[str], version: str | None) -> str | None:
    name = "CC-" + "-".join(term.upper() for term in ("by", "nc", "nd", "sa") if term in terms)
    if "nc" in terms and "sa" in terms:
        name = "CC-BY-NC-SA"
    if version is None:
        return _IDS.get(f"licenseref-{name}".lower())
    return _IDS.get(f"{name}-{version if '.' in version else version + '.0'}".lower())


def _key(written: str) -> str:
    """Reduce a name to the form in which `_NAMES` has it."""
    words = re.sub(r"[-_,()\"]", " ", written.lower().replace("public license", "public"))
    words = words.replace("england and wales", "england wales")
    key = re.sub(
        r"\b(?:the|licen[sc]es?|licensed|under|version|international|unported|generic)\b",
        " ",
        words,
    )
    return re.sub(r"\s+", " ", re.sub(r"\bv\.? ?(?=\d)", "", key)).strip(" .")


def _parse(tokens: list[str]) -> object:
    """Parse into nested (operator, left, right) and identifiers; ValueError if not an expression.

    AND binds more tightly than OR, OR more tightly than a comma. A list with commas may mean either
    AND or OR; it is read as AND, the stricter one.
    """

    def listed() -> object:
        left = either()
        while tokens and tokens[0] in (",", ";"):
            tokens.pop(0)
            left = ("AND", left, either())
        return left

    def either() -> object:
        left = both()
        while tokens and tokens[0].upper() in ("OR", "/"):
            tokens.pop(0)
            left = ("OR", left, both())
        return left

    def both() -> object:
        left = one()
        while tokens and tokens[0].upper() == "AND":
            tokens.pop(0)
            left = ("AND", left, one())
        return left

    def one() -> object:
        if not tokens:
            raise ValueError
        if (token := tokens.pop(0)) == "(":
            inner = listed()
            if not tokens or tokens.pop(0) != ")":
                raise ValueError
            return inner
        license = single_license(token)
        if license is None:
            raise ValueError
        if tokens and tokens[0].upper() == "WITH":
            tokens.pop(0)
            exception = _EXCEPTIONS.get(tokens.pop(0).lower()) if tokens else None
            if exception is None:
                raise ValueError
            return f"{license} WITH {exception}"
        return license

    tokens = list(tokens)
    tree = listed()
    if tokens:
        raise ValueError
    return tree


def _joined(tree: object, inside: str = "OR") -> str:
    """Write the result of `_parse` as an expression, with parentheses where needed."""
    if isinstance(tree, str):
        return tree
    assert isinstance(tree, tuple)
    operator, left, right = tree
    text = f"{_joined(left, operator)} {operator} {_joined(right, operator)}"
    return f"({text})" if inside == "AND" and operator == "OR" else text
