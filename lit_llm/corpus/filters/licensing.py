"""Find the licence of each document, and drop documents whose licence is not allowed.

LicenseFilter(allow=("permissive",))(documents(["..."], license=["MIT License"]))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, per_value, with_column
from lit_llm.corpus.filters.spdx import (
    CC_URL,
    COMMONS_CLAUSE,
    GROUPS,
    UNRECOGNISED,
    all_of,
    normalize_license,
    permitted,
    single_license,
)
from lit_llm.errors import UserError

HEAD = 4096
"""Number of characters at the start of a document that are searched for a licence."""


def detect_license(text: str, characters: int = HEAD) -> str | None:
    """Return the licence that the first ``characters`` of a source file or document declare.

    Lines with an SPDX-License-Identifier have priority. Otherwise sentences are searched that occur
    only in the text or header of one licence. Several declared licences are joined by AND.

    Returns:
        An SPDX expression, `UNRECOGNISED` if the declared licence is not known here, None if no
        licence is declared.
    """
    head = text[:characters]
    if tags := re.findall(r"SPDX-License-Identifier:[ \t]*([^\n]*)", head):
        ends = re.compile(r"\s*(?:\*/|-->|\*\)|#\}|\"\"\").*$")
        return all_of(normalize_license(ends.sub("", tag).strip()) for tag in tags)
    flat = re.sub(r"[\s#*/;!%\"'()-]+", " ", head).lower()
    found = _declared(flat) or _named(head)
    if not found:
        found = [single_license(url[0]) for url in CC_URL.finditer(head)]
    riders: list[str | None] = [
        license for sentence, license in _RIDERS if re.search(sentence, flat)
    ]
    return all_of(found + riders) if found else None


def _declared(flat: str) -> list[str | None]:
    """Return the licences whose sentences are in ``flat``.

    These are all permissive licences, and of the others the first one.

    The texts of copyleft licences name one another: the MPL's names the GPL as a second choice.
    """
    permissive: list[str | None] = []
    others: list[tuple[int, str | None]] = []
    for sentence, license in _SENTENCES:
        if match := re.search(sentence, flat):
            name = license if isinstance(license, str) else license(match, flat)
            if name in GROUPS["permissive"]:
                permissive.append(name)
            else:
                others.append((match.start(), name))
    return permissive + ([min(others, key=lambda one: one[0])[1]] if others else [])


def _named(head: str) -> list[str | None]:
    """Return the licences that the text states for itself.

    Example: "This work is licensed under CC BY-NC 4.0".
    """
    found: list[str | None] = []
    for said in _UNDER.finditer(head):
        # Take the longest sequence of the following words that is the name of a licence.
        words = head[said.end() : said.end() + _NAME_LENGTH].split()
        names = (" ".join(words[:count]).rstrip(".,;:") for count in range(len(words), 0, -1))
        if license := next(filter(None, map(normalize_license, names)), None):
            found.append(license)
    return found


@dataclass(frozen=True)
class LicenseFilter(Block):
    """Turn "license" into SPDX expressions, fill missing ones, and drop what is not allowed.

    The document's own column has priority, then what its text declares, then its source's licence.
    A licence that is named but not recognised is not replaced by the next of these.

    Attributes:
        allow: SPDX identifiers, or groups: permissive (including public domain), copyleft,
            noncommercial, noderivatives, restricted (BUSL, SSPL, Commons Clause).
        sources: source -> licence of its documents that declare none themselves; "*" is for every
            other source.
        keep_unknown: keep documents whose licence is not known or not recognised (their "license"
            is null).
        detect: search the text for a licence.

    Raises:
        UserError: a name in ``allow`` or ``sources`` is not a licence known here.
    """

    name = "license"
    allow: tuple[str, ...] = ("permissive",)
    sources: Mapping[str, str] = field(default_factory=dict)
    keep_unknown: bool = False
    detect: bool = True

    def __post_init__(self) -> None:
        self._allowed()
        for source, written in self.sources.items():
            if normalize_license(written) is None:
                raise UserError(
                    f"license.sources.{source}: {written!r} is not a known licence; write an "
                    "SPDX identifier"
                )

    def apply(self, table: pa.Table) -> pa.Table:
        """Set "license" and fill "dropped"."""
        # The first of these that names a licence: the column, the text, the source.
        spdx = pa.nulls(len(table), pa.string())
        if "license" in table.column_names:
            spdx = per_value(table["license"], _of_column)
        if self.detect and spdx.null_count:
            missing = pc.indices_nonzero(pc.is_null(spdx))
            heads = pc.utf8_slice_codeunits(table["text"].take(missing), 0, HEAD)
            spdx = pc.replace_with_mask(spdx, pc.is_null(spdx), per_value(heads, detect_license))
        if self.sources:
            names = (
                table["source"]
                if "source" in table.column_names
                else pa.chunked_array([pa.nulls(len(table), pa.string())])
            )
            given = {source: normalize_license(written) for source, written in self.sources.items()}
            spdx = pc.coalesce(
                spdx, per_value(names.fill_null(""), lambda name: given.get(name, given.get("*")))
            )
        # An unrecognised licence took part so far, so that no later source replaced it.
        spdx = pc.if_else(pc.equal(spdx, UNRECOGNISED), pa.scalar(None, pa.string()), spdx)
        allowed = self._allowed()
        reasons = per_value(spdx, lambda license: None if permitted(license, allowed) else license)
        if not self.keep_unknown:
            reasons = pc.coalesce(
                reasons, pc.if_else(pc.is_null(spdx), "unknown", pa.scalar(None, pa.string()))
            )
        return self.drop(with_column(table, "license", spdx), reasons)

    def _allowed(self) -> frozenset[str]:
        """Return the SPDX identifiers of ``allow``."""
        allowed: set[str] = set()
        for name in self.allow:
            one = single_license(name)
            if name not in GROUPS and one is None:
                raise UserError(
                    f"license.allow: {name!r} is not a known licence; groups are "
                    f"{', '.join(GROUPS)}"
                )
            allowed |= GROUPS[name] if name in GROUPS else {str(one)}
        return frozenset(allowed)


def _of_column(written: str) -> str | None:
    return normalize_license(written) or UNRECOGNISED if written.strip() else None


def _gnu(kind: str) -> Callable[[re.Match[str], str], str | None]:
    def license(found: re.Match[str], flat: str) -> str | None:
        later = "any later version" in flat[found.end() : found.end() + 80]
        return single_license(f"{kind} {found[1]}{'+' if later else ''}")

    return license


def _bsd(found: re.Match[str], flat: str) -> str:
    return (
        "BSD-3-Clause"
        if "neither the name" in flat or "names of its contributors" in flat
        else "BSD-2-Clause"
    )


_VERSION = r"[^.]{0,120}?version (\d(?:\.\d)?)"
_SENTENCES: tuple[tuple[str, str | Callable[[re.Match[str], str], str | None]], ...] = (
    (r"apache license,? version 2\.0|apache license version 2\.0, january 2004", "Apache-2.0"),
    (r"permission is hereby granted, free of charge, to any person obtaining a copy", "MIT"),
    (r"redistribution and use in source and binary forms", _bsd),
    (r"gnu affero general public license" + _VERSION, _gnu("agpl")),
    (r"gnu (?:lesser|library) general public license" + _VERSION, _gnu("lgpl")),
    (r"gnu general public license" + _VERSION, _gnu("gpl")),
    (r"mozilla public license,? v(?:\.|ersion) ?2\.0", "MPL-2.0"),
    (r"business source license 1\.1", "BUSL-1.1"),
    (r"server side public license", "SSPL-1.0"),
    (r"elastic license 2\.0", "Elastic-2.0"),
    (r"\bopen ?rail\b|responsible ai license|\bcommunity license agreement", UNRECOGNISED),
    (
        r"permission to use, copy, modify, and (?:or )?distribute this software for any purpose "
        r"with or without fee",
        "ISC",
    ),
    (r"this is free and unencumbered software released into the public domain", "Unlicense"),
    (r"boost software license,? version 1\.0", "BSL-1.0"),
    (
        r"this software is provided as is ?, without any express or implied warranty\. in no event",
        "Zlib",
    ),
)

# A statement of a text about itself, not about a program that it describes.
_UNDER = re.compile(
    r"(?:\bthis (?:\w+[ \t]+){1,4}?(?:is|are)|\b(?:content|text|material)s?\s+(?:of|on|in) this "
    r"\w+ (?:is|are)"
    r"|(?:^|\n)[ \t#*/;%>-]*)[ \t]*(?:(?:made "
    r")?available|distributed|licen[sc]ed|published|released)\s+under\s+"
    r"(?:the\s+terms\s+of\s+)?(?:(?:the|an?)\s+)?",
    re.I,
)
_NAME_LENGTH = 160  # characters after the statement in which the licence's name is searched

# Statements that restrict the rights given by a licence in the same text.
_RIDERS = (
    (r"\bcommons clause\b", COMMONS_CLAUSE),
    (r"shall be used for good,? not evil", "JSON"),
    (r"\bnon ?commercial (?:use|purposes?|research)\b|\bnot for commercial use\b", UNRECOGNISED),
    (r"\b(?:academic|research|educational) (?:use|purposes?) only\b", UNRECOGNISED),
)
