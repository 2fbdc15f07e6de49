"""The chain of blocks that clean each document: which there are, their order, and the user's own.

The order of `BLOCKS` is the order in which they run. A filter of our own is one file and one row
here: a name that is no section of `CorpusConfig` is switched on by that name,
``extra_blocks: [{class_path: NAME}]``.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import inspect
import json
import re
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import DOCUMENT_SCORES, Block, score_column, score_names, with_column
from lit_llm.errors import UserError

BLOCKS = {
    "opt_out": "lit_llm.corpus.filters.optout.OptOut",
    "normalize": "lit_llm.corpus.filters.normalize.Normalize",
    "language": "lit_llm.corpus.filters.language.IdentifyLanguage",
    "license": "lit_llm.corpus.filters.licensing.LicenseFilter",
    "gopher_repetition": "lit_llm.corpus.filters.quality.GopherRepetition",
    "c4": "lit_llm.corpus.filters.quality.C4Quality",
    "gopher_quality": "lit_llm.corpus.filters.quality.GopherQuality",
    "fineweb": "lit_llm.corpus.filters.quality.FineWebQuality",
    "privacy": "lit_llm.corpus.privacy.personal_data.RedactPII",
}
"""Name -> class, in the order in which they run: cheap and lawful ones first."""
FIRST = "read"
"""The place before all blocks."""

_KEYS = ("class_path", "init_args", "after")
_STAGES = ("read", "exact_dedup", "near_dedup", "decontaminate", "removed")  # names in the card
# What says which document a row is, and the row of `Clean`: no block may change them.
_IDENTITY = ("id", "source", "path", "offset", "row")
# Columns that a block may add where the steps that usually do are switched off.
_MAY_ADD = {"language": pa.string(), "language_score": pa.float32(), "license": pa.string()}


@dataclass(frozen=True, kw_only=True)
class ExtraBlock(Block):
    """A block that the settings name by its class, held to what `Block` promises.

    Only names and arguments travel to worker processes. Each process makes the block once, however
    many parts it cleans, so a block may load a model in ``__init__``.

    Attributes:
        class_path: of the block.
        init_args: its arguments, as JSON.
        after: the place in the chain.
        name: of the block.
        scores: of the block.
        version: digest of its source, its ``version`` and the files that it reads.
    """

    class_path: str
    init_args: str
    after: str
    name: str  # type: ignore[misc]
    scores: tuple[str, ...]  # type: ignore[misc]
    version: str  # type: ignore[misc]

    def apply(self, table: pa.Table) -> pa.Table:
        """The block's, checked.

        Raises:
            UserError: the block raised, or returned what is no table of the same documents.
        """
        if not len(table):
            return self._with_scores(table, table)
        try:
            done = _made(self.class_path, self.init_args)(table)
        except Exception as error:
            raise UserError(f"{self.called} raised {_said(error)}") from error
        if not isinstance(done, pa.Table):
            self._fail(f"returned {type(done).__name__}, not a pyarrow.Table")
        if len(done) != len(table):
            self._fail(
                f"returned {len(done)} rows of {len(table)}; to leave documents out, fill "
                '"dropped" (Block.drop) and keep the rows'
            )
        done = self._conform(table, done)
        for column in _IDENTITY:
            if column in table.column_names and not done[column].equals(table[column]):
                self._fail(f'changed "{column}", or the order of the rows')
        if done["text"].null_count:
            self._fail('returned nulls in "text"')
        reasons = pc.unique(done["dropped"]).drop_null().to_pylist()
        wrong = [why for why in reasons if not why.startswith(f"{self.name}: ")]
        if wrong:
            self._fail(
                f'filled "dropped" with {wrong[0]!r}; a reason is {self.name + ": why"!r}: use '
                "Block.drop"
            )
        return done

    def _conform(self, table: pa.Table, done: pa.Table) -> pa.Table:
        """``done`` in the columns and types of ``table``, and the scores."""
        expected = [*table.column_names, *map(score_column, self.scores), *_MAY_ADD]
        twice = {name for name in done.column_names if done.column_names.count(name) > 1}
        if twice:
            self._fail(f"returned the column {min(twice)!r} twice")
        if lost := [name for name in table.column_names if name not in done.column_names]:
            self._fail(f"returned no column {lost[0]!r}")
        if new := [name for name in done.column_names if name not in expected]:
            self._fail(
                f"added the column {new[0]!r}; what a block adds is a score: name it in its "
                "``scores`` and use Block.score"
            )
        columns = {}
        added = [pa.field(*one) for one in _MAY_ADD.items() if one[0] in done.column_names]
        for field in [*table.schema, *(new for new in added if new not in table.schema)]:
            given = done[field.name].type
            if not _is_kind_of(given, field.type):
                self._fail(f"returned the column {field.name!r} as {given}, not {field.type}")
            columns[field.name] = done[field.name].cast(field.type)
        return self._with_scores(pa.table(columns), done)

    def _with_scores(self, table: pa.Table, done: pa.Table) -> pa.Table:
        """``table`` with the scores in ``done``; what is no finite number is null."""
        for name in self.scores:
            column = score_column(name)
            if column not in done.column_names:
                if len(table):
                    self._fail(f"returned no score {name!r}: use Block.score")
                table = with_column(table, column, pa.nulls(0, pa.float32()))
                continue
            try:
                values = done[column].cast(pa.float64()).cast(pa.float32(), safe=False)
            except pa.ArrowException:
                self._fail(f"returned the score {name!r} as {done[column].type}, no numbers")
            finite = pc.fill_null(pc.is_finite(values), False)
            missing = pa.scalar(None, pa.float32())
            table = with_column(table, column, pc.if_else(finite, values, missing))
        return table

    @property
    def called(self) -> str:
        """How messages name it."""
        return f"extra_blocks: {self.class_path}"

    def _fail(self, what: str) -> None:
        raise UserError(f"{self.called} {what}")

    def described(self) -> dict[str, Any]:
        """What decides what it does, for the data card and the corpus' fingerprint."""
        arguments = json.loads(self.init_args)
        return {
            "name": self.name, "class_path": self.class_path, "init_args": arguments,
            "after": self.after, "version": self.version,
        }  # fmt: skip


def chain(own: dict[str, Block | None], extra: Sequence[dict[str, Any]]) -> tuple[Block, ...]:
    """The blocks of a build in the order in which they run.

    Args:
        own: name in `BLOCKS` -> the block; None, or absent, where it is switched off.
        extra: rows of ``extra_blocks``.

    Raises:
        UserError: names the row and what is wrong with it.
    """
    places: dict[str, list[Block]] = {FIRST: [], **{name: [] for name in BLOCKS}}
    for name, block in own.items():
        if block is not None:
            places[name].append(block)
    for number, row in enumerate(extra):
        block = _extra_block(row, f"extra_blocks[{number}]", list(places))
        taken = {*_STAGES, *(one.name for blocks in places.values() for one in blocks)}
        if row["class_path"] not in BLOCKS:
            taken |= places.keys()
        if block.name in taken:
            raise UserError(
                f"{block.called}: its name {block.name!r} is taken; give it another one"
            )
        # After what was put there before it, but at its own place first. A later row may name it.
        at = 0 if block.after == row["class_path"] else len(places[block.after])
        places[block.after].insert(at, block)
        if block.name not in places:
            places = _with_place(places, block)
        scores = score_names(one for blocks in places.values() for one in blocks)
        if twice := [name for name in scores if scores.count(name) > 1 or name in DOCUMENT_SCORES]:
            raise UserError(f"{block.called}: the score {twice[0]!r} is there already")
    return tuple(block for blocks in places.values() for block in blocks)


def _with_place(places: dict[str, list[Block]], block: ExtraBlock) -> dict[str, list[Block]]:
    """``places`` and one of the block's name, behind it."""
    found: dict[str, list[Block]] = {}
    for name, blocks in places.items():
        found[name] = blocks
        if name == block.after:
            found[block.name] = []
    return found


def _extra_block(row: Any, where: str, places: list[str]) -> ExtraBlock:
    if not isinstance(row, dict) or not isinstance(row.get("class_path"), str):
        raise UserError(
            f"{where}: must be a mapping with class_path, such as "
            "{class_path: mypackage.MyFilter, init_args: {...}, after: privacy}"
        )
    if unknown := [key for key in row if key not in _KEYS]:
        near = difflib.get_close_matches(str(unknown[0]), _KEYS, n=1)
        hint = f": did you mean {near[0]}?" if near else f"; it has {', '.join(_KEYS)}"
        raise UserError(f"unknown key {where}.{unknown[0]}{hint}")
    named = row["class_path"]
    path = str(BLOCKS.get(named, named))
    # A row of the table has its own place; others see the text as training does.
    after = row.get("after") or (named if named in BLOCKS else list(BLOCKS)[-1])
    if after not in places:
        near = difflib.get_close_matches(str(after), places, n=1)
        hint = f": did you mean {near[0]}?" if near else f"; places are {', '.join(places)}"
        raise UserError(f"{where}.after={after}: no such place{hint}")
    given = row.get("init_args") or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}.init_args={given}: must be a mapping of arguments")
    try:
        arguments = json.dumps(given, sort_keys=True)
    except TypeError as error:
        raise UserError(f"{where}.init_args: {error}; give numbers, texts and lists") from None
    block = _made(path, arguments)
    name, scores = getattr(block, "name", None), block.scores
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise UserError(
            f"extra_blocks: {path} has the name {name!r}; a block's name is a word, such as "
            '"my_filter"'
        )
    if isinstance(scores, str) or not all(re.fullmatch(r"\w+", str(score)) for score in scores):
        raise UserError(f"extra_blocks: {path}: its scores must be a tuple of words")
    return ExtraBlock(
        class_path=path, init_args=arguments, after=after, name=name, scores=tuple(scores),
        version=_version(block),
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _made(path: str, arguments: str) -> Block:
    """The block, one a process for the same arguments."""
    kind, given = _class_of(path), json.loads(arguments)
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_llm.settings.arguments import explain_mistake

    # The types of the class' own signature hold for what the file gives: lists become tuples.
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(kind, fail_untyped=False)
        parsed = parser.instantiate_classes(parser.parse_object(given))
        return kind(**vars(parsed))
    except ArgumentError as error:
        known = [action.dest for action in parser._actions if action.dest != "help"]
        said = explain_mistake(str(error), known)
        if said.startswith("unknown key") and "did you mean" not in said:
            said += f"; it takes {', '.join(known) or 'no arguments'}"
        raise UserError(f"extra_blocks: {path}: init_args: {said}") from None
    except UserError as error:
        raise UserError(f"extra_blocks: {path}: {error}") from None
    except Exception as error:
        raise UserError(f"extra_blocks: {path}: making it raised {_said(error)}") from error


def _is_kind_of(given: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column may have the type: ``string`` for ``large_string``, a double for a float."""
    for kind in (_is_text, pa.types.is_floating):
        if kind(given) and kind(expected):
            return True
    return given == expected or pa.types.is_null(given)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _class_of(path: str) -> type[Block]:
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(
            f"extra_blocks: {path}: no such block; give its import path (package.module.Name)"
            + (f" or one of {', '.join(BLOCKS)}")
        )
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        hint = "install it, or put its folder on PYTHONPATH"
        raise UserError(
            f"extra_blocks: {path}: no module {error.name!r} is found; {hint}"
        ) from None
    except Exception as error:
        raise UserError(
            f"extra_blocks: {path}: importing {module} raised {_said(error)}"
        ) from error
    if found is None:
        names = [key for key, value in vars(sys.modules[module]).items() if isinstance(value, type)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise UserError(f"extra_blocks: {path}: {module} has no class {name}{hint}")
    if not (isinstance(found, type) and issubclass(found, Block)):
        raise UserError(
            f"extra_blocks: {path} is no block; make it a subclass of lit_llm.corpus.block.Block"
        )
    return found


def _said(error: BaseException) -> str:
    """An exception on one line, with the place in the code that raised it."""
    text = " ".join(str(error).split())[:200]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not _is_library(frame.filename)]
    theirs = [frame for frame in theirs if Path(frame.filename).is_file()]  # no compiled code
    if not theirs:
        return said
    return f"{said} ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})"


def _is_library(file: str) -> bool:
    """Whether a file belongs to this package, the interpreter or what is installed in it."""
    libraries = (sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
    ours = str(Path(__file__).parents[1])
    return file.startswith(("<", ours, *libraries))


def _version(block: Block) -> str:
    """A digest of the source files of its classes, its ``version`` and the files that it reads."""
    read = hashlib.sha256(repr(block.version).encode())
    for kind in type(block).__mro__[:-1]:
        if kind.__module__.startswith("lit_llm."):
            continue  # `code_version` counts those
        try:
            file = inspect.getsourcefile(kind)
        except TypeError:
            file = None
        if file is not None and not _is_library(file):
            read.update(Path(file).read_bytes())
    for file in block.inputs():
        read.update(content(file).encode())
    return read.hexdigest()[:16]


def content(file: str) -> str:
    """SHA-256 (hex) of a file that settings name.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
