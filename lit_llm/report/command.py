"""``lit_llm report RUN``: write the report of a run folder again."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.report.html import write_report


def main(args: list[str]) -> None:
    """Parse ``args`` and write the report.

    Raises:
        UserError: the folder is no run folder.
    """
    parser = argparse.ArgumentParser(prog="lit_llm report", description="Write a run folder's report.html.")
    parser.add_argument("run", type=Path, help="run folder, e.g. runs/quickstart")
    run = parser.parse_args(args).run
    if not any((run / name).exists() for name in ("metrics.csv", "run.json", "config.yaml")):
        raise UserError(f"{run} is not a run folder: it holds neither metrics.csv nor run.json")
    print(write_report(run))
