"""Measure how well tokenizers compress text, by language, domain and source.

A model's cost and context depend on the number of bytes per token. With a tokenizer trained mostly
on English, the same text in another language can take several times as many tokens
(arXiv:2305.15425). Separators and control tokens are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lit_llm.corpus.output.statistics import sums
from lit_llm.models.tokenizer import Tokenizer

GROUPS = ("language", "domain", "source")
UNKNOWN = "unknown"
# Languages written without spaces between words.
_UNSPACED = frozenset(("bo", "dz", "ja", "km", "lo", "my", "th", "zh"))
_LONGEST = 10  # longest tokens that a report lists


class Compression:
    """Counts the tokens that several tokenizers need for the same text."""

    def __init__(self, tokenizers: Mapping[str, Tokenizer]) -> None:
        self._tokenizers = dict(tokenizers)
        self._vocabularies = {
            name: tokenizer.vocabulary() for name, tokenizer in tokenizers.items()
        }
        self._pieces = {
            name: np.array([_is_piece(token) for token in v])
            for name, v in self._vocabularies.items()
        }
        self._unknown = {name: tokenizer.unk_id for name, tokenizer in tokenizers.items()}
        self._used = {name: np.zeros(len(v), np.int64) for name, v in self._vocabularies.items()}
        self._counts: dict[str, dict[str, dict[str, int]]] = {
            group: {} for group in ("all", *GROUPS)
        }

    def add(self, table: pa.Table) -> None:
        """Count a table with "text", "bytes" and the columns of `GROUPS`."""
        documents = table["text"].to_pylist()
        languages = [language or UNKNOWN for language in table["language"].to_pylist()]
        spaced = np.array([language.split("-")[0] not in _UNSPACED for language in languages])
        words = np.where(spaced, [len(document.split()) for document in documents], 0)
        columns: dict[str, Any] = {"bytes": table["bytes"], "words": words}
        for name, tokenizer in self._tokenizers.items():
            ids, offsets = tokenizer.encode_ragged(documents)
            counts = np.diff(offsets)
            self._used[name] += np.bincount(ids, minlength=len(self._used[name]))
            columns |= {
                f"{name}/tokens": counts,
                f"{name}/tokens_of_words": np.where(spaced, counts, 0),
                f"{name}/pieces": _sums_by_document(self._pieces[name][ids], offsets),
                f"{name}/unknown": _sums_by_document(ids == self._unknown[name], offsets),
            }
        names = {
            group: [value or UNKNOWN for value in table[group].to_pylist()] for group in GROUPS
        }
        counted = pa.table({**names, "all": pa.repeat("all", len(table)), **columns})
        for group, rows in self._counts.items():
            for row in sums(counted, [group], list(columns)):
                into = rows.setdefault(row.pop(group), dict.fromkeys(row, 0))
                for key, value in row.items():
                    into[key] += value

    def report(self) -> dict[str, Any]:
        """The counts and ratios, as plain values.

        Returns:
            "all": documents, bytes, words (separated by whitespace, only in languages written with
            spaces) and "tokenizers": name -> tokens, bytes_per_token, tokens_per_word (None without
            words), character_pieces and unknown (shares of the tokens that are pieces of a
            character, and that are the unknown token). "language", "domain", "source": name -> the
            same, most bytes first. "vocabulary": tokenizer -> tokens, unused (number of tokens that
            did not occur, without control tokens) and longest (rows of text, bytes and uses).
        """
        groups = {
            group: {
                name: self._row(row)
                for name, row in sorted(rows.items(), key=lambda item: -item[1]["bytes"])
            }
            for group, rows in self._counts.items()
        }
        return {
            **groups,
            "all": groups["all"]["all"],
            "vocabulary": {name: self._words(name) for name in self._used},
        }

    def _row(self, row: Mapping[str, int]) -> dict[str, Any]:
        """The report of one row of counts."""
        found: dict[str, Any] = {key: row[key] for key in ("documents", "bytes", "words")}
        found["tokenizers"] = {}
        for name in self._tokenizers:
            tokens, of_words = row[f"{name}/tokens"], row[f"{name}/tokens_of_words"]
            found["tokenizers"][name] = {
                "tokens": tokens,
                "bytes_per_token": _ratio(row["bytes"], tokens),
                "tokens_per_word": _ratio(of_words, row["words"]),
                "character_pieces": _ratio(row[f"{name}/pieces"], tokens),
                "unknown": _ratio(row[f"{name}/unknown"], tokens),
            }
        return found

    def _words(self, name: str) -> dict[str, Any]:
        """The report of one tokenizer's vocabulary."""
        vocabulary, used = self._vocabularies[name], self._used[name]
        there = [index for index, token in enumerate(vocabulary) if token]
        longest = sorted(there, key=lambda index: (-len(vocabulary[index]), index))[:_LONGEST]
        return {
            "tokens": len(vocabulary),
            "unused": int((used[there] == 0).sum()),
            "longest": [
                {
                    "text": vocabulary[i].decode(errors="replace"),
                    "bytes": len(vocabulary[i]),
                    "uses": int(used[i]),
                }
                for i in longest
            ],
        }


def _sums_by_document(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums of ``flags[offsets[i]:offsets[i + 1]]``: differences of prefix sums."""
    return np.diff(np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])[offsets])


def _ratio(of: int, by: int) -> float | None:
    return round(of / by, 4) if by else None


def _is_piece(token: bytes) -> bool:
    """Whether a token contains an incomplete UTF-8 character."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return True
    return False
