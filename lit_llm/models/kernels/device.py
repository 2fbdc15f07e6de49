"""Capabilities of this machine's devices."""

from __future__ import annotations

import shutil

import torch


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware computes bfloat16 products; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def has_float8(device: torch.device) -> bool:
    """Whether the device computes products of 8-bit floats.

    NVIDIA GPUs do from Ada and Hopper on. CPUs do too, slowly, for trying it out. AMD's MI300 has
    its own formats with a different largest number.
    """
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)
    return device.type == "cpu"


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: Triton on CUDA, a C++ compiler on CPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return has_triton()
    return device.type == "cpu" and any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest float type of ``device``: float64, but float32 on Apple's MPS."""
    return torch.float32 if device.type == "mps" else torch.float64
