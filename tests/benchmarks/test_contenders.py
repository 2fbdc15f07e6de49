"""The shared parts of the quality benchmark: what it scores must be what it says."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import ablation
import harness
import numpy as np
import pytest
import torch
from bpb import bits_per_byte
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import NONE, parts_of

from lit_llm.models.config import TransformerConfig

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


def test_variants_are_each_part_alone_and_left_out() -> None:
    made = ablation.variants(num_layers=4)
    for name, part in parts_of(4).items():
        alone = made[f"only {name}"]
        assert {key: alone[key] for key in part} == part
        assert alone == {**NONE, **part}
        assert made[f"without {name}"] == {**made["all"], **{key: NONE[key] for key in part}}
    assert len(made) == 2 + 2 * len(parts_of(4))
    for fields in made.values():
        TransformerConfig.from_dict({"preset": "nano-5m", **fields})


def test_the_table_has_the_median_and_the_farthest_seed() -> None:
    runs = [
        {"variant": "all", "size": "small", "budget": "tokens", "bits_per_byte": score}
        for score in (1.25, 1.2, 1.5)
    ]
    assert ablation.table(runs).splitlines()[1].split() == ["all", "1.2500", "+-", "0.2500"]


class Counting:
    """A contender that only counts."""

    settings: dict[str, object] = {}
    parameters = 0

    def __init__(self) -> None:
        self.seen: list[float] = []

    def step(
        self, inputs: torch.Tensor, targets: torch.Tensor, step: int, progress: float
    ) -> float:
        self.seen.append(progress)
        return 0.0

    def reset(self) -> None:
        self.seen.clear()

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return bigram(tokens)


def test_a_number_of_tokens_is_trained_on_whatever_the_time(tmp_path: Path) -> None:
    stream = np.arange(1, 200, dtype=np.uint16) % (VOCAB - 1) + 1
    counting, out = Counting(), tmp_path / "out.json"
    args = argparse.Namespace(
        tokens_per_step=8, seq_len=4, seed=0, tokens=35.0, seconds=0.0, out=out
    )
    harness.run(counting, harness.Prepared(stream, stream, TOKEN_BYTES), args)
    assert counting.seen == [0, 0.25, 0.5, 0.75]
    assert json.loads(out.read_text())["tokens"] == 32
