"""``lit_llm report RUN``: rewrite the report of a run folder."""

from __future__ import annotations

from pathlib import Path

from lit_llm.io.streams import say
from lit_llm.report.html import write_report
from lit_llm.settings.arguments import Parser


def main(args: list[str]) -> None:
    """Parse ``args`` and write the report.

    Raises:
        UserError: a folder is not a run folder.
    """
    parser = Parser(prog="lit_llm report", description="Write a run folder's report.html.")
    parser.add_argument("run", type=Path, help="run folder, e.g. runs/pretrain-quickstart")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RUN",
        help="an earlier run, or the base's: its curves are drawn dashed",
    )
    given = parser.parse_args(args)
    say(str(write_report(given.run, given.compare)))
