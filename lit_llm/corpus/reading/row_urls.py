"""Find the address at which a row was published: in a column of its own, or in its metadata.

{"url": ...}                                                 # C4, FineWeb, CulturaX, RefinedWeb
{"metadata": {"url": ...}}                                   # datatrove, Dolma, Common Pile
{"meta": {"url": ...}}, also {"meta": "{\"url\": ...}"}      # RedPajama, TxT360
{"metadata": {"WARC-Target-URI": ...}}                       # DCLM
{"metadata": {"warc_headers": {"warc-target-uri": ...}}}     # OSCAR
{"u": ...}, {"id": "https://..."}                            # HPLT; Dolma's Common Crawl
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# Names as they are compared: lower case, "-" for "_".
_NAMES = ("url", "source-url", "page-url", "warc-target-uri", "target-uri", "uri", "u")
FOLDERS = ("metadata", "meta", "warc-headers", "warc-metadata", "json-metadata")
_DEEPEST = 3
_ADDRESS = re.compile(r"(?i)https?://\S")
# Fields in a line of JSON that may hold an address, besides "url".
_ELSEWHERE = re.compile(
    rb'(?i)"(?:source[-_]url|page[-_]url|(?:warc[-_])?target[-_]uri|uri|u'
    rb'|(?:warc[-_]|json[-_])?metadata|meta)"\s*:'
    rb'|"id"\s*:\s*"https?:'
)


def row_url(row: Mapping[str, Any]) -> str | None:
    """Return the address of a row, as it is written; None if it has none."""
    own = row.get("url")
    if isinstance(own, str) and own:
        return own
    if found := _inside(row, _DEEPEST):
        return found
    identifier = row.get("id")
    is_address = isinstance(identifier, str) and _ADDRESS.match(identifier)
    return identifier if is_address else None


def _inside(row: Mapping[str, Any], deep: int) -> str | None:
    """Search a row and its metadata, down to ``deep`` levels."""
    named = folded(row)
    for name in _NAMES:
        value = named.get(name)
        # Any value of "url" is an address; the values of the other fields must look like one.
        if isinstance(value, str) and (_ADDRESS.match(value) or (value and name == "url")):
            return value
    for name in FOLDERS if deep else ():
        value = opened(named.get(name))
        if value is not None and (found := _inside(value, deep - 1)):
            return found
    return None


def folded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields by their names in lower case, with "-" for "_"."""
    return {str(key).lower().replace("_", "-"): value for key, value in row.items()}


def opened(value: object) -> Mapping[str, Any] | None:
    """Return the object that a field holds, also as JSON in a string; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def may_be_elsewhere(block: bytes) -> bool:
    """Whether lines of JSON have a field that can hold an address, besides "url"."""
    return _ELSEWHERE.search(block) is not None


def url_columns(names: list[str]) -> list[str]:
    """Return the columns of a table that can hold an address, besides "url"."""
    known = {*_NAMES, *FOLDERS, "id"} - {"url"}
    return [name for name in names if name.lower().replace("_", "-") in known]
