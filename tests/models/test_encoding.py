"""gigatoken behind our Tokenizer gives the ids of the `tokenizers` library, whatever the text."""

from __future__ import annotations

import itertools
import os
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.models.tokenizer import IM_END, Tokenizer

HARD = [
    "don't", " 1234567", "\r\n", "\n\n   ", "\u00a0", "北京。", "नमस्ते",
    "\U0001f469\u200d\U0001f467",
    IM_END, "\0", "\u2028", "\u017f\u0130\u00df", "=====", "x" * 90,
]  # fmt: skip


@cache
def trained() -> Tokenizer:
    files = sorted(Path(os.__file__).parent.glob("*.py"))[:30]
    return Tokenizer.train([file.read_text(encoding="utf-8") for file in files], 2000)


@given(
    st.lists(
        st.lists(st.sampled_from(HARD) | st.text(max_size=20), max_size=8).map("".join), max_size=6
    )
)
@settings(deadline=None)
def test_ids_are_those_of_the_reference(texts: list[str]) -> None:
    tokenizer = trained()
    assert tokenizer._fast is not None
    ids, offsets = tokenizer.encode_ragged(texts)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64 and offsets[-1] == len(ids)
    parts = [ids[begin:end].tolist() for begin, end in itertools.pairwise(offsets)]
    assert parts == [tokenizer._raw.encode(text, add_special_tokens=False).ids for text in texts]


def test_without_gigatoken_the_ids_are_the_same() -> None:
    tokenizer = trained()
    texts = ["".join(HARD), "", "plain text"]
    fast = tokenizer.encode_batch(texts)
    other = Tokenizer(tokenizer.backend, **tokenizer.special_names)
    other.__dict__["_fast"] = None
    assert all((a == b).all() for a, b in zip(fast, other.encode_batch(texts), strict=True))
