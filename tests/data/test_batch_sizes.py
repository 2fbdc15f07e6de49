"""Micro-batches and accumulation, from the tokens of a step and the number of processes."""

from __future__ import annotations

import logging
import re

import pytest

from lit_llm import PretrainDataModule, UserError


def derived(batch: int | None, micro: int, devices: int) -> PretrainDataModule:
    data = PretrainDataModule(seq_len=256, micro_batch_size=micro, global_batch_tokens=batch)
    data.world_size = devices
    data.derive_accumulation()
    return data


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "size", "accumulation"),
    [
        (8192, 32, 1, 32, 1),  # the quickstart
        (8192, 32, 2, 16, 1),  # and on two devices, where it was refused
        (8192, 12, 1, 8, 4),
        (256 * 24, 10, 2, 6, 2),
        (256 * 14, 5, 2, 1, 7),  # a prime number of rows
        (256 * 3, 8, 3, 1, 1),
        (None, 5, 3, 5, 1),
    ],
)
def test_the_largest_micro_batch_that_divides(
    batch: int | None, micro: int, devices: int, size: int, accumulation: int
) -> None:
    data = derived(batch, micro, devices)
    assert (data.micro_batch_size, data.accumulation) == (size, accumulation)
    assert data.global_batch_tokens == (batch or 256 * micro * devices)
    assert size * accumulation * devices * 256 == data.global_batch_tokens


def test_a_smaller_micro_batch_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        derived(8192, 32, 2)
    assert "micro-batches of 16 rows, not data.micro_batch_size=32" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        derived(8192, 32, 1)
    assert not caplog.text


@pytest.mark.parametrize(
    ("batch", "devices", "said"),
    [
        (8192, 3, "seq_len * devices = 256 * 3 = 768; nearest: 7680 or 8448"),
        (8000, 1, "seq_len * devices = 256 * 1 = 256; nearest: 7936 or 8192"),
        (256, 2, "seq_len * devices = 256 * 2 = 512; nearest: 512"),
    ],
)
def test_a_batch_that_no_micro_batch_divides(batch: int, devices: int, said: str) -> None:
    with pytest.raises(UserError, match=f"data.global_batch_tokens={batch} .*{re.escape(said)}$"):
        derived(batch, 32, devices)
