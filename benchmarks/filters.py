"""Quality filters against datatrove's: same decisions? how fast?

    make peers
    python benchmarks/filters.py [--megabytes 24] [FOLDER ...]  # 2 minutes on two cores

Every filter sees every document as it was. datatrove runs twice: with our words in place of its
tokenizer's, where decisions should be equal, and as shipped, with spaCy's words. Seconds are
processor seconds of one core; the two sides take turns, part by part, in processes of their own.
Texts: standard library, system documentation and the given folders, a third of the documents turned
into junk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = 8
FILTERS = ("gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality")
WORDS = ("our words", "as shipped")


def theirs(file: str) -> None:
    """Be datatrove: for each line read ("<part> <words>"), a line of JSON with seconds and
    decisions."""
    import warnings

    import datatrove.utils.word_tokenizers as tokenizers
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove_words import OurWords, use

    warnings.simplefilter("ignore")
    ours = OurWords()
    load = {"our words": lambda language: ours, "as shipped": tokenizers.load_word_tokenizer}
    documents = json.loads(Path(file).read_text())
    filters = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(),
        FineWebQualityFilter(),
    ]
    for line in sys.stdin:
        part, whose = json.loads(line)
        use(load[whose])
        decisions = []
        began = time.process_time()
        for text in documents[part::PARTS]:
            for filter_ in filters:
                document = Document(text=text, id="")
                result = filter_.filter(document)
                decisions.append([None if result is True else result[1], document.text])
        print(json.dumps([time.process_time() - began, decisions]), flush=True)


def ours(texts: list[str]) -> tuple[list[float], list[list[Any]]]:
    """(seconds by filter, decisions as ``theirs`` gives them)."""
    import pyarrow as pa

    from lit_llm.corpus.filters.quality import (
        C4Quality,
        FineWebQuality,
        GopherQuality,
        GopherRepetition,
    )

    array = pa.array(texts, pa.large_string())
    seconds, columns = [], []
    for block in (GopherRepetition(), GopherQuality(), C4Quality(), FineWebQuality()):
        began = time.process_time()
        text, reasons = (
            block.clean(array) if isinstance(block, C4Quality) else (array, block.judge(array))
        )
        seconds.append(time.process_time() - began)
        columns.append(list(zip(reasons.to_pylist(), text.to_pylist(), strict=True)))
    return seconds, [list(decision) for row in zip(*columns, strict=True) for decision in row]


def compare(documents: list[str], peers: str) -> dict[str, Any]:
    """Decisions and processor seconds of both sides."""
    size = sum(len(text.encode()) for text in documents) / 1e6
    ours(documents[:20])  # compiled, or read from the cache
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(documents, file)
        file.flush()
        worker = subprocess.Popen(
            [peers, __file__, "--work", file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
        assert worker.stdin and worker.stdout
        spent, theirs_spent = [0.0] * len(FILTERS), dict.fromkeys(WORDS, 0.0)
        agree, same_text = {whose: Counter[str]() for whose in WORDS}, Counter[str]()
        differences = {whose: Counter[str]() for whose in WORDS}
        for part in range(PARTS):
            seconds, mine = ours(documents[part::PARTS])
            spent = [a + b for a, b in zip(spent, seconds, strict=True)]
            for whose in WORDS:
                worker.stdin.write(json.dumps([part, whose]) + "\n")
                worker.stdin.flush()
                seconds_theirs, decisions = json.loads(worker.stdout.readline())
                theirs_spent[whose] += seconds_theirs
                for start in range(0, len(mine), len(FILTERS)):
                    equal = []
                    for name, (a, text), (b, their_text) in zip(
                        FILTERS, mine[start:], decisions[start : start + len(FILTERS)], strict=False
                    ):
                        equal.append((a is None) == (b is None))
                        agree[whose][name] += equal[-1]
                        agree[whose][f"{name}, reason"] += a == b
                        if a is None and b is None:
                            same_text[
                                f"{whose}: {'equal' if text == their_text else 'different'}"
                            ] += 1
                        if a != b:
                            differences[whose][f"{name}: theirs {b}, ours {a}"] += 1
                    agree[whose]["all"] += all(equal)
        worker.stdin.close()
        worker.wait()
    rate = size / sum(spent)
    result = {
        "documents": len(documents), "peers": _versions(peers), "megabytes": size,
        "megabytes_per_second": rate, "megabytes_per_second_by_filter": dict(
            zip(FILTERS, (size / s for s in spent), strict=True)
        ),
        "datatrove": {
            whose: {
                "megabytes_per_second": size / theirs_spent[whose],
                "times_as_fast": rate * theirs_spent[whose] / size,
                "agreement": {name: count / len(documents) for name,
                              count in sorted(agree[whose].items())},
                "differences": dict(differences[whose].most_common()),
            }
            for whose in WORDS
        },
        "texts_after_filters": dict(same_text),
    }  # fmt: skip
    return result


def _versions(peers: str) -> dict[str, str]:
    program = (
        "import json, importlib.metadata as m; "
        "print(json.dumps({p: m.version(p) for p in ('datatrove', 'spacy')}))"
    )
    return json.loads(subprocess.check_output([peers, "-c", program], text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", nargs="*", type=Path, help="further folders with text or HTML files"
    )
    parser.add_argument("--megabytes", type=float, default=24)
    parser.add_argument("--peers", default=str(HERE.parent / ".venv-datatrove/bin/python"))
    parser.add_argument("--work", metavar="FILE", help="be datatrove, on these documents")
    args = parser.parse_args()
    if args.work:
        theirs(args.work)
        return
    from filters_texts import default_folders, texts
    from record import write_result

    result = compare(texts(args.megabytes, [*default_folders(), *args.folders]), args.peers)
    print(json.dumps(result, indent=1))
    print(f"wrote {write_result('filters', result)}")


if __name__ == "__main__":
    main()
