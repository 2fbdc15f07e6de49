"""Find the licence of a row: in a column of its own, or in its metadata.

{"license": ...}, also {"License": ...}, {"licence": ...}, {"licenses": [...]}
{"metadata": {"license": ...}}                               # Common Pile
{"meta": "{\\"license\\": ...}"}
{"max_stars_repo_licenses": [...]}, {"detected_licenses": [...]}  # The Stack
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lit_llm.corpus.reading.row_urls import FOLDERS, folded, opened
from lit_llm.corpus.reading.sources import writable

# Names as they are compared: lower case, "-" for "_".
_NAMES = (
    "license", "licence", "licenses", "licences", "license-expression", "spdx-license",
    "repo-license", "detected-licenses", "max-stars-repo-licenses",
)  # fmt: skip
_DEEPEST = 3
# A field in a line of JSON. In JSON within a string the quotes have backslashes.
_NAMED = re.compile(
    rb'(?i)"(?:(?:spdx|repo|detected|max_stars_repo)[-_])?licen[sc]es?(?:[-_]expression)?\\*"\s*:'
)


def row_license(row: Mapping[str, Any]) -> str | None:
    """Return the licence of a row as a string, see `license_label`; None if it names none."""
    return _inside(row, _DEEPEST)


def _inside(row: Mapping[str, Any], deep: int) -> str | None:
    """Search a row and its metadata, down to ``deep`` levels."""
    named = folded(row)
    for name in _NAMES:
        if (label := license_label(named.get(name))) is not None:
            return label
    for name in FOLDERS if deep else ():
        value = opened(named.get(name))
        if value is not None and (label := _inside(value, deep - 1)) is not None:
            return label
    return None


def license_label(value: object) -> str | None:
    """Return a row's licence as a string; None if it names none.

    All licences of a list apply. Objects of GitHub and package.json name it in a field. Any other
    value becomes JSON, which is not recognised as a licence, so that no more permissive licence
    takes its place.
    """
    if isinstance(value, dict):
        named = (value.get(key) for key in ("spdx_id", "key", "type", "name"))
        value = next((name for name in named if isinstance(name, str) and name), value)
    if isinstance(value, list):
        value = " AND ".join(f"({license_label(one) or 'unknown'})" for one in value)
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return writable(text)  # JSON can spell half a surrogate pair


def may_name_license(block: bytes) -> bool:
    """Whether lines of JSON have a field that can name a licence."""
    # Searching a plain word is ten times as fast, and few texts contain it.
    return (b"icen" in block or b"ICEN" in block) and _NAMED.search(block) is not None


def license_columns(names: list[str]) -> list[str]:
    """Return the columns of a table that can name a licence, besides "license"."""
    known = {*_NAMES, *FOLDERS}
    return [n for n in names if n != "license" and n.lower().replace("_", "-") in known]
