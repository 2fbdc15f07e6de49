"""FLOPs against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_llm.models.accounting.flops import (
    attention_flops_per_token,
    flops_per_token,
    matrix_parameters,
    peak_flops,
)
from lit_llm.models.config import TransformerConfig
from lit_llm.models.presets import PRESETS
from lit_llm.models.transformer import Transformer


@pytest.mark.parametrize("preset", PRESETS)
def test_matrix_flops_equal_torchs_counter(preset: str) -> None:
    config = TransformerConfig.from_preset(preset)
    seq_len = 256
    with torch.device("meta"):
        model = Transformer(config)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, seq_len, dtype=torch.long))
    counts = counter.get_flop_counts()["Global"]
    attention = sum(v for op, v in counts.items() if "attention" in str(op) or "bmm" in str(op))
    assert (sum(counts.values()) - attention) / seq_len == 2 * matrix_parameters(config)


def test_causal_attention_is_half_and_windows_cut_it() -> None:
    config = TransformerConfig(num_layers=2, num_heads=4, hidden_size=64)
    full = 2 * 4 * 64 * 1000  # layers * 4 * heads * head_dim * seq_len
    assert attention_flops_per_token(config, 1000) == pytest.approx(full / 2, rel=2e-3)
    windowed = TransformerConfig(num_layers=2, num_heads=4, hidden_size=64, sliding_window=10)
    brute = sum(min(t + 1, 10) for t in range(1000)) / 1000 * 2 * 4 * 64
    assert attention_flops_per_token(windowed, 1000) == pytest.approx(brute)
    assert flops_per_token(config, 1000) == 6 * matrix_parameters(
        config
    ) + 3 * attention_flops_per_token(config, 1000)


def test_the_peak_of_an_unlisted_device_is_measured() -> None:
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert peak > 1e8 and "measured" in source
