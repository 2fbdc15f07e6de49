"""The commands ``lit_llm corpus build | report | explain | remove``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.corpus.extra import corpus_extra
from lit_llm.errors import UserError, settings_called
from lit_llm.io.streams import json_text, say, unread
from lit_llm.settings.arguments import Parser, run_command

if TYPE_CHECKING:
    from lit_llm.corpus.output.folder import Corpus

_QUICKSTART_SEQ_LEN = 256
# Error messages of the sources use the names of settings in the library. These tables replace them:
# _TYPED by options of the command line, _IN_A_FILE by keys of the YAML file.
_TYPED = {
    "data.sources": "--input",
    "data.text_field=": "--text_field ",
    "exclude leaves": "--exclude leaves",
    "or leave out ": "or give --exclude ",
}
_IN_A_FILE = {
    "data.sources": "sources",
    "name the one with the text: data.text_field=": "write below its source's paths text_field: ",
    "or leave out ": "or exclude: ",
}

USAGE = """usage: lit_llm corpus COMMAND ...

  build    raw text -> cleaned, deduplicated, documented shards:
           lit_llm corpus build --input 'data/**/*.jsonl' --output corpus
                                [--config corpus/web] [--key value ...]
  report   write a corpus folder's datacard.html and README.md again
  explain  where a document came from, why it was dropped or where it is now
  remove   take documents out of a finished corpus

lit_llm corpus COMMAND --help lists its keys."""


def corpus_main(args: list[str]) -> None:
    """Run a command.

    Raises:
        UserError: no such command, or the user's mistake in it.
    """
    commands = {
        "build": build_main,
        "report": report_main,
        "explain": explain_main,
        "remove": remove_main,
    }
    with corpus_extra():
        run_command(commands, USAGE, args)


def build_main(args: list[str]) -> None:
    """Build a corpus; print its folder, and on standard error the next commands."""
    from lit_llm.corpus.build import build
    from lit_llm.corpus.commands.config_parser import parse_build

    typed = any(arg.partition("=")[0] == "--input" for arg in args)
    with settings_called(_TYPED if typed else _IN_A_FILE):
        corpus = build(*parse_build(args))
    # Standard output contains only the folder, for scripts.
    say(str(corpus.path))
    try:
        print(following(corpus), file=sys.stderr, flush=True)
    except BrokenPipeError:
        unread()


def following(corpus: Corpus) -> str:
    """The path of the card and the next commands after a build, ready to be copied."""
    folder = str(corpus.path)
    commands = [["tokenizer", "inspect", f"{folder}/tokenizer", "--corpus", folder]]
    # Training needs more text than one sequence, and measures nothing without a validation split.
    if corpus.validation_dirs and corpus.tokens("train") > _QUICKSTART_SEQ_LEN:
        commands.append(["fit", "--config", "pretrain/quickstart", "--data.corpus", folder])
    lines = ["  " + shlex.join(["lit_llm", *command]) for command in commands]
    return "\n".join([f"card: {folder}/datacard.html", "next:", *lines])


def report_main(args: list[str]) -> None:
    """Write the data card's page and README.md again."""
    parser = _parser("report", "Write a corpus folder's datacard.html and README.md again.")
    folder = parser.parse_args(args).corpus
    from lit_llm.corpus.card.page import write_page
    from lit_llm.corpus.card.readme import write_readme
    from lit_llm.corpus.output.folder import Corpus

    target, card = folder / "datacard.html", Corpus.load(folder).datacard
    write_page(card, target, folder.resolve().name)
    write_readme(card, folder / "README.md")
    say(str(target))


def explain_main(args: list[str]) -> None:
    """Print what is known about a document."""
    parser = _parser(
        "explain", "Where a document came from, what each step did with it, and where it is now."
    )
    parser.add_argument("id", help="id of the document, as in documents/ and dropped/")
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array instead of readable lines"
    )
    given = parser.parse_args(args)
    from lit_llm.corpus.commands.explain import explain, told

    rows = explain(given.corpus, given.id)
    print(json_text(rows, indent=2) if given.json else "\n\n".join(map(told, rows)))


def remove_main(args: list[str]) -> None:
    """Remove documents from a finished corpus."""
    parser = _parser(
        "remove",
        "Remove documents and their copies from text files and shards, and log their hashes.",
    )
    parser.add_argument("--ids", nargs="+", default=[], help="ids of documents")
    parser.add_argument("--ids_file", type=Path, help="file with one id per line")
    parser.add_argument(
        "--domain", help="host (with its subdomains), or the domain tag of a source"
    )
    parser.add_argument(
        "--matching", metavar="REGEX", help="pattern to find in the text (RE2 syntax)"
    )
    parser.add_argument(
        "--reason", default="by request", help="reason for the log; do not name a person here"
    )
    given = parser.parse_args(args)
    from lit_llm.corpus.commands.remove import Request, remove

    ids = set(given.ids)
    if given.ids_file is not None:
        try:
            ids |= set(given.ids_file.read_text(encoding="utf-8-sig").split("\n")) - {""}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--ids_file {given.ids_file}: cannot be read ({error})") from None
    request = Request(frozenset(ids), given.domain, given.matching)
    count = remove(given.corpus, request, given.reason, say)
    say(f"{given.corpus}: {count:,} documents removed")


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"lit_llm corpus {command}", description=description)
    parser.add_argument("corpus", type=Path, help="corpus folder")
    return parser
