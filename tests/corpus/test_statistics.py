"""Distinct n-grams: the sketch holds the smallest hashes, however often they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.output import statistics


@settings(deadline=None)
@given(values=st.lists(st.integers(0, 40), max_size=200))
def test_the_smallest_different_hashes(values: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_SKETCH", 4)
        assert statistics._smallest(np.array(values, np.uint64)).tolist() == sorted(set(values))[:4]
