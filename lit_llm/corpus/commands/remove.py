"""Remove documents from a finished corpus, at the request of a person, a publisher or a court.

Only the files and chunks that contain the documents are written again, in one transaction.
Documents with the same text are removed too, and so are the excerpts of copies that were dropped
earlier.

The log contains hashes of id and text, never the text. With these hashes, a later build into the
same folder leaves the document out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from lit_llm.corpus.block import DOCUMENT_SCORES, per_value, texts, with_column
from lit_llm.corpus.build import WORK
from lit_llm.corpus.card.data_card import revise_card, write_card
from lit_llm.corpus.dedup.duplicates import EXACT, NEAR
from lit_llm.corpus.output.encode import (
    DROPPED,
    TAIL,
    documents_schema,
    write_documents,
)
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import without
from lit_llm.corpus.reading.addresses import host, parts
from lit_llm.corpus.storage.removal_log import LOG, removed_hashes, sha256
from lit_llm.corpus.storage.store import (
    read_counts,
    read_schema,
    read_table,
    read_tables,
    write_tables,
)
from lit_llm.corpus.storage.transaction import finish, transaction
from lit_llm.errors import UserError
from lit_llm.io.locks import lock_folder


@dataclass(frozen=True)
class Request:
    """Which documents to remove: those that match any of the attributes.

    Attributes:
        ids: ids of documents.
        domain: a host (with its subdomains), or the domain tag of a source.
        matching: a regular expression (RE2 syntax) to find in the text.
    """

    ids: frozenset[str] = frozenset()
    domain: str | None = None
    matching: str | None = None

    def __post_init__(self) -> None:
        if not (self.ids or self.domain or self.matching):
            raise UserError(
                "corpus remove: say which documents, by --ids, --ids_file, --domain or --matching"
            )
        if self.domain and (address := parts(self.domain)) and (address.path or address.query):
            raise UserError(f"--domain {self.domain!r}: give the host alone, {address.host!r}")
        if self.matching is not None:
            try:
                pc.match_substring_regex(pa.array([""]), self.matching)
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"--matching {self.matching!r}: not a regular expression ({error})"
                ) from None

    def finds(self, table: pa.Table, text: str) -> pa.Array:
        """Boolean array: which rows of ``table`` match.

        ``table`` has the columns id, url, domain, and the column named ``text`` if there is a
        pattern.
        """
        ids = [
            name in self.ids or name.removesuffix(TAIL) in self.ids
            for name in table["id"].to_pylist()
        ]
        found = pa.array(ids, pa.bool_())
        if self.domain is not None:
            wanted = host(self.domain) or self.domain
            tagged = pc.fill_null(pc.equal(table["domain"], self.domain), False).combine_chunks()
            found = pc.or_(
                pc.or_(found, tagged),
                pc.is_valid(per_value(table["url"], lambda url: _below(url, wanted))),
            )
        if self.matching is not None:
            found = pc.or_(found, pc.match_substring_regex(texts(table[text]), self.matching))
        return found

    def columns(self, text: str) -> list[str]:
        """The columns that `finds` reads, with ``text`` as the name of the text column."""
        return ["id", "url", "domain", *([text] if self.matching is not None else [])]


def _below(url: str, domain: str) -> str | None:
    """The host of a URL if it is the domain or a subdomain of it."""
    name = host(url)
    return name if name is not None and (name == domain or name.endswith(f".{domain}")) else None


def remove(
    folder: str | Path,
    request: Request,
    reason: str = "by request",
    tell: Callable[[str], object] = lambda line: None,
) -> int:
    """Remove documents from text files and shards, log them and update the data card.

    Excerpts of these documents among the dropped ones are removed too, and so are the stages' files
    in ``.work``. A second call finds nothing. If the process is killed, the corpus is either
    unchanged or complete.

    Args:
        folder: the corpus folder.
        request: which documents to remove.
        reason: recorded in the log.
        tell: gets a line about requested ids that do not exist, and about each requested document
            that was dropped earlier as a near copy of a document that stays.

    Returns:
        The number of kept documents that were removed.

    Raises:
        UserError: no corpus folder, or no document for training would be left.
    """
    folder = Path(folder).expanduser().absolute()
    Corpus.load(folder)
    with lock_folder(folder):
        # Complete the transaction of a process that was killed since. `Corpus.load` would do so
        # too, but it would wait for the lock that is held here.
        finish(folder)
        card = Corpus.load(folder).datacard
        removal = _Removal(folder, request)
        removal.find()
        known = removed_hashes(folder)
        new = sorted(
            (hashed, text)
            for name, text in removal.texts.items()
            if (hashed := sha256(name)) not in known or (text or hashed) not in known
        )
        found = {name.removesuffix(TAIL) for name in removal.texts}
        if absent := sorted(request.ids - found - removal.texts.keys()):
            more = f" and {len(absent) - 5:,} more" if len(absent) > 5 else ""
            tell(f"not in the corpus: {', '.join(absent[:5])}{more}")
        for name, stays in sorted(removal.near.items()):
            tell(f"{name} was a near copy of {stays}, which stays; remove that too if it should go")
        if not removal.rows and not new:
            return 0
        # Delete this first: it contains the texts, and a kill after the transaction would leave it.
        shutil.rmtree(folder / WORK, ignore_errors=True)
        gone: list[str] = []
        with transaction(folder, gone) as staged:
            documents, dropped = removal.write(staged, gone)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            lines = [
                json.dumps({"id_sha256": name, "text_sha256": text, "date": date, "reason": reason})
                + "\n"
                for name, text in new
            ]
            log = folder / LOG
            earlier = log.read_text(encoding="utf-8") if log.is_file() else ""
            (staged / LOG).write_text(earlier + "".join(lines), encoding="utf-8")
            revised = revise_card(card, documents, dropped, removal.count)
            if not sum(part["tokens"] for part in revised["splits"]["train"].values()):
                raise UserError(
                    f"{folder}: no document for training would be left; delete the folder instead"
                )
            write_card(revised, staged, folder.name)
    return removal.count


class _Removal:
    """The parts of a corpus that a request affects.

    Attributes:
        texts: id -> SHA-256 (hex) of its text, for kept and dropped documents that were requested,
            or that have the text of a requested one. For a document that was dropped before its
            text was hashed, it is the SHA-256 of its stored excerpt, or None without an excerpt.
        near: id of a requested document that was dropped as a near copy -> id of the document that
            it is a copy of, and which stays.
        rows: file of kept documents -> mask of the rows to remove.
        spans: (split, source) -> ranges of token positions to remove.
        examples: file of dropped documents -> mask of the rows whose excerpt is removed.
        count: number of kept documents to remove.
    """

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.request = folder, request
        self.texts: dict[str, str | None] = {}
        self.near: dict[str, str] = {}
        self.rows: dict[Path, pa.ChunkedArray] = {}
        self.spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self.examples: dict[Path, pa.ChunkedArray] = {}
        self.count = 0

    def find(self) -> None:
        """Fill the attributes: first requested documents, then documents with the same text."""
        same, near = self._asked_for()
        hashes = {text for text in self.texts.values() if text is not None}
        for file in self._files("documents"):
            for table in read_tables(file, ["id", "sha256"]):
                self._add(table, self._named(table, same, hashes))
        self.near = {name: stays for name, stays in near.items() if stays not in self.texts}
        self._find_kept()
        columns = ["id", "duplicate_of", "sha256", "example"]
        for file in self._files("dropped"):
            table = read_table(file, columns)
            copies = pc.is_in(table["duplicate_of"], pa.array(list(self.texts), pa.string()))
            shown = pc.or_(self._named(table, set(self.texts), hashes), copies)
            mask = pc.and_(shown, pc.is_valid(table["example"]))
            if pc.any(mask).as_py():
                self.examples[file] = mask

    def _asked_for(self) -> tuple[set[str], dict[str, str]]:
        """Find the requested documents among kept and dropped ones.

        Returns:
            Ids of kept documents of which a dropped exact copy was requested; and, for requested
            near copies, their id -> id of the kept document.
        """
        same: set[str] = set()
        near: dict[str, str] = {}
        for file in self._files("documents"):
            for table in read_tables(file, [*self.request.columns("text"), "sha256"]):
                self._add(table, self.request.finds(table, "text"))
        columns = [*self.request.columns("example"), "example", "sha256"]
        columns += ["stage", "reason", "duplicate_of"]
        for file in self._files("dropped"):
            table = read_table(file, list(dict.fromkeys(columns)))
            found = self.request.finds(table, "example")
            self._add(table, found)
            names = ("id", "stage", "reason", "duplicate_of")
            for row in table.filter(found).select(names).to_pylist():
                said = f"{row['stage']}: {row['reason']}"
                if said == EXACT:
                    same.add(row["duplicate_of"])
                elif said == NEAR:
                    near[row["id"]] = row["duplicate_of"]
        return same, near

    def _files(self, name: str) -> list[Path]:
        return sorted((self.folder / name).iterdir())

    @staticmethod
    def _named(table: pa.Table, names: set[str], hashes: set[str]) -> pa.Array:
        """Mask of the rows with one of these ids, or with a text of one of these hashes."""
        ids = pa.array([name.removesuffix(TAIL) in names for name in table["id"].to_pylist()])
        same = pc.is_in(table["sha256"], pa.array(list(hashes), pa.string())).combine_chunks()
        return pc.or_(ids.cast(pa.bool_()), same)

    def _add(self, table: pa.Table, found: pa.Array) -> None:
        """Add the rows of the mask ``found`` to ``texts``."""
        columns = [name for name in ("id", "sha256", "example") if name in table.column_names]
        for row in table.filter(found).select(columns).to_pylist():
            shown = row.get("example")
            text = row["sha256"] or (sha256(shown) if shown is not None else None)
            self.texts[row["id"].removesuffix(TAIL)] = text

    def _find_kept(self) -> None:
        """Fill rows, spans and count for the kept documents to remove.

        A document's position in the shards is the sum of the tokens before it in its stream.
        """
        positions: dict[tuple[str, str], int] = {}
        hashes = {text for text in self.texts.values() if text is not None}
        for file in self._files("documents"):
            found = []
            for table in read_tables(file, ["id", "sha256", "split", "source", "tokens"]):
                found.append(self._named(table, set(self.texts), hashes))
                rows = zip(
                    *(table[name].to_pylist() for name in ("split", "source", "tokens")),
                    strict=True,
                )
                for (split, source, tokens), goes in zip(rows, found[-1].to_pylist(), strict=True):
                    start = positions.get((split, source), 0)
                    positions[split, source] = start + tokens
                    if goes:
                        self.spans.setdefault((split, source), []).append((start, start + tokens))
            mask = pa.chunked_array(found, pa.bool_())
            if pc.any(mask).as_py():
                self.rows[file] = mask
                self.count += pc.sum(mask).as_py()

    def write(self, staged: Path, gone: list[str]) -> tuple[list[Path], list[Path]]:
        """Write the new files to ``staged``, and append the files to delete to ``gone``.

        Returns:
            All files of kept documents and all files of dropped documents of the new corpus; files
            that do not change are those of the old corpus.
        """
        for name in ("documents", "dropped"):
            (staged / name).mkdir()
        for file, mask in self.rows.items():
            target, kept = staged / "documents" / file.name, _filtered(file, pc.invert(mask))
            scores = [field.name for field in read_schema(file).field("scores").type]
            own = [name for name in scores if name not in DOCUMENT_SCORES]
            write_documents(target, kept, documents_schema(own))
        for (split, source), spans in self.spans.items():
            shards = Path("shards") / split / source
            target = staged / shards
            gone += [str(shards / name) for name in without(self.folder / shards, spans, target)]
            if not json.loads((target / "index.json").read_text())["chunks"]:
                gone.append(str(shards))
                shutil.rmtree(target)
        for file, mask in self.examples.items():
            self._without_examples(file, mask, staged / "dropped" / file.name)
        return tuple(  # type: ignore[return-value]
            [staged / name / file.name if (staged / name / file.name).exists() else file
             for file in sorted((self.folder / name).iterdir())]
            for name in ("documents", "dropped")
        )  # fmt: skip

    @staticmethod
    def _without_examples(file: Path, mask: pa.Array, target: Path) -> None:
        """Write ``file`` to ``target`` without the excerpts in the rows of the mask."""
        table = read_table(file)
        names = set(table["id"].filter(mask).to_pylist())
        examples = pc.if_else(mask, pa.scalar(None, pa.string()), table["example"])
        counts = read_counts(file)
        counts["examples"] = {
            reason: [example for example in shown if example[0] not in names]
            for reason, shown in counts["examples"].items()
        }
        write_tables(target, DROPPED, [with_column(table, "example", examples)], counts)


def _filtered(file: Path, keep: pa.ChunkedArray) -> Iterator[pa.Table]:
    """The tables of a file, with the rows of the mask ``keep`` only."""
    start = 0
    for table in read_tables(file):
        yield table.filter(keep.slice(start, len(table)))
        start += len(table)
