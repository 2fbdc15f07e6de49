"""Parse the command line and YAML files of ``lit_llm corpus build`` into a `CorpusConfig`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser

from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.reading.sources import Source, as_sources
from lit_llm.errors import UserError
from lit_llm.settings.arguments import explain_mistake
from lit_llm.settings.config_files import OPTIONS, naming_the_file, with_config_files
from lit_llm.settings.presets import OF_CORPORA
from lit_llm.settings.yaml_file import guard_jsonargparse

guard_jsonargparse()


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(explain_mistake(message, known_keys())) from None


def parse_build(args: list[str]) -> tuple[CorpusConfig, Path]:
    """(configuration, output folder) from arguments and their ``--config`` files.

    Raises:
        UserError: a mistake in the arguments or files, explained in one line.
    """
    parser = _Parser(
        prog="lit_llm corpus build",
        description="Raw text to cleaned, deduplicated, documented shards.",
        allow_abbrev=False,
    )
    parser.add_argument(
        *OPTIONS, action=ActionConfigFile, help="YAML file, or a preset's name (corpus/web)"
    )
    parser.add_argument(
        "--input",
        action="append",
        metavar="GLOB",
        help="file, folder, glob or URL; may be repeated",
    )
    parser.add_argument(
        "--text_field",
        metavar="NAME",
        help="for --input: the field of a row that holds the text; default text, else content, "
        "body, document",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        metavar="GLOB",
        help="for --input: files to leave out, by name or path; may be repeated",
    )
    parser.add_argument("--output", metavar="DIR", help="corpus folder to make")
    parser.add_class_arguments(CorpusConfig)
    args = with_config_files(args, OF_CORPORA)
    try:
        given = dict(vars(parser.instantiate(parser.parse_args(args))))
    except UserError as mistake:
        raise naming_the_file(mistake, args) from None
    # jsonargparse wraps the error that a block's constructor raised.
    except ValueError as error:
        raise UserError(explain_mistake(str(error), known_keys())) from None
    given.pop("config")
    patterns, output = given.pop("input"), given.pop("output")
    if not output:
        raise UserError("--output: missing; name the corpus folder to make")
    if given["tokenizer"] is not None and given["vocab_size"] is not None:
        raise UserError(
            "tokenizer and vocab_size: a given tokenizer already has a vocabulary; leave one of "
            "them out (--vocab_size null overrides a value from a file)"
        )
    text_field, exclude = given.pop("text_field"), given.pop("exclude")
    if patterns:
        made = as_sources(patterns, text_field or Source.text_field, exclude=exclude or ())
        given["sources"] = [*(given["sources"] or []), *made]
    elif text_field or exclude:
        raise UserError(
            f"{'--text_field' if text_field else '--exclude'} goes with --input; in a file it is a "
            "key of each of the sources"
        )
    if not given["sources"]:
        raise UserError(
            "--input: missing; name files, a folder or a glob, or give sources in --config"
        )
    return CorpusConfig(**given), Path(output)


def known_keys() -> list[str]:
    """All dotted keys, to suggest the nearest one for a mistyped key."""
    keys = ["input", "output", *(f"sources.{field.name}" for field in dataclasses.fields(Source))]
    defaults: Any = CorpusConfig(sources=[])
    for field in dataclasses.fields(CorpusConfig):
        keys.append(field.name)
        if dataclasses.is_dataclass(value := getattr(defaults, field.name)):
            keys += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(value)]
    return keys
