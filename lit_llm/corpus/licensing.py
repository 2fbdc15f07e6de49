"""Under which licence a document may be used: what its column, its text or its source says, and who may stay.

LicenseFilter(allow=("permissive",))(documents(["..."], license=["MIT License"]))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import Block, per_value, with_column
from lit_llm.corpus.spdx import CC_URL, GROUPS, normalize_license, permitted, single_license
from lit_llm.errors import UserError


def detect_license(text: str) -> str | None:
    """The licence that a source file's or document's first 4,096 characters declare; None if they do not.

    An SPDX-License-Identifier line counts before the sentences that are found in one licence's text or header alone.
    """
    head = text[:4096]
    if tag := re.search(r"SPDX-License-Identifier:[ \t]*([^\n]*)", head):
        return normalize_license(re.sub(r"\s*(?:\*/|-->|\*\)|#\}|\"\"\").*$", "", tag[1]).strip())
    flat = re.sub(r"[\s#*/;!%\"'()-]+", " ", head).lower()
    for sentence, license in _SENTENCES:
        if found := re.search(sentence, flat):
            return license if isinstance(license, str) else license(found, flat)
    return single_license(url[0]) if (url := CC_URL.search(head)) else None


@dataclass(frozen=True)
class LicenseFilter(Block):
    """Make "license" SPDX expressions, filled in where it is missing, and drop what is not allowed.

    A document's own column counts first, then what its text declares, then its source's licence.

    Attributes:
        allow: SPDX identifiers, or groups: permissive (public domain too), copyleft, noncommercial, noderivatives.
        sources: licence of the documents of a source that say nothing themselves; "*" for every other source.
        keep_unknown: keep documents whose licence is not known or not recognised ("license" is null then).
        detect: look for a licence in the text.

    Raises:
        UserError: a name in ``allow`` or ``sources`` is no licence known here.
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
                    f"license.sources.{source}: {written!r} is no licence known here; write an SPDX identifier"
                )

    def apply(self, table: pa.Table) -> pa.Table:
        """Set "license" and fill "dropped"."""
        spdx = pa.nulls(len(table), pa.string())
        if "license" in table.column_names:
            spdx = per_value(table["license"], normalize_license)
        if self.detect and spdx.null_count:
            missing = pc.indices_nonzero(pc.is_null(spdx))
            heads = pc.utf8_slice_codeunits(table["text"].take(missing), 0, 4096)
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
        allowed = self._allowed()
        reasons = per_value(spdx, lambda license: None if permitted(license, allowed) else license)
        if not self.keep_unknown:
            reasons = pc.coalesce(
                reasons, pc.if_else(pc.is_null(spdx), "unknown", pa.scalar(None, pa.string()))
            )
        return self.drop(with_column(table, "license", spdx), reasons)

    def _allowed(self) -> frozenset[str]:
        allowed: set[str] = set()
        for name in self.allow:
            one = single_license(name)
            if name not in GROUPS and one is None:
                raise UserError(
                    f"license.allow: {name!r} is no licence known here; groups are {', '.join(GROUPS)}"
                )
            allowed |= GROUPS[name] if name in GROUPS else {str(one)}
        return frozenset(allowed)


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
    (
        r"permission to use, copy, modify, and (?:or )?distribute this software for any purpose with or without fee",
        "ISC",
    ),
    (r"this is free and unencumbered software released into the public domain", "Unlicense"),
    (r"boost software license,? version 1\.0", "BSL-1.0"),
    (
        r"this software is provided as is ?, without any express or implied warranty\. in no event",
        "Zlib",
    ),
)
