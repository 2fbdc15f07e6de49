"""Drop documents whose publishers do not allow training: by address, and by flags in the document.

block = OptOut(entries=("example.org", "site.net/private"))
block(documents(["..."], url=["https://www.example.org/a"]))
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, per_value
from lit_llm.corpus.reading.addresses import parts
from lit_llm.errors import UserError

# Host -> the excluded paths below it; "" excludes the whole host.
Index: TypeAlias = dict[str, tuple[str, ...]]
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)+|\[[0-9a-f:.]+\]")
_ALL_BELOW = re.compile(r"/\*$")  # "example.org/a/*" means "example.org/a/"
_RESERVED = re.compile(r"tdm-?_?reservation\W{1,4}1\b")


@dataclass(frozen=True)
class OptOut(Block):
    """Drop documents whose "url" is on a list, or whose flags refuse training.

    Attributes:
        entries: domains (including subdomains) and addresses (including all below them; an address
            with a query only matches itself).
        files: files of entries, one per line; "#" begins a comment. A million domains take a second
            to read.
        flags: columns with the content of robots meta tags, of X-Robots-Tag headers and of
            tdm-reservation (W3C TDM Reservation Protocol: 1 means reserved). Missing columns are
            skipped.
        refusals: words in a flag that refuse training. Boolean true and the number 1 refuse it too.

    Raises:
        UserError: a file cannot be read, or an entry is not a domain or address.
    """

    name = "opt_out"
    entries: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("robots", "x_robots_tag", "tdm_reservation")
    refusals: tuple[str, ...] = ("noai", "noml", "noindex", "none")

    def __post_init__(self) -> None:
        self._index()

    def inputs(self) -> tuple[str, ...]:
        """Its lists."""
        return self.files

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill "dropped"."""
        reasons = pa.nulls(len(table), pa.string())
        for flag in self.flags:
            if flag in table.column_names:
                refused = per_value(table[flag], self._refuses)
                reasons = pc.coalesce(reasons, pc.if_else(pc.is_valid(refused), flag, refused))
        if "url" in table.column_names and (self.entries or self.files):
            index = self._index()
            reasons = pc.coalesce(reasons, per_value(table["url"], lambda url: listed(url, index)))
        return self.drop(table, reasons)

    def _refuses(self, value: object) -> str | None:
        said = str(value).strip().lower()
        words = set(re.split(r"[\s,;:]+", said))
        return (
            said
            if said in ("1", "true") or words & set(self.refusals) or _RESERVED.search(said)
            else None
        )

    def _index(self) -> Index:
        return _load(self.entries, self.files, tuple(_stamp(file) for file in self.files))


def listed(url: str, index: Index) -> str | None:
    """Return the entry of ``index`` that matches ``url``; None if there is none.

    The result looks like "domain example.org" or "address example.org/a".
    """
    if not (found := parts(url)):
        return None
    host, path, query = found
    # The host itself, then the domains that it belongs to.
    while host:
        for entry in index.get(host, ()):
            if not entry:
                return f"domain {host}"
            if path == entry or path.startswith(entry + "/") or f"{path}?{query}" == entry:
                return f"address {host}{entry}"
        host = host.partition(".")[2]
    return None


def _stamp(file: str) -> int:
    """Return the time of the file's last change, to detect a changed list."""
    try:
        return Path(file).stat().st_mtime_ns
    except OSError as error:
        raise UserError(
            f"opt_out.files: {file} cannot be read ({error.strerror}); give a file of domains"
        ) from None


@functools.lru_cache(maxsize=8)
def _load(entries: tuple[str, ...], files: tuple[str, ...], stamps: tuple[int, ...]) -> Index:
    """Read the lists into an index; cached per process until one of the ``stamps`` changes."""
    index: Index = {}
    _add(index, entries, "opt_out.entries")
    for file in files:
        with open(file, encoding="utf-8-sig", errors="replace") as lines:
            _add(index, (line.split("#", 1)[0].strip() for line in lines), file)
    return index


def _add(index: Index, entries: Iterable[str], where: str) -> None:
    for number, entry in enumerate(entries, start=1):
        if not entry:
            continue
        found = parts(_ALL_BELOW.sub("/", entry))
        if not found or not _HOST.fullmatch(found.host) or " " in entry or "*" in found.path:
            raise UserError(
                f"{where}: entry {number}, {entry!r}, is not a domain or address; write "
                "example.org or a URL"
            )
        host, path = found.host, found.path.rstrip("/")
        path += f"?{found.query}" if found.query else ""
        if path not in index.get(host, ()):
            index[host] = (*index.get(host, ()), path)
