"""Sentences that explain the counts of a data card, for its page, its README.md and the build."""

from __future__ import annotations

from typing import Any

from lit_llm.corpus.filters.language import UNKNOWN
from lit_llm.corpus.filters.spdx import GROUPS, permitted

_UNTOLD = ("unknown", UNKNOWN, "other", "(others)")
# A language with at least this share of the training tokens should be in the validation split.
_NOTABLE = 0.01
# With fewer validation documents, single documents change the loss.
_FEW = 20
# Kinds of licences, the most restrictive last.
_VERDICTS = {
    "permissive": "under permissive licences, which ask for attribution at most",
    "copyleft": "under copyleft licences, which pass their terms on to what is made of them",
    "noderivatives": "under licences that forbid changed versions",
    "restricted": "under licences that exclude some uses or users",
    "noncommercial": "under licences for non-commercial use only",
    "other": "under licences that are none of the known kinds",
    "unknown": "without a known licence",
}


def known_languages(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Language -> tokens, for languages known by name; the most frequent language first."""
    found = {name: part["tokens"] for name, part in counts.items() if name not in _UNTOLD}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def summary(card: dict[str, Any]) -> str:
    """One sentence with the size of the corpus, its languages and its sources."""
    documents, tokens = f"{card['documents']:,}", f"{card['tokens']:,}"
    languages = list(known_languages(card["languages"]))
    where = [source["name"] for source in card["sources"] if isinstance(source, dict)]
    said = f"{documents} documents with {tokens} tokens"
    if languages:
        said += f" in {_some(languages, 'languages')}"
    if where:
        said += f", from {_some(where, 'sources')}"
    return f"{said}."


def license_shares(card: dict[str, Any]) -> dict[str, float]:
    """Kind of licence (`spdx.GROUPS`, "other", "unknown") -> share of the tokens, 0 to 1."""
    total = sum(part["tokens"] for part in card["licenses"].values())
    shares: dict[str, float] = {}
    for name, part in card["licenses"].items():
        kind = _kind(name)
        shares[kind] = shares.get(kind, 0.0) + part["tokens"] / (total or 1)
    return {kind: shares[kind] for kind in _VERDICTS if shares.get(kind)}


def _kind(license: str) -> str:
    """The least restrictive kind that permits an expression.

    For example, "MIT OR GPL-3.0-only" is permissive, because it may be used under MIT.
    """
    if license in _UNTOLD:
        return "unknown"
    allowed: frozenset[str] = frozenset()
    for kind, names in GROUPS.items():
        allowed |= names
        try:
            if permitted(license, allowed):
                return kind
        except ValueError:  # not a valid SPDX expression
            break
    return "other"


def license_verdict(card: dict[str, Any]) -> str:
    """Sentences about what the licences allow, with shares of the tokens."""
    shares = license_shares(card)
    if not shares:
        return "There is no text, so there is no licence."
    if set(shares) == {"unknown"}:
        return (
            "No licence is known for any of the text. Ask whoever owns it before you publish it, "
            "or a model trained on it; sources.license names the licence of a source."
        )
    parts = [
        f"{_percent(share)} of the tokens are {_VERDICTS[kind]}" for kind, share in shares.items()
    ]
    advice = "You may use and pass on all of it if you name its authors."
    if "unknown" in shares or "other" in shares:
        advice = "Look at the documents without a known licence before you publish them or a model."
    elif "noncommercial" in shares:
        advice = "A product that is sold should not use the non-commercial part."
    elif "copyleft" in shares or len(shares) > 1:
        advice = "Read these terms before you pass the text on."
    return (
        f"{'; '.join(parts)}. {advice} This is a count of what documents declare, no legal advice."
    )


def _percent(share: float) -> str:
    """A percentage that is "0%" or "100%" only if the share is exactly that."""
    if share >= 1:
        return "100%"
    return (
        f"{min(max(100 * share, 0.01), 99.99):.3g}%"
        if share < 0.995
        else f"{min(100 * share, 99.99):.4g}%"
    )


def remarks(card: dict[str, Any]) -> list[str]:
    """Warnings about the corpus that a reader should see first; empty if there are none."""
    said = [*_of_validation(card)]
    if damaged := (card.get("damaged") or {}).get("documents"):
        said.append(
            f"Damaged, and left out: {damaged:,} of {card['read']['documents']:,} documents read. "
            "The data card lists them."
        )
    dropped, read = sum(card["dropped"].values()), card["read"]["documents"]
    if read and dropped > read / 2:
        said.append(
            f"{dropped:,} of {read:,} documents read were left out, more than half. "
            "Look at the rules below and at the examples of what they left out."
        )
    return said


def _of_validation(card: dict[str, Any]) -> list[str]:
    """Warnings about the validation split."""
    held_out = card["splits"].get("validation", {})
    documents = sum(part["documents"] for part in held_out.values())
    if not documents:
        return [
            "There is no validation split, so a training run cannot tell whether it overfits; "
            "set validation_fraction."
        ]
    said = []
    if missing := told_missing(card):
        said.append(missing)
    if sources := sorted(set(card["splits"].get("train", {})) - set(held_out)):
        said.append(f"The validation split has no text from {_some(sources, 'sources')}.")
    if documents < _FEW:
        said.append(
            f"The validation split has {documents} document{'s' if documents > 1 else ''}: "
            "its loss says little about other text."
        )
    return said


def told_missing(card: dict[str, Any]) -> str | None:
    """A sentence about `missing_languages`; None if there are none."""
    missing = missing_languages(card)
    if not missing:
        return None
    share = _percent(sum(missing.values()))
    verb = "makes" if len(missing) == 1 else "make"
    return (
        f"The validation split has no text in {_some(list(missing), 'languages')}, which {verb} "
        f"{share} of the training tokens; raise validation_fraction to have some."
    )


def _some(names: list[str], what: str, most: int = 4) -> str:
    """A list of names in words, such as "a, b, c and 5 other languages"."""
    if len(names) <= most + 1:
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{', '.join(names[:most])} and {len(names) - most} other {what}"


def missing_languages(card: dict[str, Any]) -> dict[str, float]:
    """Language of the training split without validation text -> share of training tokens, 0 to 1.

    Only languages with at least `_NOTABLE` of the tokens are included. The result is empty for a
    card of an older version, which does not contain languages by split.
    """
    split = card.get("split_languages") or {}
    trained, held_out = split.get("train", {}), split.get("validation", {})
    total = sum(part["tokens"] for part in trained.values())
    if not held_out or not total:
        return {}
    shares = {name: n / total for name, n in known_languages(trained).items()}
    return {
        name: share for name, share in shares.items() if share >= _NOTABLE and name not in held_out
    }
