"""What the default rules keep of good short texts, and drop of bad ones."""

from __future__ import annotations

import short_texts

from lit_llm.corpus.block import documents
from lit_llm.corpus.config import CorpusConfig


def judged(texts: list[str]) -> list[str | None]:
    """Why the default steps drop each."""
    config, table = CorpusConfig(), documents(texts)
    for block in (config.language, config.gopher_repetition, config.gopher_quality):
        table = block(table)
    return table["dropped"].to_pylist()


def test_the_default_keeps_good_short_texts_in_ten_languages() -> None:
    rows = short_texts.good()
    assert len({language for language, _, _ in rows}) == 10 and len(rows) == 90
    reasons = judged([text for _, _, text in rows])
    assert [(*row[:2], why) for row, why in zip(rows, reasons, strict=True) if why] == []


def test_the_default_drops_texts_that_only_repeat_themselves() -> None:
    rows = short_texts.bad()
    assert len(rows) == 70
    reasons = judged([text for _, _, text in rows])
    assert [row[:2] for row, why in zip(rows, reasons, strict=True) if why is None] == []
