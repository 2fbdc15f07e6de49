"""``write_report``: the page, put together from what a run folder holds."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from lit_llm.report.figures import figure_sections, x_axis
from lit_llm.report.finetuning import evaluations, example_table, retention
from lit_llm.report.headline import headline, last_write, lead, status, with_unit
from lit_llm.report.plots import number
from lit_llm.report.reading import Run, read_run

SAMPLE_STEPS, SAMPLES_A_STEP, SAMPLE_CHARACTERS = (
    12,
    8,
    3000,
)  # keep the page small enough to read and to send
_ON_THE_CARD_PAGE = (
    "splits", "format", "funnel", "examples_kept", "examples_dropped", "hosts", "lengths", "language_scores",
    "bytes_per_token_histogram", "mixture",
)  # fmt: skip
# The end of a key's name.
SECRET = r"((?:(?:api_?key|secret|password|(?:api|access|auth|hf)_?token)[\w-]*|\btoken)['\"]?"


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html``, one file that needs nothing else, and return its path.

    Works on a run that is still going or was killed: the page says what is missing. Values in the configuration and
    the command that look like passwords or keys are hidden. Raises UserError when ``run_dir`` is not a run folder.
    """
    run = read_run(Path(run_dir))
    here = Path(__file__).parent
    loader = jinja2.FileSystemLoader(here)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    script = (here / "script.js").read_text(encoding="utf-8")
    html = pages.get_template("page.html").render(
        **_contents(run),
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The browser runs this script and no other, whatever a sample or a metric's name holds.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    target = run.folder / "report.html"
    partial = target.with_suffix(".html.partial")
    partial.write_text(_printable(html), encoding="utf-8", errors="replace", newline="\n")
    os.replace(partial, target)
    return target


def _printable(html: str) -> str:
    """Control characters shown as symbols: a model writes them, and HTML forbids them."""
    return html.translate(
        {i: 0x2400 + i for i in range(32) if chr(i) not in "\t\n\f\r"} | {0x7F: 0x2421}
    )


def _contents(run: Run) -> dict[str, Any]:
    axis, x = x_axis(run)
    examples = example_table(run.datacard)
    groups, left_out = _sample_groups(run)
    config = re.sub(rf"(?im){SECRET}:[ \t]+)(?!null$)\S.*$", r"\1(hidden)", run.config)
    command = str(run.info.get("command") or "")
    return {
        "name": str(run.info.get("name") or run.folder.resolve().name),
        "status": status(run),
        "lead": lead(run),
        "headline": headline(run),
        "sections": figure_sections(run, axis, x) if axis else [],
        "axis_names": list(axis.ticks) if axis else [],
        "problems": run.problems,
        "samples": groups,
        "samples_left_out": left_out,
        "splits": [] if examples else _split_table(run.datacard),
        "examples": examples,
        "evaluations": evaluations(run.folder),
        "retention": retention(run.folder),
        "corpus": _corpus_facts(run.datacard),
        "config": _highlight(config),
        "environment": _environment(run),
        "command": re.sub(rf"(?i){SECRET}[= ])('[^']*'|\"[^\"]*\"|\S+)", r"\1(hidden)", command),
        "git": run.info.get("git"),
        "written": last_write(run),
    }


def _split_table(card: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each split and source, then one for the split: counts as text, and the share of the split's tokens."""
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


def _corpus_facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """The rest of the data card in a line each; what takes a table or a chart is on the corpus's own page."""
    facts = []
    for key, value in card.items():
        if key in _ON_THE_CARD_PAGE:
            continue
        if key == "dropped" and not value:
            value = "none"
        if isinstance(value, dict):
            value = ", ".join(
                f"{k.replace('_', ' ')}: {_shown(v)}" for k, v in value.items() if v is not None
            )
        elif isinstance(value, list):
            value = ", ".join(map(_shown, value))
        facts.append((key.replace("_", " "), _shown(value)))
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # a source, a language and its counts, a block and its settings
        value = next((value[key] for key in ("name", "source", "documents") if key in value), "on")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _environment(run: Run) -> list[tuple[str, str]]:
    packages = run.info.get("environment")
    rows = dict(packages) if isinstance(packages, dict) else {}
    for key in ("device", "world_size", "precision", "started", "resumes", "git"):
        rows[key] = run.info.get(key)
    return [
        (key.replace("_", " "), str(value))
        for key, value in rows.items()
        if value not in (None, "")
    ]


def _sample_groups(run: Run) -> tuple[list[dict[str, Any]], int]:
    """Samples by step, the first and the last step among those kept, and how many steps were left out."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    tokens: dict[int, str] = {}
    for sample in run.samples:
        prompt, text = str(sample.get("prompt") or ""), sample["text"]
        text = text.removeprefix(prompt)
        cut = len(text) > SAMPLE_CHARACTERS
        by_step.setdefault(sample["step"], []).append(
            {"prompt": prompt, "text": text[:SAMPLE_CHARACTERS], "cut": cut}
        )
        if isinstance(sample.get("tokens"), int | float):
            tokens[sample["step"]] = number(float(sample["tokens"]))
    steps = sorted(by_step)
    spread = np.linspace(0, max(len(steps) - 1, 0), SAMPLE_STEPS).round().astype(int)
    kept = [steps[i] for i in sorted({*spread.tolist()})] if steps else []
    groups = [
        {
            "step": f"{step:,}",
            "tokens": tokens.get(step),
            "samples": by_step[step][:SAMPLES_A_STEP],
            "more": max(0, len(by_step[step]) - SAMPLES_A_STEP),
            "open": step in (kept[0], kept[-1]),
        }
        for step in kept
    ]
    return groups, len(steps) - len(kept)


def _highlight(yaml: str) -> Markup:
    """Escaped YAML with its keys and comments marked for the style sheet."""
    text = str(Markup.escape(yaml))
    text = re.sub(r"(?m)^(\s*(?:- )*)([\w./-]+)(?=:(?:\s|$))", r"\1<b>\2</b>", text)
    return Markup(re.sub(r"(?m)(^|\s)(#[^\n]*)$", r"\1<i>\2</i>", text))
