"""One form for web addresses, in which documents, opt-out lists and removals are compared.

Hosts are in lower case and in Punycode by IDNA 2008 (RFC 5891) after the mapping of UTS 46, without
"www.", port, user and trailing dots; paths have each escape once, and no query or fragment.
"""

from __future__ import annotations

import contextlib
import functools
import re
import unicodedata
from urllib.parse import quote, unquote

_PARTS = re.compile(
    r"(?:[a-z][a-z0-9+.-]*:)?(?://)?(?:[^/@?#]*@)?(?:\*?\.)?(\[[0-9a-f:.]+\]|[^/:?#\[\]]+)(?::\d*)?(/[^?#]*)?",
    re.I,
)
_SAFE = "/:@!$&'()*+,;=~-._"  # characters that a path may hold unescaped (RFC 3986, section 3.3)


def host_and_path(address: str) -> tuple[str, str] | None:
    """(host, path) of an address, with or without a scheme; the path of a whole site is "".

    None where the address has no host.
    """
    match = _PARTS.match(address.strip().strip("<>"))
    host = normal_host(match[1]) if match else None
    if match is None or not host:
        return None
    path = quote(unquote(match[2] or ""), safe=_SAFE)
    return host, "" if path == "/" else path


def host(address: str) -> str | None:
    """The host of an address, see the module; None where there is none."""
    found = host_and_path(address)
    return found[0] if found else None


@functools.lru_cache(maxsize=65_536)
def normal_host(written: str) -> str:
    """A host's name in one form.

    A name that IDNA 2008 forbids, such as one with an underscore, has only the mapping of its letters.
    """
    name = unicodedata.normalize("NFKC", unquote(written)).lower()
    name = re.sub("[\u3002\uff0e\uff61]", ".", name).strip(". ")
    if not name.isascii() or "xn--" in name:
        import idna

        with contextlib.suppress(idna.IDNAError):
            name = idna.encode(name, uts46=True).decode()
    return name.removeprefix("www.")
