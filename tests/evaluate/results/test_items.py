"""Rows of items, where a whole evaluation is not needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lit_llm import Tokenizer, UserError
from lit_llm.evaluate.results.items import items_table


def test_a_task_without_items(tokenizer: Tokenizer) -> None:
    task = SimpleNamespace(OUTPUT_TYPE="multiple_choice")
    with pytest.raises(UserError, match="has no items"):
        items_table({"samples": {"empty": []}}, {"empty": task}, tokenizer)
