"""Rotary position embedding (arXiv:2104.09864) in Hugging Face's half-split layout.

Scaling beyond the training context follows transformers' ``modeling_rope_utils``; config.json uses
the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_llm.models.config import TransformerConfig
from lit_llm.models.kernels.eager import Rotation, call


def inverse_frequencies(size: int, theta: float, device: torch.device | None = None) -> Tensor:
    """theta^(-2i/size) for i in [0, size/2): float32, shape (size / 2,)."""
    return 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size))


def rope_cache(
    config: TransformerConfig, positions: Tensor, *, local: bool = False
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for ``positions`` (..., seq).

    Both are float32 (..., seq, rotary_size / 2). ``local`` selects the frequencies of windowed
    layers (``local_rope_theta``).
    """
    size, device = config.rotary_size, positions.device
    if local:
        assert config.local_rope_theta is not None
        frequencies, magnitude = inverse_frequencies(size, config.local_rope_theta, device), 1.0
    elif config.rope_scaling is None:
        frequencies, magnitude = inverse_frequencies(size, config.rope_theta, device), 1.0
    else:
        scale = _SCALINGS[config.rope_scaling["rope_type"]]
        frequencies, magnitude = scale(config, config.rope_scaling, positions)
    angles = positions[..., None].float() * frequencies
    return angles.cos() * magnitude, angles.sin() * magnitude


def for_each_channel(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Angles of all channels of a head, (..., seq, R), from those of the pairs, (..., seq, R/2).

    `apply_rope` gives the same bits with them, in half of the time on a CPU, if all channels are
    rotated (R = head_dim). It has no backward pass of its own for them.
    """
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + R/2) of ``x`` by the cached angles.

    ``x`` is (batch, heads, seq, head_dim) and the angles are (..., seq, R/2). The first R channels
    are rotated; the other channels stay as they are. The angles may also be `for_each_channel`.
    """
    if cos.shape[-1] == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
    if not torch.compiler.is_compiling():
        return call(Rotation, x, cos, sin)
    half = cos.shape[-1]
    x1, x2, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest), dim=-1)


def _linear(
    config: TransformerConfig, scaling: dict[str, Any], positions: Tensor
) -> tuple[Tensor, float]:
    """Divide the positions by the factor (arXiv:2306.15595)."""
    frequencies = inverse_frequencies(config.rotary_size, config.rope_theta, positions.device)
    return frequencies / scaling["factor"], 1.0


def _dynamic(
    config: TransformerConfig, scaling: dict[str, Any], positions: Tensor
) -> tuple[Tensor, float]:
    """Let the base grow with the longest position beyond the training context.

    This is the "dynamic NTK" of arXiv:2309.00071. In cached decoding, a key keeps the base of the
    step at which it was computed, as in transformers.
    """
    size, factor, trained = config.rotary_size, scaling["factor"], config.max_seq_len
    length = max(int(positions.max()) + 1, trained)
    theta = config.rope_theta * ((factor * length / trained) - (factor - 1)) ** (size / (size - 2))
    return inverse_frequencies(size, theta, positions.device), 1.0


def llama3_frequencies(
    config: TransformerConfig, scaling: dict[str, Any], positions: Tensor
) -> tuple[Tensor, float]:
    """Divide long wavelengths by the factor, keep short ones, blend between (Llama 3.1)."""
    frequencies = inverse_frequencies(config.rotary_size, config.rope_theta, positions.device)
    trained = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = trained * frequencies / (2 * math.pi)  # full turns within the training context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling["factor"] + kept * frequencies, 1.0


def _yarn(
    config: TransformerConfig, scaling: dict[str, Any], positions: Tensor
) -> tuple[Tensor, float]:
    """Blend as llama3 does, but linearly in the channel; sharpen attention (arXiv:2309.00071)."""
    size, theta, factor = config.rotary_size, config.rope_theta, scaling["factor"]
    trained = scaling["original_max_position_embeddings"]

    def channel(turns: float) -> float:
        """The channel whose frequency makes ``turns`` full turns within the training context."""
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.get("beta_fast") or 32), channel(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    channels = torch.arange(size // 2, dtype=torch.float32, device=positions.device)
    kept = 1 - ((channels - low) / (high - low or 0.001)).clamp(0, 1)
    frequencies = inverse_frequencies(size, theta, positions.device)
    frequencies = (1 - kept) * frequencies / factor + kept * frequencies
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        magnitude = _magnitude(factor, 1.0)
        if mscale and mscale_all:
            magnitude = _magnitude(factor, mscale) / _magnitude(factor, mscale_all)
    return frequencies, magnitude


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_SCALINGS: dict[
    str, Callable[[TransformerConfig, dict[str, Any], Tensor], tuple[Tensor, float]]
] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": llama3_frequencies,
    "yarn": _yarn,
}
