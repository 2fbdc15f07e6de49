"""Text to token ids: is gigatoken, behind our Tokenizer, as exact as the `tokenizers` library, and
how much faster?

    python benchmarks/encode.py [--megabytes 10] [--vocab 32768] [--dry-run]  # a minute on two
    cores

The text is Python files and documentation of this machine, in documents as they lie there; the
tokenizer is a BPE trained on a fifth of it. Both take turns, three times each, on all cores; what
is reported are medians. Each turn has tokenizers that have encoded nothing but a probe yet, since
gigatoken remembers words. Ids are compared for every document.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import time

import numpy as np
from dedup import text_files
from record import write_result

from lit_llm.models.tokenizer import Tokenizer

ROUNDS = 3


def documents(size: int) -> list[str]:
    """Files of this machine until they are ``size`` bytes together."""
    texts, total = [], 0
    for file in text_files():
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        texts.append(text)
        total += len(text.encode())
        if total >= size:
            break
    return texts


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument(
        "--dry-run", action="store_true", help="measure, and keep the recorded result as it is"
    )
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = documents(round(args.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts)
    tokenizer = Tokenizer.train(texts[::5], args.vocab, or_fewer=True)
    seconds: dict[str, list[float]] = {"tokenizers": [], "lit_llm": []}
    same = 0
    for _ in range(ROUNDS):
        fresh = pickle.loads(pickle.dumps(tokenizer))
        if fresh._fast is None:
            raise SystemExit("gigatoken is not installed, or does not know this tokenizer")
        started = time.perf_counter()
        expected = fresh._raw.encode_batch(texts, add_special_tokens=False)
        between = time.perf_counter()
        found = fresh.encode_batch(texts)
        ended = time.perf_counter()
        seconds["tokenizers"].append(between - started)
        seconds["lit_llm"].append(ended - between)
        same = sum(
            np.array_equal(ids, encoding.ids) for ids, encoding in zip(found, expected, strict=True)
        )
    rates = {name: size / 1e6 / statistics.median(times) for name, times in seconds.items()}
    result = {
        "documents": len(texts), "megabytes": round(size / 1e6, 2),
        "vocab_size": tokenizer.vocab_size, "documents_with_equal_ids": same,
        "mb_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["lit_llm"] / rates["tokenizers"], 2),
    }  # fmt: skip
    print(result)
    if not args.dry_run:
        write_result("encode", result)


if __name__ == "__main__":
    main()
