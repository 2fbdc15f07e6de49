"""The commands ``lit_llm tokenizer train | inspect``."""

from __future__ import annotations

import argparse
import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.corpus.extra import corpus_extra
from lit_llm.errors import UserError, check_no_link_to_nothing, settings_called
from lit_llm.io.streams import json_text, say
from lit_llm.settings.arguments import Parser, run_command
from lit_llm.settings.ranges import VOCAB_SIZE, Number, Range, positive

if TYPE_CHECKING:
    from lit_llm.corpus.tokenizers.sample import Sample

USAGE = """usage: lit_llm tokenizer COMMAND ...

  train    byte-level BPE on a sample of a corpus' mixture, or of files:
           lit_llm tokenizer train --corpus corpora/mine --vocab_size 32768 --output tokenizers/mine
  inspect  how well a tokenizer compresses text, by language, domain and source, beside others:
           lit_llm tokenizer inspect tokenizers/mine --corpus corpora/mine
                                     --against gpt2/tokenizer.json

lit_llm tokenizer COMMAND --help lists its keys."""
_MEGABYTE = 1_000_000
RANGES: dict[str, Range] = {"vocab_size": VOCAB_SIZE, "sample_mb": positive(1e6)}
"""Ranges of the commands' numbers."""
# Names of settings in error messages of the sources -> options of these commands.
_CALLED = {"data.sources": "--files", "data.text_field=": "--text_field "}


def tokenizer_main(args: list[str]) -> None:
    """Run a command.

    Raises:
        UserError: no such command, or the user's mistake in it.
    """
    with corpus_extra(), settings_called(_CALLED):
        run_command({"train": train_main, "inspect": inspect_main}, USAGE, args)


def train_main(args: list[str]) -> None:
    """Train a tokenizer, write its folder and print the folder's name."""
    parser = Parser(
        prog="lit_llm tokenizer train",
        description="Train a byte-level BPE, as a Hugging Face tokenizer folder. The same text "
        "and settings give the same bytes; those of a corpus' build give its own tokenizer.",
    )  # fmt: skip
    _add_text(
        parser,
        "the sample keeps the shares that sources have in its mixture, and leaves validation out",
    )
    parser.add_argument(
        "--vocab_size", type=Number(int, RANGES["vocab_size"]), metavar="N",
        help="number of ids, including bytes and control tokens; default: 32768, or fewer if the "
        "text does not support so many",
    )  # fmt: skip
    parser.add_argument(
        "--sample_mb",
        type=Number(float, RANGES["sample_mb"]),
        default=200,
        metavar="N",
        help="megabytes of text to train on (200)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("tokenizer"), metavar="DIR", help="default: tokenizer"
    )
    given = parser.parse_args(args)
    output = given.output.expanduser().absolute()
    check_no_link_to_nothing(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is not empty; name another folder")
    total = _sample_bytes(given)
    from lit_llm.corpus.output.folder import Corpus
    from lit_llm.corpus.progress import Progress
    from lit_llm.corpus.tokenizers.sample import (
        VOCAB_SIZE,
        fewer_tokens,
        file_sample,
        training_sample,
    )
    from lit_llm.io.atomic import published
    from lit_llm.models.tokenizer import Tokenizer

    sample = (
        file_sample(given.files, total, given.text_field)
        if given.files
        else training_sample(Corpus.load(given.corpus), total)
    )
    size = given.vocab_size
    tokenizer = Tokenizer.train(
        _texts(sample), VOCAB_SIZE if size is None else size, or_fewer=size is None
    )
    if size is None and (said := fewer_tokens(tokenizer.vocab_size)):
        Progress(True, "tokenizer").say(said)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with published(output) as partial:
            tokenizer.save_pretrained(partial)
    except OSError as error:
        if error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise UserError(f"--output {output}: cannot be written ({error.strerror})") from error
        raise
    say(str(output))


def inspect_main(args: list[str]) -> None:
    """Print how tokenizers compress text."""
    parser = Parser(
        prog="lit_llm tokenizer inspect",
        description="How well a tokenizer compresses text, by language, domain and source, beside "
        "other tokenizers, and beside published figures of GPT-2's and Llama 3's tokenizers.",
    )  # fmt: skip
    parser.add_argument(
        "tokenizer", metavar="TOKENIZER", help="folder, tokenizer.json or .gguf file"
    )
    _add_text(parser, "see --split")
    parser.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        metavar="TOKENIZER",
        help="others to compare with",
    )
    parser.add_argument(
        "--split", choices=["train", "validation"],
        help="split of the corpus; default: validation if it has one, because no tokenizer was "
        "trained on it",
    )  # fmt: skip
    parser.add_argument(
        "--sample_mb",
        type=Number(float, RANGES["sample_mb"]),
        default=20,
        metavar="N",
        help="megabytes of text to measure on (20)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(args)
    total = _sample_bytes(given)
    from lit_llm.corpus.output.folder import Corpus
    from lit_llm.corpus.tokenizers.compression_table import told
    from lit_llm.corpus.tokenizers.sample import file_sample, split_sample

    if given.files:
        if given.split:
            raise UserError("--split goes with --corpus; files have none")
        sample = file_sample(given.files, total, given.text_field)
    else:
        corpus = Corpus.load(given.corpus)
        split = given.split or ("validation" if corpus.validation_dirs else "train")
        sample = split_sample(corpus, split, total)
    facts = inspect([given.tokenizer, *given.against], sample)
    print(json_text(facts, indent=2) if given.json else told(facts))


def inspect(paths: list[str], sample: Sample) -> dict[str, Any]:
    """Measure how the tokenizers of ``paths`` compress a sample.

    Returns:
        Plain values with the keys of ``--json``. "text": the name of the sample. "tokenizers": name
        -> path, published_as (the name under which figures are published, or None) and published
        (those figures). Further keys are those of `Compression.report`.

    Raises:
        UserError: a tokenizer cannot be loaded, or the sample is so small that it has no document.
    """
    from lit_llm.corpus.tokenizers.compression import Compression
    from lit_llm.corpus.tokenizers.published import published, recognised
    from lit_llm.corpus.tokenizers.sample import with_language
    from lit_llm.models.tokenizer import Tokenizer

    names = _names(paths)
    tokenizers = {name: Tokenizer.from_pretrained(path) for name, path in names.items()}
    compression = Compression(tokenizers)
    empty = True
    for table in _shown(sample, "measuring"):
        compression.add(with_language(table))
        empty = False
    if empty:
        raise UserError(
            f"--sample_mb: the sample of {sample.name} is too small to contain a document; raise it"
        )
    known = {name: recognised(tokenizer) for name, tokenizer in tokenizers.items()}
    about = {
        name: {
            "path": path, "published_as": known[name],
            "published": [dataclasses.asdict(row) for row in published(known[name] or "")],
        }
        for name, path in names.items()
    }  # fmt: skip
    return {"text": sample.name, "tokenizers": about, **compression.report()}


def _add_text(parser: Parser, of_corpus: str) -> None:
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help=f"built corpus folder; {of_corpus}"
    )
    parser.add_argument(
        "--files", nargs="+", action="extend", default=[], metavar="GLOB",
        help="or files, without cleaning: text, HTML, JSONL, parquet, WARC; paths, folders, globs "
        "or URLs",
    )  # fmt: skip
    parser.add_argument(
        "--text_field",
        default="text",
        metavar="NAME",
        help="for --files: the field of a row that holds the text; default text, else content, "
        "body, document",
    )


def _sample_bytes(given: argparse.Namespace) -> int:
    """Bytes of the sample, after a check of the options that choose the text."""
    if given.corpus is None and not given.files:
        raise UserError("--corpus: missing; name a corpus folder, or files by --files")
    if given.corpus is not None and given.files:
        raise UserError("--corpus and --files: name one of them")
    if given.text_field != "text" and not given.files:
        raise UserError("--text_field goes with --files; a corpus has its text already")
    return round(given.sample_mb * _MEGABYTE)


def _texts(sample: Sample) -> Iterator[str]:
    for table in _shown(sample, "training"):
        yield from table["text"].to_pylist()


def _shown(sample: Sample, stage: str) -> Iterator[Any]:
    """The sample's tables, with a progress bar."""
    from lit_llm.corpus.progress import Progress

    with Progress(True, "tokenizer").stage(stage, sample.bytes) as advance:
        for table in sample.tables():
            yield table
            advance(sum(table["bytes"].to_pylist()))


def _names(paths: list[str]) -> dict[str, str]:
    """Name of each tokenizer -> path. A name is that of the folder or file, numbered if taken."""
    names: dict[str, str] = {}
    for given in paths:
        path = Path(given)
        name = stem = (
            path.absolute().parent if path.name == "tokenizer.json" else path
        ).name.removesuffix(".json")
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names[name] = given
    return names
