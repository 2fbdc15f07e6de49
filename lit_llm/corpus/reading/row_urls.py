"""Where a row of a corpus says what it was published at: in a column of its own, or in its
metadata.

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

# As they are compared: in small letters, "-" for "_".
_NAMES = ("url", "source-url", "page-url", "warc-target-uri", "target-uri", "uri", "u")
FOLDERS = ("metadata", "meta", "warc-headers", "warc-metadata", "json-metadata")
_DEEPEST = 3
_ADDRESS = re.compile(r"(?i)https?://\S")
# Of a line of JSON that may have an address in another place than "url".
_ELSEWHERE = re.compile(
    rb'(?i)"(?:source[-_]url|page[-_]url|(?:warc[-_])?target[-_]uri|uri|u|(?:warc[-_]|json[-_])?metadata|meta)"\s*:'
    rb'|"id"\s*:\s*"https?:'
)


def row_url(row: Mapping[str, Any]) -> str | None:
    """The address of a row, as it is written; None where it has none."""
    own = row.get("url")
    if isinstance(own, str) and own:
        return own
    if found := _inside(row, _DEEPEST):
        return found
    identifier = row.get("id")
    is_address = isinstance(identifier, str) and _ADDRESS.match(identifier)
    return identifier if is_address else None


def _inside(row: Mapping[str, Any], deep: int) -> str | None:
    named = folded(row)
    for name in _NAMES:
        value = named.get(name)
        # "url" and WARC's names hold addresses; of the other ones only what looks like one is.
        if isinstance(value, str) and (_ADDRESS.match(value) or (value and name == "url")):
            return value
    for name in FOLDERS if deep else ():
        value = opened(named.get(name))
        if value is not None and (found := _inside(value, deep - 1)):
            return found
    return None


def folded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by their names in small letters, "-" for "_"."""
    return {str(key).lower().replace("_", "-"): value for key, value in row.items()}


def opened(value: object) -> Mapping[str, Any] | None:
    """An object that a field holds, or holds as JSON in a string; None where it is anything
    else."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def may_be_elsewhere(block: bytes) -> bool:
    """Whether lines of JSON have a field that can hold an address, beside "url"."""
    return _ELSEWHERE.search(block) is not None


def url_columns(names: list[str]) -> list[str]:
    """Of a table's columns those that can hold an address, beside "url"."""
    known = {*_NAMES, *FOLDERS, "id"} - {"url"}
    return [name for name in names if name.lower().replace("_", "-") in known]
