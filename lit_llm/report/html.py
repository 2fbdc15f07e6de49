"""``write_report``: build the HTML page from a run folder."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from lit_llm.io.atomic import write_text
from lit_llm.pages.text import base_style, printable
from lit_llm.report.axis import x_axis
from lit_llm.report.facts import (
    commands,
    configuration,
    corpus_facts,
    corpus_settings,
    environment,
    split_table,
)
from lit_llm.report.figures import SMOOTHING, figure_sections, sources_table
from lit_llm.report.finetuning import evaluations, example_table
from lit_llm.report.forgetting import forgetting
from lit_llm.report.headline import headline, last_write, lead, status
from lit_llm.report.judgement import judgements
from lit_llm.report.marks import marks, told
from lit_llm.report.reading import Run, read_run
from lit_llm.report.samples import sample_groups

CSV_CHARACTERS = 1_000_000  # largest metrics.csv that a page embeds


def write_report(run_dir: Path, compare: Path | None = None) -> Path:
    """Write ``run_dir/report.html``, one self-contained file, and return its path.

    This works for running and killed runs too: the page says what is missing. Values in the
    configuration and the command that look like passwords or keys are hidden.

    Args:
        run_dir: run folder.
        compare: folder of an earlier run, or of the base model's run. Its curves are drawn dashed.

    Raises:
        UserError: ``run_dir`` or ``compare`` is not a run folder.
    """
    run = read_run(Path(run_dir))
    other = read_run(Path(compare)) if compare is not None else None
    here = Path(__file__).parent
    loader = jinja2.FileSystemLoader(here)
    pages = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    script = (here / "script.js").read_text(encoding="utf-8")
    html = pages.get_template("page.html").render(
        **_contents(run, other),
        style=Markup(base_style() + (here / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # The page's content security policy allows this script only, whatever samples or metric
        # names contain.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    target = run.folder / "report.html"
    write_text(target, printable(html))
    return target


def _contents(run: Run, other: Run | None) -> dict[str, Any]:
    axis, x = x_axis(run)
    examples = example_table(run.datacard)
    groups, left_out = sample_groups(run)
    sections = figure_sections(run, axis, x, other) if axis else []
    drawn = "".join(str(chart) for section in sections for chart in section["charts"])
    return {
        "name": run.name,
        "status": status(run),
        "lead": lead(run),
        "headline": headline(run),
        "judgements": judgements(run),
        "sections": sections,
        "axis_names": list(axis.ticks) if axis else [],
        "smoothing": [css for css in SMOOTHING if f'path class="line {css}"' in drawn],
        "marks": told(marks(run)),
        "sources": sources_table(run),
        "csv": _csv_link(run),
        "problems": run.problems,
        "samples": groups,
        "samples_left_out": left_out,
        "splits": [] if examples else split_table(run.datacard),
        "examples": examples,
        "evaluations": evaluations(run.folder),
        "forgetting": forgetting(run.folder),
        "corpus": corpus_facts(run.datacard),
        "corpus_settings": corpus_settings(run.datacard),
        "config": configuration(run.config),
        "environment": environment(run),
        "commands": commands(run),
        "git": run.info.get("git"),
        "written": last_write(run),
    }


def _csv_link(run: Run) -> str:
    """Link to metrics.csv: embedded as a data URL unless the file is large.

    With the data URL, the page is complete if it is sent alone.
    """
    try:
        text = (run.folder / "metrics.csv").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    if len(text) > CSV_CHARACTERS:
        return "metrics.csv"
    return "data:text/csv;charset=utf-8," + quote(text, safe=",:/()+")
