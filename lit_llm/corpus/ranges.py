"""Ranges of the numbers in the settings of a corpus build."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lit_llm.ranges import VOCAB_SIZE, Range, check_ranges, positive

if TYPE_CHECKING:
    from lit_llm.corpus.config import CorpusConfig

_SHARE, _COUNT = Range(0, 1), Range(0, 1e9)
RANGES: dict[str, dict[str, Range]] = {
    "": {
        "vocab_size": VOCAB_SIZE, "validation_fraction": Range(0, 1, below=True),
        "max_bad_fraction": _SHARE, "workers": Range(1, 1e4), "part_bytes": Range(1, 1e12),
    },
    "sources": {"weight": Range(0, 1e12), "max_line_bytes": Range(1, 1e12)},
    "language": {"least_score": _SHARE},
    "gopher_repetition": {
        "dup_line_frac": _SHARE, "dup_para_frac": _SHARE, "dup_line_char_frac": _SHARE,
        "dup_para_char_frac": _SHARE, "min_top_n_gram": Range(1, 1e9),
        "min_repeated_lines": Range(1, 1e9), "min_repeated_words": Range(1, 1e9),
        "few_limit": _SHARE, "min_line_width": _COUNT,
    },
    "gopher_quality": {
        "min_doc_words": _COUNT, "max_doc_words": _COUNT, "min_avg_word_length": _COUNT,
        "max_avg_word_length": _COUNT, "max_symbol_word_ratio": _COUNT,
        "max_bullet_lines_ratio": _SHARE, "max_ellipsis_lines_ratio": _SHARE,
        "max_non_alpha_words_ratio": _SHARE, "min_stop_words": _COUNT,
    },
    "c4": {"min_num_sentences": _COUNT, "min_words_per_line": _COUNT, "max_word_length": _COUNT},
    "fineweb": {
        "line_punct_thr": _SHARE, "short_line_thr": _SHARE, "short_line_length": _COUNT,
        "char_duplicates_ratio": _SHARE, "new_line_ratio": _COUNT,
    },
    "dedup": {
        "threshold": positive(1), "ngram": Range(1, 63), "bands": Range(1, 1e4),
        "rows": Range(1, 1e4),
    },
    "evaluations": {"ngram": Range(1, 63), "shortest": Range(1, 63)},
    "mixture": {
        "temperature": positive(1e6), "max_epochs": positive(1e6), "tokens": positive(1e18),
    },
}  # fmt: skip
"""Section of a build's configuration -> setting -> its range; "" are those at the top."""


def check_build(config: CorpusConfig) -> None:
    """Hold all numbers of a build's configuration to their ranges. Raises UserError for the first that is not in it."""
    check_ranges(vars(config), RANGES[""])
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for section in value if isinstance(value, list) else [value]:
            if dataclasses.is_dataclass(section):
                check_ranges(vars(section), RANGES.get(field.name, {}), f"{field.name}.")
