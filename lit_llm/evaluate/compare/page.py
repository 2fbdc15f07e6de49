"""A comparison as one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_llm.evaluate.compare.comparison import Comparison
from lit_llm.evaluate.compare.gates import Outcome
from lit_llm.evaluate.compare.shown import CORRECTED, HEADER, gate_lines, row, scores
from lit_llm.pages.text import base_style, printable

_FLIPS = 20  # of a task and direction


def page(found: Comparison, correction: str, outcomes: Sequence[Outcome]) -> str:
    """The whole page: tables, the items that flipped, gates, notes."""
    import jinja2
    from markupsafe import Markup

    reference, *others = found.contenders
    parts: list[dict[str, Any]] = []
    if not others:
        header, *rows = scores(found)
        parts.append({"title": reference.name, "header": header, "rows": rows})
    for other in others:
        claims = [one for one in found.claims if one.other == other.name]
        parts.append({
            "title": f"A: {reference.name}, B: {other.name}",
            "header": HEADER,
            "rows": [row(one, found) for one in claims],
        })  # fmt: skip
        for (task, name), items in found.flips.items():
            if name == other.name:
                parts += _flip_parts(task, name, items)
    notes = list(found.notes)
    if found.claims:
        notes.append(CORRECTED[correction].format(n=len(found.claims)))
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = pages.get_template("page.html").render(
        title=" and ".join(one.name for one in found.contenders),
        style=Markup(base_style()),
        parts=parts,
        gates=gate_lines(outcomes),
        notes=notes,
    )
    return printable(html)


def _flip_parts(
    task: str, name: str, items: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return [
        {
            "title": f"{task}: {len(items[kind]):,} items that {who} alone has right",
            "header": ["item", "margin of A, nats", f"margin of {name}, nats"],
            "rows": [
                [one["id"], *("" if one[key] is None else f"{one[key]:+.2f}"
                              for key in ("before", "after"))]
                for one in items[kind][:_FLIPS]
            ],
        }
        for kind, who in (("won", name), ("lost", "A"))
        if items[kind]
    ]  # fmt: skip
