"""Training blocks and evaluation windows against the token stream itself."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.build import Corpus
from lit_llm.corpus.output.shards import read_tokens
from lit_llm.data.blocks import IGNORE, EvaluationWindows, TokenBlocks


def test_blocks_are_the_stream(corpus: Path) -> None:
    folder = next(iter(Corpus.load(corpus).train_dirs.values()))
    tokens = read_tokens(folder).astype(np.int64)
    blocks = TokenBlocks([folder, folder], seq_len=100)
    per_copy = len(tokens) // 101
    assert len(blocks) == 2 * per_copy == sum(map(sum, blocks.chunk_sizes))
    for index in (0, 1, per_copy - 1, per_copy, 2 * per_copy - 1):
        start = index % per_copy * 101
        sample = blocks[index]
        assert sample["input_ids"].tolist() == tokens[start : start + 100].tolist()
        assert sample["labels"].tolist() == tokens[start + 1 : start + 101].tolist()
        assert sample["sample_id"] == index
    assert pickle.loads(pickle.dumps(blocks))[3]["labels"].tolist() == blocks[3]["labels"].tolist()


@given(seq_len=st.integers(1, 5000), ranks=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_windows_predict_every_token_once(corpus: Path, seq_len: int, ranks: int) -> None:
    loaded = Corpus.load(corpus)
    folder = next(iter(loaded.validation_dirs.values()))
    tokens, sizes = read_tokens(folder).astype(np.int64), loaded.tokenizer.token_bytes()
    windows = EvaluationWindows(folder, seq_len, sizes, num_samples_multiple=ranks)
    assert len(windows) % ranks == 0
    step = max(1, len(windows) // 50)
    if step > 1:  # spot checks where there are many
        indices = [
            *range(0, len(windows) - ranks - 1, step),
            *range(len(windows) - ranks - 1, len(windows)),
        ]
    else:
        indices = list(range(len(windows)))
    for index in indices:
        window = windows[index]
        labels = window["labels"]
        expected = tokens[index * seq_len + 1 : (index + 1) * seq_len + 1]
        assert labels[labels != IGNORE].tolist() == expected.tolist()
        assert (
            window["input_ids"][: len(expected)].tolist()
            == tokens[index * seq_len :][: len(expected)].tolist()
        )
        assert window["label_bytes"].sum() == sizes[expected].sum()


def test_windows_cover_the_text_to_the_byte(corpus: Path) -> None:
    loaded = Corpus.load(corpus)
    for name, folder in loaded.validation_dirs.items():
        windows = EvaluationWindows(folder, 512, loaded.tokenizer.token_bytes())
        total = sum(int(windows[i]["label_bytes"].sum()) for i in range(len(windows)))
        assert total == pytest.approx(loaded.validation_bytes[name])
