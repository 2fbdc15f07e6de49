"""What a run says of its examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_llm.data.rows.left_out import left_out_of


def examples_told(card: dict[str, Any], folder: Path, reused: bool) -> list[str]:
    """Lines with the number of examples, and with the answers and rows that are not used.

    Args:
        card: the data card of the encoded conversations.
        folder: where they are.
        reused: whether they were in the cache.
    """
    splits = card["splits"]
    told = []
    told.append(
        f"{'reusing' if reused else 'made'} examples: {folder} "
        f"({splits['train']['examples']:,} for training, "
        f"{splits['validation']['examples']:,} for validation)"
    )
    answers, left_out = (
        sum(split[key] for split in splits.values()) for key in ("answers", "answers_left_out")
    )
    if left_out:
        told.append(
            f"{left_out:,} of {answers:,} answers are not learnt: the chat template does not "
            "render them after its own generation prompt, so their context would not be what "
            "a server sends. The last answer of every conversation is learnt."
        )
    computed, apart = (
        sum(split[key] for split in splits.values()) for key in ("tokens", "tokens_apart")
    )
    if apart > computed:
        told.append(
            f"sharing: {computed:,} tokens hold what {apart:,} would in separate examples, "
            f"because answers of a conversation have their beginning in common"
        )
    if weighted := sum(split["weighted"] for split in splits.values()):
        told.append(
            f"{weighted:,} examples have labels with a weight other than 0 and 1: losses are "
            "weighted means"
        )
    if same := splits["validation"]["trained_on"]:
        told.append(
            f"{same:,} of {splits['validation']['examples']:,} validation examples are training "
            "examples too: the validation loss does not say what the model does with new ones"
        )
    told += left_out_of(card)
    if others := card["rows_of_the_other_split"]:
        told.append(
            f"{others:,} rows are not used: their 'split' is validation in data.sources, or "
            "train in data.validation"
        )
    return told
