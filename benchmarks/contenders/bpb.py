"""Bits per byte on the validation stream: the one evaluation that every contender is scored
with."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def bits_per_byte(
    logits: Callable[[Tensor], Tensor],
    stream: np.ndarray,
    token_bytes: np.ndarray,
    seq_len: int = 512,
    batch_size: int = 8,
) -> float:
    """Score a model on a packed stream `[eos doc1 eos doc2 ...]`, the form it is trained on.

    The stream is cut into windows of seq_len + 1 tokens that overlap by one, so each token but the
    first is predicted exactly once. Separators stand for no byte of text: they are context, their
    own loss is not counted.

    Args:
        logits: tokens (batch, seq) int64 -> scores of the next token (batch, seq, vocab). Every
            call has batch = batch_size and seq = seq_len (the last ones are padded, the padding is
            not scored), so that a compiled model sees one shape. The model must be causal.
        stream: (tokens,) integers.
        token_bytes: (vocab,) UTF-8 bytes that each token stands for, 0 for special tokens.

    Returns:
        The negative log-likelihood of the counted tokens in bits, over their bytes.
    """
    targets_total = len(stream) - 1
    windows = math.ceil(targets_total / (seq_len * batch_size)) * batch_size
    padded = np.zeros(windows * seq_len + 1, np.int64)
    padded[: len(stream)] = stream
    counted = token_bytes[padded[1:]].astype(np.int64)
    counted[targets_total:] = 0
    inputs = torch.from_numpy(padded[:-1].reshape(windows, seq_len))
    targets = torch.from_numpy(padded[1:].reshape(windows, seq_len))
    sizes = torch.from_numpy(counted.reshape(windows, seq_len))

    nats = 0.0
    for start in range(0, windows, batch_size):
        rows = slice(start, start + batch_size)
        scores = logits(inputs[rows]).float()
        losses = functional.cross_entropy(
            scores.flatten(0, 1), targets[rows].flatten(), reduction="none"
        )
        nats += losses[sizes[rows].flatten() > 0].sum(dtype=torch.float64).item()
    return nats / math.log(2) / int(counted.sum())
