"""Write datacard.html: the data card as a single self-contained HTML file."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from lit_llm.corpus.card.loading import SCHEMA, load_lines
from lit_llm.corpus.card.rules import STAGES, rules
from lit_llm.corpus.card.words import known_languages, license_verdict, remarks, summary
from lit_llm.io.atomic import write_text
from lit_llm.io.numbers import in_bytes
from lit_llm.pages.text import base_style, printable

_ROWS = 12  # names in a table of shares
_TABLES = {"languages": "Language", "domains": "Domain", "hosts": "Host", "licenses": "Licence"}
_HISTOGRAMS = (
    ("lengths", "Length of documents", "Between"),
    ("language_scores", "Share of a text in its language", "Between"),
    ("bytes_per_token_histogram", "Bytes a token, by document", "Between"),
)


def write_page(card: dict[str, Any], target: Path, name: str) -> None:
    """Write the page of ``card``, the content of datacard.json, with the title ``name``.

    Sections whose data an older card does not have are left out.
    """
    here = Path(__file__).parent
    loader = jinja2.FileSystemLoader(here)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters.update(bytes=in_bytes, count=lambda value: f"{value:,}", ratio=_ratio)
    style = base_style() + (here / "card.css").read_text(encoding="utf-8")
    html = pages.get_template("card.html").render(
        **_contents(card), name=name, load=load_lines(name), style=Markup(style)
    )
    write_text(target, printable(html))


def name_of(card: dict[str, Any]) -> str:
    """A name for the corpus if its folder is not known: the names of its sources."""
    sources = [source["name"] for source in card["sources"] if isinstance(source, dict)]
    return ", ".join(sources[:3]) or "Corpus"


def tokens_of(card: dict[str, Any], size: int | None) -> str:
    """The approximate number of tokens in ``size`` bytes of dropped text, formatted."""
    if size is None or not card["bytes_per_token"]:
        return "—"
    return f"{size / card['bytes_per_token']:,.0f}"


SCORE_HEAD = ("Documents", "Without", "Lowest", "5%", "25%", "Median", "75%", "95%", "Highest")


def score_rows(card: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Name and, by `SCORE_HEAD`, figures of each score that blocks of the build gave."""
    rows = []
    for name, score in (card.get("scores") or {}).items():
        cells = [f"{score['documents']:,}", f"{score['missing']:,}"]
        values = {"lowest": None, "highest": None, **score, **score.get("quantiles", {})}
        for key in ("lowest", "0.05", "0.25", "0.5", "0.75", "0.95", "highest"):
            value = values.get(key)
            cells.append("—" if value is None else f"{value:.4g}")
        rows.append((name, cells))
    return rows


def split_rows(card: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per split and source, and a sum for each split of several sources.

    The last row of a split names its languages.
    """
    rows = []
    for split, sources in card["splits"].items():
        languages = _languages((card.get("split_languages") or {}).get(split))
        total = {
            key: sum(part[key] for part in sources.values())
            for key in ("documents", "bytes", "tokens")
        }
        parts = [*sources.items(), *([("all", total)] if len(sources) > 1 else [])]
        for source, part in parts:
            last = part is parts[-1][1]
            rows.append(
                {
                    **part, "split": split, "source": source, "bytes_a_token": _ratio(part),
                    "languages": languages if last else "", "total": part is total,
                }
            )  # fmt: skip
    return rows


def _languages(counts: dict[str, dict[str, int]] | None) -> str:
    """Shares of a split's tokens by language, the largest first."""
    known = known_languages(counts or {})
    if not known:
        return "not known"
    total = sum(part["tokens"] for part in (counts or {}).values())
    shown = [f"{name} {100 * n / total:.3g}%" for name, n in list(known.items())[:6]]
    more = len(known) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _contents(card: dict[str, Any]) -> dict[str, Any]:
    """The variables of the template card.html."""
    damaged = card.get("damaged") or {"documents": 0, "named": []}
    listed = [{**vars(rule), "tokens": tokens_of(card, rule.bytes)} for rule in rules(card)]
    by_stage = {stage: list(own) for stage, own in groupby(listed, key=lambda rule: rule["stage"])}
    sizes = card.get("dropped_bytes")
    settings = {name: value for name, value in card["settings"].items() if name != "sources"}
    return {
        "card": card,
        "created": str(card["created"]).replace("T", " ").removesuffix("+00:00") + " UTC",
        "summary": summary(card),
        "remarks": remarks(card),
        "headline": _headline(card),
        "splits": split_rows(card),
        "mixture": card["mixture"] if len(card["mixture"]) > 1 else [],
        "license_verdict": license_verdict(card),
        "tables": [
            (title, rows[:_ROWS], len(rows) - _ROWS if len(rows) > _ROWS else 0)
            for name, title in _TABLES.items()
            if (rows := _shares(card[name]))
        ],
        "histograms": [
            (title, label, _histogram(name, card[name]))
            for name, title, label in _HISTOGRAMS
            if card[name]
        ],
        "scores": score_rows(card),
        "score_head": SCORE_HEAD,
        "diversity": _diversity(card["diversity"]),
        "read_tokens": tokens_of(card, card["read"]["bytes"]),
        "funnel": [
            {
                "title": STAGES.get(row["stage"], row["stage"]), "dropped": row["dropped"],
                "tokens": _less(tokens_of(card, None if sizes is None else sum(
                    sizes.get(f"{row['stage']}: {why}", 0) for why in row["reasons"]))),
            }
            for row in card["funnel"]
        ],
        "changed": _listed(card["changed_by"]),
        "pii": _listed(card["pii"]),
        "damaged": damaged["named"],
        "damaged_more": damaged["documents"] - len(damaged["named"]),
        "rules": [
            (row["stage"], STAGES.get(row["stage"], row["stage"]), by_stage.get(row["stage"], []))
            for row in card["funnel"]
            if row["stage"] != "read" or by_stage.get("read")
        ],
        "schema": SCHEMA,
        "examples_dropped": [
            (_reason(reason), shown) for reason, shown in card["examples_dropped"].items()
        ],
        "settings": _yaml(settings),
        "sources": _yaml(card["sources"]),
    }  # fmt: skip


def _headline(card: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(label, value, unit, small print) of the numbers at the top."""
    tokenizer = "trained on this text" if card["tokenizer"]["trained"] else "given"
    read = card["read"]
    share = 100 * card["documents"] / read["documents"] if read["documents"] else 0
    return [
        ("Tokens", f"{card['tokens']:,}", "", f"{card['bytes_per_token']:.2f} bytes a token"),
        ("Documents", f"{card['documents']:,}", "", f"{share:.3g}% of {read['documents']:,} read"),
        ("Text", in_bytes(card["bytes"]), "", f"of {in_bytes(read['bytes'])} read"),
        ("Vocabulary", f"{card['tokenizer']['vocab_size']:,}", "tokens", tokenizer),
    ]


def _diversity(values: dict[str, float]) -> list[tuple[str, str]]:
    """Rows about diversity. An entropy is shown as the number of equally frequent items with it."""
    rows = [("Distinct runs of 3 words", f"{100 * values['distinct_3_grams']:.3g}%")]
    for name, value in values.items():
        kind, is_entropy, _ = name.partition("_entropy_bits")
        if is_entropy and value:
            kind = kind.replace("licenses", "licences").capitalize()
            rows.append((kind, f"as diverse as {2**value:.3g} of equal size"))
    return rows


def _reason(reason: str) -> str:
    """A reason such as "near_dedup: duplicate" as a heading."""
    stage, _, why = reason.partition(": ")
    return f"{STAGES.get(stage, stage)}: {why.replace('_', ' ')}"


def _shares(counts: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int], float]]:
    """(name, counts, percent of tokens); none if nothing is known."""
    total = sum(part["tokens"] for part in counts.values())
    if set(counts) <= {"unknown"} or not total:
        return []
    return [(name, part, 100 * part["tokens"] / total) for name, part in counts.items()]


def _histogram(name: str, counts: dict[str, int]) -> list[tuple[str, int, float]]:
    """(edges of a bar, its documents, their share of the highest bar in percent)."""
    most = max(counts.values())
    return [(_edges(name, float(edge)), n, 100 * n / most) for edge, n in counts.items()]


def _edges(name: str, low: float) -> str:
    if name == "lengths":
        return f"{in_bytes(low)} to {in_bytes(2 * low)}"
    if name == "language_scores":
        return f"{100 * low:.0f} to {100 * low + 10:.0f}%"
    return f"{low:g} to {low + 0.5:g}"


def _ratio(part: dict[str, int]) -> str:
    return f"{part['bytes'] / part['tokens']:.2f}" if part["tokens"] else "—"


def _less(tokens: str) -> str:
    """A number of tokens with a minus sign, unless it is zero or not known."""
    return tokens if tokens in ("—", "0") else f"\u2212{tokens}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items()) or "none"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
