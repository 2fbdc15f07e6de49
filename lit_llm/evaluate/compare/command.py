"""``lit_llm compare A B [...]``: which evaluation is better, by how much, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.evaluate.compare.comparison import compare
from lit_llm.evaluate.compare.contenders import named, recipes
from lit_llm.evaluate.compare.gates import judge
from lit_llm.evaluate.compare.page import page
from lit_llm.evaluate.compare.shown import gate_lines, plain, text
from lit_llm.evaluate.statistics.corrections import CORRECTIONS
from lit_llm.io.atomic import write_text
from lit_llm.io.streams import json_text, say
from lit_llm.settings.arguments import Parser
from lit_llm.settings.ranges import Number, Range, positive

RANGES: dict[str, Range] = {"margin": positive(1e6), "flips": Range(0, 1e6)}
"""Ranges of the command's numbers."""
FAILED = 1
"""Exit status if a gate failed."""


def compare_main(args: list[str]) -> None:
    """Parse ``args``, compare, and print the tables.

    Raises:
        UserError: a wrong argument, or evaluations that cannot be compared.
        SystemExit: with the status `FAILED`, if a gate failed.
    """
    settings = _parser().parse_args(args)
    if bool(settings.evaluations) == bool(settings.seeds):
        raise UserError(
            "name the evaluations, as in lit_llm compare A B, or the runs of recipes with "
            "--seeds 'a-*' 'b-*'" + ("; not both" if settings.seeds else "")
        )
    parent = settings.output.expanduser()
    contenders = (
        recipes(settings.seeds, parent) if settings.seeds else named(settings.evaluations, parent)
    )
    found = compare(
        contenders,
        tasks=settings.tasks,
        metrics=settings.metrics,
        margin=settings.margin,
        correction=settings.correction,
        force=settings.force,
        choose_best=settings.choose_best,
    )
    outcomes = [judge(gate, found.contenders, found.claims) for gate in settings.gate]
    if settings.json is not None:
        content = plain(found, settings.correction, outcomes)
        if settings.json == "-":
            print(json_text(content, indent=1))
        else:
            _write(settings.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if settings.html is not None:
        _write(settings.html, page(found, settings.correction, outcomes))
    if settings.json != "-":
        said = [text(found, settings.correction, settings.flips)]
        if outcomes:
            said.append("\n".join(gate_lines(outcomes)))
        if wrote := [str(file) for file in (settings.json, settings.html) if file is not None]:
            said.append(f"wrote {', '.join(wrote)}")
        say("\n\n".join(said))
    if not all(outcome.passed for outcome in outcomes):
        raise SystemExit(FAILED)


def _write(file: str, content: str) -> None:
    target = Path(file).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, content)


def _parser() -> Parser:
    parser = Parser(
        prog="lit_llm compare",
        description="Compare results of lit_llm evaluate. All are compared with the first one.",
    )
    add = parser.add_argument
    add(
        "evaluations",
        nargs="*",
        metavar="A B",
        help="folders of results, their names in --output, or run folders; one alone is shown",
    )
    add(
        "--seeds",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="instead: patterns, each of the runs of one recipe with different seeds",
    )
    add("--tasks", nargs="+", default=[], metavar="NAME", help="default: all that all have")
    add("--metrics", nargs="+", default=[], metavar="NAME", help="default: one of each task")
    add(
        "--margin",
        type=Number(float, RANGES["margin"]),
        default=0.01,
        metavar="X",
        help="smaller differences do not matter; relative for perplexities",
    )
    add(
        "--correction",
        choices=sorted(CORRECTIONS),
        default="holm",
        help="for the number of claims: holm, bh (Benjamini-Hochberg), none",
    )
    add(
        "--choose_best",
        action="store_true",
        help="choose the best of the others on half of the items, compare it on the other half",
    )
    add(
        "--gate",
        action="append",
        default=[],
        metavar="CONDITION",
        help="'TASK.METRIC >= 0.5', 'not worse than A by 0.01'; exit status 1 if it does not hold",
    )
    add(
        "--flips",
        type=Number(int, RANGES["flips"]),
        default=0,
        metavar="N",
        help="name N items that only A, and only B, has right",
    )
    add("--force", action="store_true", help="compare different tasks or templates all the same")
    add("--json", metavar="FILE", help="write all numbers; - prints them instead of the tables")
    add("--html", metavar="FILE", help="write a page")
    add(
        "--output",
        type=Path,
        default=Path("evaluations"),
        metavar="DIR",
        help="folder of all results",
    )
    return parser
