"""MB/s of the corpus blocks that rewrite or judge single documents, on one core.

    python benchmarks/corpus_blocks.py [FOLDER ...]

Documents are the UTF-8 files below the folders, the interpreter's standard library by default.
"again" is a second run over what a block returned: what clean text costs. Rates are MB of UTF-8 for
a second of processor time (the blocks use one thread), the median of three runs.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from record import write_result

from lit_llm.corpus.block import Block, documents
from lit_llm.corpus.filters.language import IdentifyLanguage
from lit_llm.corpus.filters.licensing import LicenseFilter
from lit_llm.corpus.filters.normalize import Normalize
from lit_llm.corpus.filters.optout import OptOut
from lit_llm.corpus.privacy.personal_data import RedactPII

RUNS = 3


def read(folders: list[Path], most: int) -> pa.Table:
    texts, total = [], 0
    for file in (file for folder in folders for file in sorted(folder.rglob("*"))):
        if file.is_file() and "site-packages" not in file.parts and total < most:
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, OSError):
                continue
            total += len(texts[-1])
    return documents(
        texts, url=[f"https://site{i % 5000}.example.org/{i}" for i in range(len(texts))]
    )


def rate(block: Block, table: pa.Table) -> tuple[float, pa.Table]:
    """(MB/s, what the block returned); the first run, which compiles patterns, does not count."""
    done, times = block(table), []
    for _ in range(RUNS):
        start = time.process_time()
        block(table)
        times.append(time.process_time() - start)
    return pc.sum(pc.binary_length(table["text"])).as_py() / 1e6 / statistics.median(times), done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path(sysconfig.get_paths()["stdlib"])]
    )
    parser.add_argument("--megabytes", type=int, default=60)
    arguments = parser.parse_args()
    table = read(arguments.folders, arguments.megabytes * 10**6)
    megabytes = pc.sum(pc.binary_length(table["text"])).as_py() / 1e6
    print(f"{len(table)} documents, {megabytes:.1f} MB")
    blocks: dict[str, Block] = {
        "normalize": Normalize(),
        "normalize, code": Normalize(code=True),
        "redact_pii": RedactPII(),
        "identify_language": IdentifyLanguage(),
        "license": LicenseFilter(),
        "opt_out, 1e6 domains": OptOut(entries=tuple(f"domain{i}.net" for i in range(10**6))),
    }
    rows = []
    for name, block in blocks.items():
        first, done = rate(block, table)
        again, _ = rate(block, done.select(table.column_names).set_column(2, "url", table["url"]))
        changed = pc.sum(pc.not_equal(done["text"], table["text"])).as_py()
        dropped = len(table) - done["dropped"].null_count
        rows.append(
            {
                "block": name,
                "mb_s": first,
                "again_mb_s": again,
                "changed": changed,
                "dropped": dropped,
            }
        )
        print(
            f"{name:22} {first:8.1f} MB/s, again {again:8.1f}; changed {changed}, dropped {dropped}"
        )
    found = RedactPII()(table)["pii"]
    counts = {kind: pc.sum(pc.struct_field(found, kind)).as_py() for kind in RedactPII().kinds}
    print("found", counts)
    write_result(
        "corpus_blocks",
        {"documents": len(table), "megabytes": megabytes, "blocks": rows, "pii": counts},
    )


if __name__ == "__main__":
    main()
