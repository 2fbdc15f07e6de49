"""Taking documents out of a finished corpus: what a person, a publisher or a court asks for.

Only the files and chunks that hold them are written again, all in one transaction. What is logged
are hashes of id and text, by which a later build into the same folder leaves the document out, and
never what it said. Documents with the same text go with them, and the beginnings of copies that
were dropped.
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

from lit_llm.corpus.block import per_value, texts, with_column
from lit_llm.corpus.build import WORK
from lit_llm.corpus.card.data_card import revise_card, write_card
from lit_llm.corpus.dedup.duplicates import EXACT, NEAR
from lit_llm.corpus.output.encode import DROPPED, TAIL, write_documents
from lit_llm.corpus.output.folder import Corpus
from lit_llm.corpus.output.shards import without
from lit_llm.corpus.reading.addresses import host, parts
from lit_llm.corpus.storage.removed import LOG, removed_hashes, sha256
from lit_llm.corpus.storage.store import read_counts, read_table, read_tables, write_tables
from lit_llm.corpus.storage.transaction import finish, transaction
from lit_llm.errors import UserError
from lit_llm.io.locks import lock_folder


@dataclass(frozen=True)
class Request:
    """Which documents go: those that any of these says.

    Attributes:
        ids: documents' ids.
        domain: a host with all below it, or the domain tag of a source.
        matching: a regular expression (RE2 syntax) found in the text.
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
                    f"--matching {self.matching!r}: no regular expression ({error})"
                ) from None

    def finds(self, table: pa.Table, text: str) -> pa.Array:
        """Boolean array, for a table with id, url, domain, and ``text`` if there is a pattern."""
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
        return ["id", "url", "domain", *([text] if self.matching is not None else [])]


def _below(url: str, domain: str) -> str | None:
    name = host(url)
    return name if name is not None and (name == domain or name.endswith(f".{domain}")) else None


def remove(
    folder: str | Path,
    request: Request,
    reason: str = "by request",
    tell: Callable[[str], object] = lambda line: None,
) -> int:
    """Take the documents out of text files and shards, log it and renew the data card; returns how
    many were there.

    Examples and traces of such documents among the dropped ones go too, and so does what stages
    left in ``.work``. Asking again finds nothing. A kill in the middle leaves the corpus as it was,
    or as it should be. ``tell`` gets a line where a document that was asked for had been dropped as
    a near copy of one that stays.

    Raises:
        UserError: no corpus folder, or no document for training would be left.
    """
    folder = Path(folder).expanduser().absolute()
    Corpus.load(folder)
    with lock_folder(folder):
        finish(folder)  # of one that was killed since; loading would wait for our own lock
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
        # First: it holds the texts, and a kill behind the transaction would leave them.
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
    """What of a corpus a request concerns.

    Attributes:
        texts: id -> SHA-256 (hex) of its text, of kept and dropped documents that were asked for,
            or have the text of one. Of those that were dropped before they had one: of the
            beginning that is shown, None without.
        near: id of a document that was asked for and had been dropped -> of the one that it nearly
            is, and which stays.
        rows: file of kept documents -> which of its rows go.
        spans: (split, source) -> positions in the stream.
        examples: file of dropped documents -> which of its rows lose their example.
        count: kept documents that go.
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
        """Fill the attributes: what was asked for, then what has its text, kept or dropped."""
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
        """(ids of documents whose copies were asked for, ids of near copies asked for -> of what
        stays)."""
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
        """Which rows have one of these ids, or a text of one of these hashes."""
        ids = pa.array([name.removesuffix(TAIL) in names for name in table["id"].to_pylist()])
        same = pc.is_in(table["sha256"], pa.array(list(hashes), pa.string())).combine_chunks()
        return pc.or_(ids.cast(pa.bool_()), same)

    def _add(self, table: pa.Table, found: pa.Array) -> None:
        columns = [name for name in ("id", "sha256", "example") if name in table.column_names]
        for row in table.filter(found).select(columns).to_pylist():
            shown = row.get("example")
            text = row["sha256"] or (sha256(shown) if shown is not None else None)
            self.texts[row["id"].removesuffix(TAIL)] = text

    def _find_kept(self) -> None:
        """Rows and positions in the shards of the kept documents that go."""
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
        """The new files; returns those of kept and of dropped documents as they will be."""
        for name in ("documents", "dropped"):
            (staged / name).mkdir()
        for file, mask in self.rows.items():
            write_documents(staged / "documents" / file.name, _filtered(file, pc.invert(mask)))
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
    start = 0
    for table in read_tables(file):
        yield table.filter(keep.slice(start, len(table)))
        start += len(table)
