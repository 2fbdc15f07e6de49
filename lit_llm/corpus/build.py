"""Build a corpus folder from sources with one call.

``lit_llm corpus build`` and the data module use this module.
"""

from __future__ import annotations

import dataclasses
import errno
import glob
import hashlib
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.corpus.extra import corpus_extra
from lit_llm.corpus.output.folder import FORMAT, Corpus
from lit_llm.corpus.reading.files import hidden, is_url
from lit_llm.corpus.reading.read import may_be_read_later
from lit_llm.corpus.reading.sources import Source, Sources, as_sources, files_of, list_files
from lit_llm.corpus.storage.transaction import finish, transaction
from lit_llm.errors import UserError, told_of_a_path
from lit_llm.io.locks import lock_folder
from lit_llm.models.tokenizer import Tokenizer

# pyarrow, numba and other packages are needed to build a corpus, not to read one.
if TYPE_CHECKING:
    from lit_llm.corpus.config import CorpusConfig

WORK = ".work"
_REASONS = 3  # most frequent reasons of dropped documents that a build prints at its end
_WHOLE = ("documents", "dropped", "tokenizer", "shards")


def fingerprint(sources: Sources, settings: dict[str, Any]) -> str:
    """Return the sha256 (hex) of the settings and each input file's name, size and mtime.

    If the fingerprints are equal, a corpus is reused without reading the text again.

    Args:
        sources: as for ``build_corpus``.
        settings: the other settings that decide the content of the corpus; a "tokenizer" counts by
            its content.
    """
    content = {**settings, "format": FORMAT}
    if settings.get("tokenizer") is not None:
        content["tokenizer"] = Tokenizer.from_pretrained(settings["tokenizer"]).fingerprint()
        content.pop("vocab_size", None)  # unused with a given tokenizer
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode())
    for file in list_files(sources):
        digest.update(json.dumps([file.source, file.id, file.size, file.version]).encode())
    return digest.hexdigest()


def cached_corpus(
    cache_dir: str | Path,
    *,
    sources: Sources,
    tokenizer: str | None = None,
    vocab_size: int = 4096,
    text_field: str = "text",
    max_line_bytes: int = Source.max_line_bytes,
    validation_fraction: float = 0.05,
    progress: bool = True,
) -> tuple[Corpus, bool]:
    """Return the corpus of these sources and settings, and whether it was already in ``cache_dir``.

    A missing corpus is built. Its folder is ``<cache_dir>/corpora/<first
    source>-<fingerprint[:12]>``. Raises the same errors as ``build_corpus``.
    """
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "text_field": text_field,
        "validation_fraction": validation_fraction,
    }
    # The default is left out, so that corpora from before this setting are still found.
    if max_line_bytes != Source.max_line_bytes:
        settings["max_line_bytes"] = max_line_bytes
    key = fingerprint(sources, settings)
    first = list_files(sources)[0].source[:100]  # a folder's name may have 255 bytes
    folder = Path(cache_dir).expanduser() / "corpora" / f"{first}-{key[:12]}"
    if (folder / "datacard.json").is_file():
        return Corpus.load(folder), True
    return build_corpus(folder, sources=sources, progress=progress, **settings), False


def build_corpus(
    output: str | Path,
    *,
    sources: Sources,
    tokenizer: str | None = None,
    vocab_size: int = 4096,
    text_field: str = "text",
    max_line_bytes: int = Source.max_line_bytes,
    validation_fraction: float = 0.05,
    progress: bool = True,
) -> Corpus:
    """Build a corpus of the texts as they are; of equal texts only the first is kept.

    A document goes to validation when sha256(id), as a fraction of its range, is below
    ``validation_fraction``. So it stays in its split when other documents are added or removed. If
    a split would be empty, one document moves to it; a single document gives its end to validation.
    Each document is encoded as [eos_id] + ids.

    Args:
        output: the folder to make; must not exist, be empty, or hold a corpus.
        sources: "stdlib", paths or globs; see ``list_files``.
        tokenizer: a tokenizer.json or its folder; None trains one with ``vocab_size`` tokens on the
            train split.
        text_field: the field with the text in JSONL and parquet rows.
        max_line_bytes: texts with a longer line, and longer rows of JSONL, are dropped.
        validation_fraction: 0 <= fraction < 1; 0 makes no validation split.
        progress: show a bar per stage on a terminal, a line per stage elsewhere (both on stderr).

    Raises:
        UserError: the sources have no usable text, the vocabulary is too large for the text, the
            folder is in use, or the disk is full.
    """
    with corpus_extra():
        from lit_llm.corpus.config import plain

    made = _without_output(as_sources(sources, text_field, max_line_bytes), Path(output))
    config = plain(made, tokenizer, vocab_size, validation_fraction)
    settings = {
        "tokenizer": tokenizer, "vocab_size": vocab_size, "text_field": text_field,
        "validation_fraction": validation_fraction,
    }  # fmt: skip
    if max_line_bytes != Source.max_line_bytes:
        settings["max_line_bytes"] = max_line_bytes
    return build(config, output, progress=progress, key=fingerprint(made, settings))


def build(
    config: CorpusConfig, output: str | Path, progress: bool = True, key: str | None = None
) -> Corpus:
    """Build the corpus of ``config`` into ``output``, unless the same corpus is already there.

    The same corpus has the same sources and settings. Files that an earlier build left in
    ``output/.work`` are reused if nothing that they depend on has changed. An existing corpus stays
    as it is until the new one replaces it, in one step.

    Args:
        config: sources, blocks, mixture, tokenizer, machine.
        output: the folder to make; must not exist, be empty, or hold a corpus.
        progress: show a bar per stage on a terminal, a line per stage elsewhere (both on stderr).
        key: fingerprint to write into the data card; None: the fingerprint of ``config``.

    Raises:
        UserError: the sources have no usable text, the vocabulary is too large for the text, the
            folder is in use, or the disk is full.
    """
    if key is None:
        settings = config.content()
        if files := config.read_files():  # named by the settings, and read anew when they change
            settings["files"] = files
        config = dataclasses.replace(config, sources=_without_output(config.sources, Path(output)))
        key = fingerprint(config.sources, settings)
    output = Path(output).expanduser().absolute()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with lock_folder(output):
            finish(output)
            if (output / "datacard.json").is_file():
                corpus = Corpus.load(output)
                again = any(map(may_be_read_later, corpus.datacard["dropped"]))
                if corpus.fingerprint == key and not again:
                    return corpus
            elif any(path.name != WORK for path in output.iterdir()):
                raise UserError(f"{output}: is not empty; name another folder")
            _build(config, output, progress, key)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(_disk_full(output, config)) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{output}: cannot be written ({told_of_a_path(error)})") from error
        raise
    return Corpus.load(output)


def _without_output(sources: list[Source], output: Path) -> list[Source]:
    """Leave out the files of ``output`` where it lies in a source's folder.

    The next build would read the corpus that this one writes.
    """
    whole = output.expanduser().absolute()
    own = [f"{glob.escape(path)}/*" for path in {str(whole), os.path.relpath(whole)}]
    return [
        dataclasses.replace(source, exclude=[*source.exclude, *sorted(own)])
        if any(not is_url(path) and _fixed(path) in whole.parents for path in source.paths)
        else source
        for source in sources
    ]


def _fixed(pattern: str) -> Path:
    """Return the folder that all files of a pattern are below."""
    parts = Path(pattern).expanduser().absolute().parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _build(config: CorpusConfig, output: Path, progress: bool, key: str) -> None:
    """Build the corpus in a locked folder without an equal corpus."""
    with corpus_extra():
        from lit_llm.corpus.card.data_card import make_card, write_card
        from lit_llm.corpus.card.words import told_missing
        from lit_llm.corpus.pipeline import Pipeline
        from lit_llm.corpus.progress import Progress
        from lit_llm.corpus.storage.removal_log import removed_hashes
        from lit_llm.corpus.storage.store import Store

    started = time.perf_counter()
    say = Progress(progress)
    store = Store(output / WORK)
    # Print what is ignored: excluded files, and hidden files and folders.
    for source in config.sources:
        if source.exclude and (left_out := files_of(source, excluded=True)):
            say.say(
                f"{source.name}: {len(left_out):,} files are left out by exclude, or because they "
                "lie in the output folder"
            )
        if unseen := sum(map(hidden, source.paths)):
            say.say(
                f"{source.name}: {unseen:,} hidden files and folders (their names begin with a "
                f"dot) are left out"
            )
    pipeline = Pipeline(config, store, removed_hashes(output), say)
    pipeline.run()
    sources = [dataclasses.asdict(source) for source in config.sources]
    card = make_card(pipeline, key, sources)
    seconds = time.perf_counter() - started
    card["build"] = {"seconds": round(seconds, 1), "tasks_run": dict(pipeline.ran)}
    with transaction(output, gone=_WHOLE) as folder:
        pipeline.lay_out(folder)
        write_card(card, folder, output.name)
    if config.keep_work:
        store.sweep()
    else:
        shutil.rmtree(output / WORK)
    others = sum(card["dropped"].values()) - card["duplicates"]
    say.say(
        f"{card['documents']:,} documents, {card['bytes'] / 1e6:.1f} MB, "
        f"{card['tokens']:,} tokens, {card['duplicates']:,} duplicates and "
        f"{others:,} others dropped, {seconds:.0f} s"
    )
    if missing := told_missing(card):
        say.say(missing)
    if reasons := _main_reasons(card):
        say.say(
            f"dropped most often: {reasons}; {output / 'dropped'} has all dropped documents with "
            f"their reasons, {output / 'datacard.html'} has examples"
        )


def _main_reasons(card: dict[str, Any]) -> str:
    """Return why most documents were dropped, duplicates aside.

    Example: "117 by gopher_repetition (dup_line_frac), ...".
    """
    counts = [
        (count, step["stage"], why)
        for step in card["funnel"]
        for why, count in step["reasons"].items()
        if why != "duplicate"
    ]
    most = sorted(counts, key=lambda row: (-row[0], *row[1:]))[:_REASONS]
    return ", ".join(f"{count:,} by {stage} ({why})" for count, stage, why in most)


def _disk_full(output: Path, config: CorpusConfig) -> str:
    """Return the message for a full disk.

    The estimate: a build keeps the text three times, compressed to about a half, and tokens of 2 or
    4 bytes per 2 to 5 bytes of text.
    """
    needed = 3 * sum(file.size for file in list_files(config.sources))
    free = shutil.disk_usage(output).free
    return (
        f"{output}: the disk is full; the corpus needs up to {needed / 1e6:,.1f} MB, "
        f"{free / 1e6:,.1f} MB are free; "
        "free some space and build again (what is done is kept), or name a folder on another disk"
    )
