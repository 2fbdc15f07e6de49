"""Write the README.md of a corpus: the data card in the form of a Hugging Face dataset card.

The file contains no folders and no date of the build, so that equal corpora have equal files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lit_llm.corpus.card.loading import SCHEMA, load_lines
from lit_llm.corpus.card.page import SCORE_HEAD, name_of, score_rows, split_rows, tokens_of
from lit_llm.corpus.card.rules import STAGES, rules
from lit_llm.corpus.card.words import known_languages, license_verdict, remarks, summary
from lit_llm.corpus.filters.spdx import GROUPS
from lit_llm.io.numbers import in_bytes
from lit_llm.pages.text import printable

# The hub's size classes by number of rows (https://huggingface.co/docs/hub/datasets-cards).
_SIZES = (
    (1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
    (1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B"),
    (1e12, "100B<n<1T"),
)  # fmt: skip
# The hub writes SPDX identifiers in lower case, except for these.
_HUB_NAMES = {"LicenseRef-Public-Domain": "unlicense", "ODbL-1.0": "odbl", "ODC-By-1.0": "odc-by"}


def write_readme(card: dict[str, Any], target: Path) -> None:
    """Write README.md: front matter in YAML, then the card in Markdown."""
    front = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=True, width=100)
    target.write_text(
        printable(f"---\n{front}---\n{_body(card)}"),
        encoding="utf-8", errors="replace", newline="\n",
    )  # fmt: skip


def front_matter(card: dict[str, Any]) -> dict[str, Any]:
    """The metadata that the hub reads: name, languages, licence, size, task and data files."""
    found: dict[str, Any] = {"pretty_name": name_of(card)}
    # The hub does not distinguish "zh-Hant" and "zh".
    names = [name.partition("-")[0] for name in known_languages(card["languages"])]
    languages = list(dict.fromkeys(name for name in names if re.fullmatch("[a-z]{2,3}", name)))
    if languages:
        found["language"] = languages
    found["license"] = _hub_license(card)
    found["task_categories"] = ["text-generation"]
    size = next((name for most, name in _SIZES if card["documents"] < most), "n>1T")
    found["size_categories"] = [size]
    found["configs"] = [{"config_name": "default", "data_files": "documents/*.parquet"}]
    return found


def _hub_license(card: dict[str, Any]) -> str:
    """The hub's name of the licence that all documents share.

    "unknown" if no document has a licence, "other" in all other cases.
    """
    names = set(card["licenses"])
    if not names or names & {"unknown", "other", "(others)"}:
        return "unknown" if not names or names == {"unknown"} else "other"
    if len(names) > 1:
        return "other"
    (name,) = names
    known = any(name in group for group in GROUPS.values())
    return _HUB_NAMES.get(name, name.lower()) if known and " " not in name else "other"


def _body(card: dict[str, Any]) -> str:
    """The sections after the front matter, in Markdown."""
    name = name_of(card)
    parts = [f"# {_plain(name)}", _plain(summary(card))]
    if notes := remarks(card):
        parts.append("\n".join(f"- {_plain(note)}" for note in notes))
    parts += ["## Splits", _splits(card), "## Licence", _plain(license_verdict(card))]
    for key, title in (("languages", "Language"), ("licenses", "Licence"), ("domains", "Domain")):
        if set(card[key]) - {"unknown"}:
            parts.append(_shares(card[key], title))
    if scores := score_rows(card):
        rows = [[name, *cells] for name, cells in scores]
        parts += ["## Scores", _table(["Score", *SCORE_HEAD], rows)]
    parts += ["## What was left out", _funnel(card), "## Rules", _rules(card)]
    parts += [
        "## Columns",
        _table(["Column", "Type", "Meaning"], [[f"`{a}`", b, c] for a, b, c in SCHEMA]),
        "## Load it",
    ]  # fmt: skip
    for title, lines in load_lines(name):
        parts += [f"{title}:", f"```\n{lines}\n```"]
    parts.append(f"Made by lit_llm; fingerprint `{card['fingerprint']}`.")
    return "\n\n".join(["", *parts]) + "\n"


def _splits(card: dict[str, Any]) -> str:
    return _table(
        ["Split", "Source", "Documents", "Text", "Tokens", "Languages"],
        [
            [row["split"], row["source"], f"{row['documents']:,}", in_bytes(row["bytes"]),
             f"{row['tokens']:,}", row["languages"]]
            for row in split_rows(card)
        ],
    )  # fmt: skip


def _shares(counts: dict[str, dict[str, int]], title: str) -> str:
    total = sum(part["tokens"] for part in counts.values()) or 1
    rows = [
        [name, f"{part['documents']:,}", f"{100 * part['tokens'] / total:.3g}%"]
        for name, part in list(counts.items())[:20]
    ]
    return _table([title, "Documents", "Share of tokens"], rows)


def _funnel(card: dict[str, Any]) -> str:
    sizes = card.get("dropped_bytes")
    rows = [["Read", f"{card['read']['documents']:,}", tokens_of(card, card["read"]["bytes"])]]
    for row in card["funnel"]:
        if row["dropped"]:
            names = [f"{row['stage']}: {why}" for why in row["reasons"]]
            size = None if sizes is None else sum(sizes.get(name, 0) for name in names)
            title = STAGES.get(row["stage"], row["stage"])
            rows.append([title, f"-{row['dropped']:,}", tokens_of(card, size)])
    rows.append(["Kept", f"{card['documents']:,}", f"{card['tokens']:,}"])
    return _table(["Step", "Documents", "Tokens, about"], rows)


def _rules(card: dict[str, Any]) -> str:
    return _table(
        ["A document is left out when", "Setting", "Documents"],
        [
            [f"{rule.sentence} {rule.which}".strip(), rule.setting, f"{rule.documents:,}"]
            for rule in rules(card)
        ],
    )  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Escape text for Markdown, on one line. Code spans that this module makes are kept."""
    if re.fullmatch("`[a-z0-9_]+`", text):
        return text
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))
