"""Normal form of web addresses, to compare documents, opt-out lists and removals.

Hosts are in lower case and in Punycode by IDNA 2008 (RFC 5891) after the mapping of UTS 46, without
"www.", port, user and trailing dots. Paths have each character escaped at most once, and no query
or fragment.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import unicodedata
from typing import NamedTuple
from urllib.parse import quote, unquote

_PARTS = re.compile(
    r"(?:view-source:)?(?:(?:https?|ftp|wss?):/*|[a-z][a-z0-9+.-]*://|//)?(?:[^/?#]*@)?(?:\*\.|\.)?"
    r"(\[[0-9a-f:.]+\]|[^/:?#\[\]]+)(?::\d*)?(/[^?#]*)?(?:\?([^#]*))?",
    re.I,
)
_NO_HOST = re.compile(
    r"(?!https?:|ftp:|wss?:|view-source:)[a-z][a-z0-9+.-]*:(?!//|\d*(?:/|$))", re.I
)
_SAFE = "/:@!$&'()*+,;=~-._"  # characters that a path may hold unescaped (RFC 3986, section 3.3)
_ENDS = "<>\"' \t\r\n"  # characters around an address that do not belong to it


class Address(NamedTuple):
    """Parts of an address in normal form.

    The path of a whole site is "". The query stays as it is written.
    """

    host: str
    path: str
    query: str


def parts(address: str) -> Address | None:
    """Return the parts of an address, with or without a scheme.

    None if it has no host ("mailto:ann@example.org").
    """
    # As browsers do (WHATWG URL, section 4.4): remove line ends and tabs; "\\" means "/".
    plain = re.sub(r"[\t\r\n]", "", address.strip(_ENDS))
    head, mark, query = plain.partition("?")
    plain = head.replace("\\", "/") + mark + query
    match = None if _NO_HOST.match(plain) else _PARTS.match(plain)
    host = normal_host(match[1]) if match else None
    if match is None or not host:
        return None
    path = quote(unquote(match[2] or ""), safe=_SAFE)
    if "/." in path or "//" in path:
        path = _resolved(path)
    return Address(host, "" if path == "/" else path, match[3] or "")


def _resolved(path: str) -> str:
    """Resolve "." and ".." in a path (RFC 3986, section 5.2.4), and merge repeated slashes."""
    found: list[str] = []
    names = path.split("/")
    for name in names:
        if name == "..":
            del found[-1:]
        elif name not in ("", "."):
            found.append(name)
    folder = names[-1] in ("", ".", "..") and found
    return "/" + "/".join(found) + ("/" if folder else "")


def host_and_path(address: str) -> tuple[str, str] | None:
    """Return (host, path) of an address, see `parts`."""
    found = parts(address)
    return found and (found.host, found.path)


def host(address: str) -> str | None:
    """Return the host of an address in normal form; None if it has none."""
    found = host_and_path(address)
    return found[0] if found else None


@functools.lru_cache(maxsize=65_536)
def normal_host(written: str) -> str:
    """Return a host's name in normal form.

    If IDNA 2008 forbids the name, as one with an underscore, only its letters are mapped.
    """
    name = unicodedata.normalize("NFKC", unquote(written)).lower()
    name = re.sub("[\u3002\uff0e\uff61]", ".", name).strip(". ")
    if not name.isascii() or "xn--" in name:
        import idna

        with contextlib.suppress(idna.IDNAError):
            name = idna.encode(name, uts46=True).decode()
    if name.startswith("[") and ":" in name:
        with contextlib.suppress(ValueError):
            return f"[{ipaddress.IPv6Address(name[1:-1]).compressed}]"
    site = name.removeprefix("www.")
    return site if "." in site else name
