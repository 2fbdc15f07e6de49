"""Allowed ranges of the numbers in the settings of a corpus build."""

from __future__ import annotations

from typing import Any

from lit_llm.corpus.kernels.limits import LONGEST_NGRAM
from lit_llm.settings.ranges import VOCAB_SIZE, Range, check_ranges, positive

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
        "threshold": positive(1), "ngram": Range(1, LONGEST_NGRAM), "bands": Range(1, 1e4),
        "rows": Range(1, 1e4),
    },
    "evaluations": {"ngram": Range(1, LONGEST_NGRAM), "shortest": Range(1, LONGEST_NGRAM)},
    "mixture": {
        "temperature": positive(1e6), "max_epochs": positive(1e6), "tokens": positive(1e18),
    },
}  # fmt: skip
"""Section of a build's configuration -> setting -> its range; "" is the top level."""


def check_section(settings: Any, name: str, prefix: str | None = None) -> None:
    """Check that the numbers of a section's settings are in their ranges.

    Args:
        settings: the section's settings, a dataclass.
        name: name of the section.
        prefix: text before a setting's name in messages. None: the section's name.

    Raises:
        UserError: names the first setting that is out of its range.
    """
    if prefix is None:
        prefix = f"{name}." if name else ""
    check_ranges(vars(settings), RANGES[name], prefix)
