"""datacard.html: the data card for people, one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

_TABLES = (
    ("languages", "Languages"),
    ("domains", "Domains"),
    ("hosts", "Hosts"),
    ("licenses", "Licences"),
)
_HISTOGRAMS = (
    ("lengths", "Length of documents", "bytes, from"),
    ("language_scores", "Share of the text in its language", "from"),
    ("bytes_per_token_histogram", "Bytes a token", "from"),
)


def write_page(card: dict[str, Any], target: Path) -> None:
    """Write the page of ``card``, as datacard.json has it."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(bytes=_bytes, count=lambda value: f"{value:,}")
    html = pages.get_template("card.html").render(
        card=card,
        tables=[(title, _shares(card[name])) for name, title in _TABLES],
        histograms=[
            (
                title,
                unit,
                [
                    (_edge(edge), n, 100 * n / max(card[name].values()))
                    for edge, n in card[name].items()
                ],
            )
            for name, title, unit in _HISTOGRAMS
            if card[name]
        ],
        splits=[
            (split, source, part)
            for split, sources in card["splits"].items()
            for source, part in sources.items()
        ],
        settings=[(name, value) for name, value in card["settings"].items() if name != "sources"],
    )
    target.write_text(_printable(html), encoding="utf-8")


def _shares(counts: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int], float]]:
    """(name, counts, percent of tokens), a dozen of them; none if nothing is known."""
    total = sum(part["tokens"] for part in counts.values())
    if set(counts) <= {"unknown"} or not total:
        return []
    return [(name, part, 100 * part["tokens"] / total) for name, part in list(counts.items())[:12]]


def _edge(edge: str) -> str:
    value = float(edge)
    return _bytes(value) if value >= 1000 else f"{value:g}"


def _bytes(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {unit}B"
        value /= 1000
    return f"{value:,.3g} TB"


def _printable(html: str) -> str:
    """Control characters shown as symbols: texts have them, and HTML forbids them."""
    return html.translate(
        {i: 0x2400 + i for i in range(32) if chr(i) not in "\t\n\f\r"} | {0x7F: 0x2421}
    )
