"""Pipeline of a build, from sources to a corpus folder.

It knows the stages, the inputs that each stage's output depends on, and runs the stages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import score_names
from lit_llm.corpus.chain import content
from lit_llm.corpus.config import CorpusConfig
from lit_llm.corpus.engine import Engine, Task
from lit_llm.corpus.output.encode import (
    Encode,
    Split,
    WriteDocuments,
    WriteDropped,
    kept_documents,
    load_tokenizer,
    read_encoded,
)
from lit_llm.corpus.output.mixture import shares
from lit_llm.corpus.output.shards import ShardWriter, token_dtype
from lit_llm.corpus.progress import Progress
from lit_llm.corpus.reading.parts import Part, list_parts
from lit_llm.corpus.reading.read import is_broken, may_be_read_later
from lit_llm.corpus.steps import Clean, Select, Sign, merged
from lit_llm.corpus.storage.store import (
    Store,
    check,
    digest,
    read_arrow,
    read_counts,
    read_table,
    read_tables,
    write_tables,
)
from lit_llm.corpus.tokenizers.sample import TRAINING_BYTES, VOCAB_SIZE, fewer_tokens, rates, take
from lit_llm.errors import UserError
from lit_llm.io.atomic import published
from lit_llm.models.tokenizer import Tokenizer

_PARTS_A_WORKER, _LEAST_PART_BYTES = 4, 1 << 20
_FEW_BYTES = 50_000_000  # threads clean less input than this before Daft's processes have started
_NAMED = 3  # damaged documents that one line names
_VERDICTS = pa.schema({"row": pa.int64(), "duplicate_of": pa.string(), "dropped": pa.string()})


class Pipeline:
    """The stages of one build. Outputs lie in ``store``; existing ones are not made again.

    Attributes:
        ran: stage -> number of its tasks that this build ran.
    """

    def __init__(
        self, config: CorpusConfig, store: Store, removed: frozenset[str], progress: Progress
    ) -> None:
        self.config, self.store, self.removed, self.progress = config, store, removed, progress
        self.engine = Engine(config.runner, config.address, config.workers)
        self.parts = self._parts()
        self.sizes = [part.size for part in self.parts]
        self.ran: Counter[str] = Counter()

    def run(self) -> None:
        """Run all stages; sets the attributes that ``lay_out`` and the data card read."""
        self.cleaned = self._clean()
        self._check_read()
        self.selected = self._select(
            self._dedup() if self.config.dedup is not None else [None] * len(self.parts)
        )
        self.split = self._split()
        self.shares = self._shares()
        self.tokenizer_folder = self._tokenizer()
        self.tokenizer = load_tokenizer(self.tokenizer_folder)
        self._encode()
        self.shards = self._shards()

    def _parts(self) -> list[Part]:
        """Cut the input into parts of ``part_bytes``.

        Parts are smaller if there would be too few of them to keep all workers busy to the end.
        """
        parts = list_parts(self.config.sources, self.config.part_bytes)
        wanted = _PARTS_A_WORKER * self.engine.processes
        if self.engine.processes == 1 or len(parts) >= wanted:
            return parts
        # Rounded to a power of two: with one more file, the boundaries of the other parts seldom
        # change, so most of their outputs are reused.
        share = 1 << (sum(part.size for part in parts) // wanted).bit_length() >> 1
        return list_parts(
            self.config.sources, min(self.config.part_bytes, max(_LEAST_PART_BYTES, share))
        )

    def _map(
        self, stage: str, tasks: Sequence[Task], targets: Sequence[Path], threads: bool = False
    ) -> list[Path]:
        """Run the tasks whose targets are missing; return all targets."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            missing = [
                number for number, there in enumerate(pool.map(self._is_done, targets)) if not there
            ]
        self.ran[stage] += len(missing)
        done = sum(self.sizes) - sum(self.sizes[number] for number in missing)
        with self.progress.stage(stage, sum(self.sizes), done) as advance:
            for number in self.engine.run([tasks[number] for number in missing], threads):
                advance(self.sizes[missing[number]])
        return list(targets)

    def _is_done(self, output: Path) -> bool:
        """Whether an earlier build left this output whole. A damaged output is deleted."""
        if not output.exists():
            return False
        try:
            check(output)
        except UserError:
            self.progress.say(f"{output}: damaged; it is made again")
            shutil.rmtree(output) if output.is_dir() else output.unlink()
            return False
        return True

    def _clean(self) -> list[Path]:
        """Read the parts and run the blocks on them."""
        blocks = self.config.blocks()
        settings = [
            code_version(),
            blocks,
            [content(file) for block in blocks for file in block.inputs()],
        ]
        keys = [self._key_of_part(part, settings) for part in self.parts]
        self.keys = keys
        targets = [self.store.path("clean", key) for key in keys]
        tasks = [
            Clean.of(part, blocks, target) for part, target in zip(self.parts, targets, strict=True)
        ]
        return self._map("clean", tasks, targets, threads=sum(self.sizes) < _FEW_BYTES)

    def _key_of_part(self, part: Part, settings: Sequence[object]) -> str:
        """Return the key of a part's clean documents.

        A part with files that an earlier build could not read gets a new one: they are tried again,
        and all that was made from the part is made again too.
        """
        key = digest("clean", part.key, settings)
        while (output := self.store.path("clean", key)).exists():
            try:
                dropped = read_counts(output)["dropped"]
            except UserError:  # damaged: it is made again
                break
            if not any(map(may_be_read_later, dropped)):
                break
            key = digest("clean", key)
        return key

    def _check_read(self) -> None:
        """Print what reading repaired and dropped; stop if too many documents are damaged."""
        counts = [read_counts(path) for path in self.cleaned]
        read = sum(part["documents"] for part in counts)
        repaired = merged(part["repaired"] for part in counts)
        size = sum(part["bytes"] for part in counts)
        self.read = {"documents": read, "bytes": size, "repaired": repaired}
        if repaired:
            what = ", ".join(f"{number:,} {name}" for name, number in repaired.items())
            self.progress.say(
                f"{sum(repaired.values()):,} of {read:,} documents are repaired: {what}"
            )
        self.dropped = merged(part["dropped"] for part in counts)
        self.dropped_bytes = merged(part["dropped_bytes"] for part in counts)
        # Two settings that may need a change: the line limit, and an opt-out without URLs.
        for reason, number in self.dropped.items():
            if "max_line_bytes" in reason:
                self.progress.say(
                    f"{number:,} of {read:,} documents are dropped: "
                    f"{reason.removeprefix('read: ')}; raise it to keep them"
                )
        without = sum(part["without_url"] for part in counts)
        opt_out = self.config.opt_out
        if without and opt_out is not None and (opt_out.entries or opt_out.files):
            self.progress.say(
                f"opt_out: {without:,} of {read:,} documents have no URL, so its lists cannot "
                "be applied to them"
            )
        # Damaged documents: printed, or an error above `max_bad_fraction`.
        broken = sum(n for reason, n in self.dropped.items() if is_broken(reason))
        if not broken:
            return
        named = ", ".join(f"{name} ({why})" for _, name, why in islice(self.broken(), _NAMED))
        said = f"{broken:,} of {read:,} documents are damaged: {named}"
        said += ", ..." if broken > _NAMED else ""
        if broken > self.config.max_bad_fraction * read:
            limit = f"{self.config.max_bad_fraction:g}"
            raise UserError(
                f"max_bad_fraction: {said}, more than {limit}; fix the sources or raise it"
            )
        self.progress.say(f"{said}; dropped/ lists all of them")

    def broken(self) -> Iterator[tuple[str, str, str]]:
        """Yield file, id and reason of the damaged documents."""
        for path in self.cleaned:
            if any(map(is_broken, read_counts(path)["dropped"])):
                for table in read_tables(path, ["path", "id", "dropped"]):
                    for file, name, reason in zip(
                        *(column.to_pylist() for column in table.columns), strict=True
                    ):
                        if reason is not None and is_broken(reason):
                            yield file or "", name, reason.removeprefix("read: ")

    def _dedup(self) -> list[Path | None]:
        """Find duplicates; return the file of verdicts of each part."""
        dedup = self.config.dedup
        assert dedup is not None
        signing = [dedup.threshold is None, dedup.normalize, dedup.ngram, dedup.bands, dedup.rows]
        keys = [digest("sign", key, signing) for key in self.keys]
        targets = [self.store.path("sign", key, ".arrow") for key in keys]
        tasks = [
            Sign(path, dedup, target) for path, target in zip(self.cleaned, targets, strict=True)
        ]
        signed = self._map("sign", tasks, targets, threads=True)
        folder = self.store.path("dedup", digest("dedup", keys, dedup), "")
        if not self._is_done(folder):
            self.ran["dedup"] += 1
            with (
                self.progress.stage("dedup", sum(self.sizes)) as advance,
                published(folder) as partial,
            ):
                partial.mkdir()
                verdicts = dedup.decide(_with_places(signed), folder=self.store.folder)
                self._write_verdicts(partial, verdicts)
                advance(sum(self.sizes))
        return [folder / f"{number}.parquet" for number in range(len(self.parts))]

    def _write_verdicts(self, folder: Path, verdicts: pa.Table) -> None:
        """Write a file per part. ``decide`` gives places; the files name documents by their ids."""
        part, row = _places(verdicts["id"])
        of_part, of_row = _places(verdicts["duplicate_of"])
        names = np.empty(len(verdicts), object)
        # Each part's ids are read once, for all verdicts that name one of its documents.
        for number in np.unique(of_part):
            ids = read_table(self.cleaned[number], ["id"])["id"]
            here = np.flatnonzero(of_part == number)
            names[here] = ids.take(pa.array(of_row[here])).to_pylist()
        table = pa.table(
            [pa.array(row), pa.array(names, pa.string()), verdicts["dropped"]], schema=_VERDICTS
        )
        for number in range(len(self.parts)):
            # Verdicts are sorted by place.
            first, last = np.searchsorted(part, [number, number + 1])
            mine = table.slice(first, last - first)
            # The content is the key: if a part's verdicts stay the same, its later stages do too.
            key = hashlib.sha256(repr(mine.to_pydict()).encode()).hexdigest()
            write_tables(folder / f"{number}.parquet", _VERDICTS, [mine], {"key": key})

    def _select(self, verdicts: Sequence[Path | None]) -> list[Path]:
        """Drop duplicates, contaminated and removed documents; return a file for each part."""
        evaluations = self.config.evaluations
        read = [content(file) for file in evaluations.files] if evaluations else []
        settings = [evaluations, read, sorted(self.removed)]
        keys = [
            digest("select", key, settings, verdict and read_counts(verdict)["key"])
            for key, verdict in zip(self.keys, verdicts, strict=True)
        ]
        self.keys = keys
        targets = [self.store.path("select", key) for key in keys]
        tasks = [
            Select(path, verdict, evaluations, self.removed, target)
            for path, verdict, target in zip(self.cleaned, verdicts, targets, strict=True)
        ]
        return self._map("select", tasks, targets, threads=True)

    def _split(self) -> Split:
        """Find the edge of the validation split with which both splits have text."""
        counts = [read_counts(path) for path in self.selected]
        self.dropped = merged([self.dropped, *(part["dropped"] for part in counts)])
        self.dropped_bytes = merged(
            [self.dropped_bytes, *(part["dropped_bytes"] for part in counts)]
        )
        lowest = min(part["lowest"] for part in counts)
        highest = max(part["highest"] for part in counts)
        if lowest > highest:
            reasons = _most_frequent(self.dropped) or "the files hold no rows"
            raise UserError(
                f"data.sources: no usable text in {_source_paths(self.config)} ({reasons})"
            )
        fraction = self.config.validation_fraction
        # One document, or several with the same id: no edge separates them, so the text's end is
        # the validation split.
        if fraction and lowest == highest:
            return Split(0.0, fraction)
        if fraction and lowest >= fraction:
            return Split(math.nextafter(lowest, 1))
        return Split(highest if highest < fraction else fraction)

    def _shares(self) -> dict[str, float]:
        """Return the share of each source in the mixture, by bytes."""
        self.source_bytes = merged(
            {name: part["bytes"] for name, part in read_counts(path)["sources"].items()}
            for path in self.selected
        )
        settings = dataclasses.replace(self.config.mixture, tokens=None)
        return shares(self.source_bytes, self.weights(), settings)

    def weights(self) -> dict[str, float]:
        """Return the weight of each source that has text, as set; NAME-tests weighs as NAME."""
        given = {source.name: source.weight for source in self.config.sources}
        return {
            name: given.get(name, given.get(name.removesuffix("-tests"), 1.0))
            for name in self.source_bytes
        }

    def _tokenizer(self) -> Path:
        """Save the given or trained tokenizer in the store; return its folder."""
        given, size = self.config.tokenizer, self.config.vocab_size
        if given is not None:
            tokenizer = Tokenizer.from_pretrained(given)
            if tokenizer.eos_id is None:
                raise UserError(
                    f"{given}: no end-of-text token to put between documents; "
                    "name one as eos_token in a tokenizer_config.json beside it"
                )
            key, train = digest("tokenizer", tokenizer.fingerprint(), tokenizer.special_names), None
        else:
            key = digest(
                "tokenizer", size, self.keys, self.split.edge, self.split.tail, self.shares
            )

            def train() -> Tokenizer:
                return Tokenizer.train(self._sample(), size or VOCAB_SIZE, or_fewer=size is None)

        folder = self.store.path("tokenizer", key, "")
        if not self._is_done(folder):
            if train is not None:
                self.ran["tokenizer"] += 1
                most = f"{size:,}" if size else f"up to {VOCAB_SIZE:,}"
                self.progress.say(f"training a tokenizer of {most} tokens")
                tokenizer = train()
                if size is None and (said := fewer_tokens(tokenizer.vocab_size)):
                    self.progress.say(said)
            with published(folder) as partial:
                tokenizer.save_pretrained(partial)
        return folder

    def _sample(self) -> Iterator[str]:
        """Yield texts of the training split, in the mixture's proportions of the sources."""
        by_source = rates(self.source_bytes, self.shares, TRAINING_BYTES)
        for cleaned, selected in zip(self.cleaned, self.selected, strict=True):
            for table in kept_documents(cleaned, selected, self.split, ["text", "source"]):
                train = table.filter(pc.equal(table["split"], "train"))
                yield from take(train, by_source)["text"].to_pylist()

    def _encode(self) -> None:
        """Write the tokens, and the files of kept and of dropped documents."""
        settings = [self.tokenizer.fingerprint(), self.split.tail]
        keys = [digest("encode", key, settings) for key in self.keys]
        scores = score_names(self.config.blocks())
        inputs = list(zip(self.cleaned, self.selected, strict=True))
        targets = [self.store.path("encode", key, ".arrow") for key in keys]
        tasks: list[Task] = [
            Encode(*pair, self.split, self.tokenizer_folder, target)
            for pair, target in zip(inputs, targets, strict=True)
        ]
        self.encoded = self._map("encode", tasks, targets, threads=True)
        targets = [
            self.store.path("documents", digest("documents", key, self.split)) for key in keys
        ]
        tasks = [
            WriteDocuments(*pair, encoded, self.split, scores, target)
            for pair, encoded, target in zip(inputs, self.encoded, targets, strict=True)
        ]
        self.documents = self._map("documents", tasks, targets, threads=True)
        removed = frozenset(name for path in self.selected for name in read_counts(path)["removed"])
        keys_dropped = [
            digest("dropped", key, sorted(removed), sorted(self.removed)) for key in self.keys
        ]
        targets = [self.store.path("dropped", key) for key in keys_dropped]
        tasks = [
            WriteDropped(*pair, removed, self.removed, target)
            for pair, target in zip(inputs, targets, strict=True)
        ]
        self.left_out = self._map("dropped", tasks, targets, threads=True)
        self.keys = keys

    def _shards(self) -> Path:
        """Write the shards of all splits and sources; return their folder."""
        folder = self.store.path("shards", digest("shards", self.keys, self.split), "")
        if not self._is_done(folder):
            self.ran["shards"] += 1
            with (
                self.progress.stage("shards", sum(self.sizes)) as advance,
                published(folder) as partial,
            ):
                self._write_shards(partial, advance)
        return folder

    def _write_shards(self, folder: Path, advance: Callable[[int], object]) -> None:
        """Write each source's documents in order, one stream per split."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        writers: dict[tuple[str, str], ShardWriter] = {}
        for documents, encoded, size in zip(self.documents, self.encoded, self.sizes, strict=True):
            tables = read_tables(documents, ["split", "source"])
            for table, tokens in zip(tables, read_encoded(encoded), strict=True):
                for key in sorted(
                    set(zip(table["split"].to_pylist(), table["source"].to_pylist(), strict=True))
                ):
                    mine = pc.and_(
                        pc.equal(table["split"], key[0]), pc.equal(table["source"], key[1])
                    )
                    if key not in writers:
                        writers[key] = ShardWriter(folder / key[0] / key[1], dtype)
                    writers[key].append(tokens.filter(mine.combine_chunks()).flatten().to_numpy())
            advance(size)
        for writer in writers.values():
            writer.close()

    def lay_out(self, folder: Path) -> None:
        """Fill an empty ``folder`` with the corpus' files except the data card.

        Large files are links to those of the store.
        """
        for name, paths in (("documents", self.documents), ("dropped", self.left_out)):
            (folder / name).mkdir()
            for number, path in enumerate(paths):
                _link(path, folder / name / f"part-{number:05}.parquet")
        _lay_out(self.shards, folder / "shards", _link)
        _lay_out(self.tokenizer_folder, folder / "tokenizer", shutil.copyfile)


@cache
def code_version() -> str:
    """Digest of the code that makes the store's files: a change makes all of them again."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return digest([[file.name, file.read_text(encoding="utf-8")] for file in files])


def _lay_out(source: Path, target: Path, put: Callable[[Path, Path], object]) -> None:
    """Put the files of ``source`` and its folders below ``target``.

    shutil.copytree collects errors into one without their error numbers (as of a full disk).
    """
    for parent, _, names in os.walk(source):
        folder = target / Path(parent).relative_to(source)
        folder.mkdir()
        for name in names:
            put(Path(parent, name), folder / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _with_places(signed: list[Path]) -> Iterator[pa.Table]:
    """Replace the signatures' ids by the documents' places in the corpus.

    A place is 16 hex digits (part, row), so that places sort in the order of the corpus.
    """
    for number, path in enumerate(signed):
        for batch in read_arrow(path):
            ids = pc.binary_join_element_wise(f"{number:08x}", batch["id"], "")
            yield pa.Table.from_batches([batch]).set_column(0, "id", ids)


def _places(ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Split places into numbers of parts and numbers of rows."""
    if not len(ids):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = np.array(
        [(int(place[:8], 16), int(place[8:], 16)) for place in ids.to_pylist()], np.int64
    )
    return found[:, 0], found[:, 1]


def _source_paths(config: CorpusConfig) -> str:
    return ", ".join(repr(path) for source in config.sources for path in source.paths)


def _most_frequent(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{n:,} {reason.removeprefix('read: ')}" for reason, n in list(counts.items())[:5]
    )
