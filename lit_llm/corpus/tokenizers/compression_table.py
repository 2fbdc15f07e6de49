"""Format the report of ``lit_llm tokenizer inspect`` as tables.

The first table has a line for each tokenizer. The others show bytes per token by language, domain
and source.
"""

from __future__ import annotations

import json
from typing import Any

from lit_llm.corpus.tokenizers.compression import GROUPS, UNKNOWN
from lit_llm.corpus.tokenizers.published import Published, figure_for, published

_ROWS = 20  # most rows of a table; --json prints all
_TOKENS, _CHARACTERS = 5, 24  # most of the longest tokens, and most characters of each
_NONE = "-"


def told(facts: dict[str, Any]) -> str:
    """Format the result of `commands.tokenizer.inspect` as readable text."""
    whole, tokenizers = facts["all"], facts["tokenizers"]
    figures = {
        name: published(known["published_as"])
        for name, known in tokenizers.items()
        if known["published_as"]
    }
    parts = [
        f"{facts['text']}: {whole['documents']:,} documents, {_megabytes(whole)} MB, "
        f"{whole['words']:,} words",
        _summary(facts, figures),
    ]
    for group in GROUPS:
        if set(facts[group]) - {UNKNOWN}:
            parts.append(_group(group, facts[group], list(tokenizers), figures))
    parts.append(
        "\n  ".join(
            [
                "longest tokens",
                *(f"{name}: {_longest(facts['vocabulary'][name])}" for name in tokenizers),
            ]
        )
    )
    if said := dict.fromkeys(line for rows in figures.values() for line in _sources(rows)):
        parts.append("\n  ".join(["published, a token, of other text than this", *said]))
    return "\n\n".join(parts)


def _summary(facts: dict[str, Any], figures: dict[str, tuple[Published, ...]]) -> str:
    """The table with a line for each tokenizer."""
    heads = [
        "tokenizer",
        "vocabulary",
        "bytes a token",
        "tokens a word",
        "pieces of characters",
        "unknown",
        "unused",
    ]
    beside = {
        name: figure for name, known in figures.items() if (figure := figure_for(known, "all", ""))
    }
    lines = []
    for name in facts["tokenizers"]:
        row, vocabulary = facts["all"]["tokenizers"][name], facts["vocabulary"][name]
        shares = (f"{100 * (row[key] or 0):.2f}%" for key in ("character_pieces", "unknown"))
        ratios = (_number(row[key]) for key in ("bytes_per_token", "tokens_per_word"))
        lines.append(
            [name, f"{vocabulary['tokens']:,}", *ratios, *shares, f"{vocabulary['unused']:,}"]
        )
        if beside:
            lines[-1].append(_figure(beside.get(name)))
    return _aligned([*heads, "published"] if beside else heads, lines)


def _group(
    group: str,
    rows: dict[str, Any],
    tokenizers: list[str],
    figures: dict[str, tuple[Published, ...]],
) -> str:
    """The table of bytes per token by ``group``.

    A tokenizer with a published figure for one of the rows has a column of published figures.
    """
    shown = list(rows)[:_ROWS]
    beside = {
        name: {row: figure for row in shown if (figure := figure_for(known, group, row))}
        for name, known in figures.items()
    }
    heads = [f"by {group}", "documents", "MB"]
    for name in tokenizers:
        heads += [name, "published"] if beside.get(name) else [name]
    lines = []
    for row in shown:
        line = [row, f"{rows[row]['documents']:,}", _megabytes(rows[row])]
        for name in tokenizers:
            line.append(_number(rows[row]["tokenizers"][name]["bytes_per_token"]))
            if beside.get(name):
                line.append(_figure(beside[name].get(row)))
        lines.append(line)
    more = len(rows) - len(shown)
    return _aligned(heads, lines) + (f"\n  and {more:,} more, in --json" if more else "")


def _figure(figure: Published | None) -> str:
    if figure is None:
        return _NONE
    return f"{figure.per_token:.2f}" + (" characters" if figure.unit == "characters" else "")


def _sources(rows: tuple[Published, ...]) -> list[str]:
    """One line for each source of published figures."""
    by_source: dict[str, list[str]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(f"{row.per_token:.2f} {row.unit} ({row.text})")
    return [
        f"{rows[0].tokenizer}: {', '.join(said)}; {source}" for source, said in by_source.items()
    ]


def _longest(vocabulary: dict[str, Any]) -> str:
    said = []
    for row in vocabulary["longest"][:_TOKENS]:
        text = row["text"] if len(row["text"]) <= _CHARACTERS else row["text"][:_CHARACTERS] + "..."
        said.append(
            f"{json.dumps(text, ensure_ascii=False)} {row['bytes']} bytes, used {row['uses']:,}"
        )
    return "; ".join(said)


def _megabytes(row: dict[str, Any]) -> str:
    size = row["bytes"] / 1e6
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _aligned(heads: list[str], lines: list[list[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [heads, *lines]
    )
