"""Digest of a model's weights: tells whether updates belong to a base."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of weights: SHA-256 in hex over names, shapes and some values of each tensor.

    The values are up to 4,096 evenly spaced ones, rounded to bfloat16, so that the digest does not
    depend on the stored dtype. It distinguishes two trained models quickly. It does not detect a
    change of single weights.
    """
    return digest_of_samples((name, sample(tensor)) for name, tensor in tensors)


def exact_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of all bytes of the weights: SHA-256 in hex over names, shapes, dtypes and values.

    It tells two models apart that differ by a single small step of training.
    """
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def sample(tensor: Tensor) -> bytes:
    """Return the shape and some values of a tensor, for `digest_of_samples`."""
    flat = tensor.detach().flatten()
    some = flat[:: max(1, flat.numel() // 4096)].bfloat16().float().cpu().contiguous()
    return f" {tuple(tensor.shape)} ".encode() + some.numpy().tobytes()


def digest_of_samples(samples: Iterable[tuple[str, bytes]]) -> str:
    """Return the digest of tensors of which only the `sample` is left, in the same order."""
    total = hashlib.sha256()
    for name, values in samples:
        total.update(name.encode() + values)
    return total.hexdigest()
