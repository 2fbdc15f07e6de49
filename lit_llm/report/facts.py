"""Tables of a report: corpus, versions and commands, formatted for readers."""

from __future__ import annotations

import re
from typing import Any

import yaml
from markupsafe import Markup

from lit_llm.io.numbers import number, with_unit
from lit_llm.report.reading import Run

# Keys that need a table or a chart. The corpus has a page of its own with these.
_ONLY_ON_CORPUS_PAGE = (
    "splits", "format", "funnel", "examples_kept", "examples_dropped", "hosts", "lengths",
    "language_scores", "bytes_per_token_histogram", "mixture", "dropped_bytes", "damaged",
    "split_languages", "diversity", "kind",
)  # fmt: skip
_AS_YAML = ("settings", "sources", "build")
# Pattern of key names that hold secrets, up to the end of the name.
_SECRET = r"((?:(?:api_?key|secret|password|(?:api|access|auth|hf)_?token)[\w-]*|\btoken)['\"]?"


def without_secrets(command: str) -> str:
    """Hide values in a command line that look like keys or passwords."""
    return re.sub(rf"(?i){_SECRET}[= ])('[^']*'|\"[^\"]*\"|\S+)", r"\1(hidden)", command)


def configuration(text: str) -> Markup:
    """config.yaml as HTML without secrets; keys and comments are marked for the style sheet."""
    hidden = re.sub(rf"(?im){_SECRET}:[ \t]+)(?!null$)\S.*$", r"\1(hidden)", text)
    escaped = str(Markup.escape(hidden))
    marked = re.sub(r"(?m)^(\s*(?:- )*)([\w./-]+)(?=:(?:\s|$))", r"\1<b>\2</b>", escaped)
    return Markup(re.sub(r"(?m)(^|\s)(#[^\n]*)$", r"\1<i>\2</i>", marked))


def split_table(card: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for each split and source, and a total per split: counts as text, share in percent."""
    splits = card.get("splits")
    rows = []
    for split, sources in splits.items() if isinstance(splits, dict) else ():
        parts = (
            {k: v for k, v in sources.items() if isinstance(v, dict)}
            if isinstance(sources, dict)
            else {}
        )
        total = {
            k: sum(_count(part, k) for part in parts.values())
            for k in ("documents", "bytes", "tokens")
        }
        for source, part in [*parts.items(), *([("all", total)] if len(parts) != 1 else [])]:
            size, tokens = _count(part, "bytes"), _count(part, "tokens")
            rows.append(
                {
                    "split": split,
                    "source": source,
                    "documents": f"{_count(part, 'documents'):,.0f}",
                    "bytes": with_unit(size, "B"),
                    "tokens": number(tokens),
                    "bytes_per_token": f"{size / tokens:.2f}" if tokens else "—",
                    "share": 100 * tokens / total["tokens"] if total["tokens"] else 0.0,
                    "total": part is total,
                }
            )
    return rows


def _count(part: dict[str, Any], key: str) -> float:
    value = part.get(key)
    return value if isinstance(value, int | float) else 0


def corpus_facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """Other facts of the data card, one per line."""
    return [
        (key.replace("_", " "), _shown(value) or "none")
        for key, value in card.items()
        if key not in (*_ONLY_ON_CORPUS_PAGE, *_AS_YAML)
    ]


def corpus_settings(card: dict[str, Any]) -> str:
    """Sources and settings of the corpus as YAML; "" if the card has none."""
    found = {key: card[key] for key in _AS_YAML if card.get(key)}
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=100) if found else ""


def _shown(value: Any) -> str:
    """Format a value in words: "yes" for True, items of a dict or list separated by commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, dict):
        # For a language or a licence with several counts, show the number of documents.
        return ", ".join(
            f"{str(key).replace('_', ' ')}: "
            + _shown(item.get("documents", item) if isinstance(item, dict) else item)
            for key, item in value.items()
            if item not in (None, {}, [])
        )
    return str(value)


def environment(run: Run) -> list[tuple[str, str]]:
    """Versions, machine, git commit and seed, one per line."""
    packages = run.info.get("environment")
    rows = dict(packages) if isinstance(packages, dict) else {}
    for key in ("device", "world_size", "precision", "started", "resumes"):
        rows[key] = run.info.get(key)
    rows["git commit"] = run.info.get("git")
    if seed := re.search(r"(?m)^seed_everything:[ \t]*(\S+)", run.config):
        rows["seed"] = seed[1]
    return [
        (key.replace("_", " "), _shown(value))
        for key, value in rows.items()
        if value not in (None, "")
    ]


def commands(run: Run) -> list[tuple[str, str]]:
    """(when, command) of a run's start and of each resume."""
    found = [("Started", str(run.info.get("command") or ""))]
    resumed = run.info.get("resumed")
    for row in resumed if isinstance(resumed, list) else ():
        if isinstance(row, dict):
            found.append(
                (f"Resumed after step {_shown(row.get('step'))}", str(row.get("command") or ""))
            )
    return [(when, without_secrets(command)) for when, command in found if command]
