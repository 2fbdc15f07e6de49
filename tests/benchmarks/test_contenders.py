"""The shared parts of the quality benchmark: what it scores must be what it says."""

from __future__ import annotations

import math

import harness
import numpy as np
import pytest
import torch
from bpb import bits_per_byte
from hypothesis import given, settings
from hypothesis import strategies as st

VOCAB = 11
TOKEN_BYTES = np.array([0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7], np.int32)  # 0 is the separator


def bigram(tokens: torch.Tensor) -> torch.Tensor:
    """Scores that depend on the token before: a shift by one in the targets would show."""
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
    return table[tokens]


@settings(max_examples=50, deadline=None)
@given(
    stream=st.lists(st.integers(1, VOCAB - 1), min_size=2, max_size=150).map(
        lambda ids: np.array([0, *ids], np.uint16)
    ),
    seq_len=st.sampled_from([4, 16, 64]),
    batch_size=st.sampled_from([1, 3]),
)
def test_every_token_counts_once_whatever_the_windows(
    stream: np.ndarray, seq_len: int, batch_size: int
) -> None:
    ids = torch.from_numpy(stream.astype(np.int64))
    nats = torch.nn.functional.cross_entropy(bigram(ids[:-1]), ids[1:], reduction="sum").item()
    expected = nats / math.log(2) / TOKEN_BYTES[stream].sum()
    assert bits_per_byte(bigram, stream, TOKEN_BYTES, seq_len, batch_size) == pytest.approx(
        expected, rel=1e-5
    )


def test_separators_cost_nothing_and_weigh_nothing() -> None:
    stream = np.array([0, 4, 5, 0, 0, 6], np.uint16)

    def certain(tokens: torch.Tensor) -> torch.Tensor:
        """Sure that no separator ever comes, undecided about the rest."""
        scores = torch.zeros(*tokens.shape, VOCAB)
        scores[..., 0] = -1e9
        return scores

    assert bits_per_byte(certain, stream, TOKEN_BYTES) == pytest.approx(
        3 * math.log2(VOCAB - 1) / (2 + 2 + 3)
    )


def test_every_call_has_one_shape() -> None:
    shapes = set()

    def seen(tokens: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(tokens.shape))
        return bigram(tokens)

    bits_per_byte(seen, np.arange(100) % VOCAB, TOKEN_BYTES, 8, 4)
    assert shapes == {(4, 8)}


def test_an_epoch_has_every_block_once_with_targets_one_ahead() -> None:
    stream = np.arange(12 * 5 + 1, dtype=np.uint16)
    source = harness.batches(stream, 3, 5, seed=1)
    epochs = [[next(source) for _ in range(4)] for _ in range(2)]
    orders = []
    for epoch in epochs:
        assert all(torch.equal(targets, inputs + 1) for inputs, targets in epoch)
        starts = torch.cat([inputs[:, 0] for inputs, _ in epoch]).tolist()
        assert sorted(starts) == list(range(0, 60, 5))
        orders.append(starts)
    assert orders[0] != orders[1]
    again = harness.batches(stream, 3, 5, seed=1)
    assert torch.equal(next(again)[0], epochs[0][0][0])
