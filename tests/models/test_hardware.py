"""One table of accelerators, found by the names that people and devices give."""

from __future__ import annotations

import pytest

from lit_llm.errors import UserError
from lit_llm.models.accounting.hardware import accelerator_of, accelerators, find_accelerator


def test_every_accelerator_is_read() -> None:
    for name, chip in accelerators().items():
        assert chip.name == name and 0.5 <= chip.attainable_flops / chip.peak_flops <= 1
        assert find_accelerator(name.upper().replace("-", " ")) is chip


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H800", "h800"), ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA A800-SXM4-80GB", "a800-80gb"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("Tesla T4", "t4"), ("NVIDIA B200", "b200"),
        ("NVIDIA A10G", "a10g"), ("Tesla V100-SXM2-16GB", "v100"), ("NVIDIA T400", None),
        ("Some Other Chip", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 " "NVL", None), ("NVIDIA H20", None),
    ],
)  # fmt: skip
def test_device_names(device: str, name: str | None) -> None:
    assert getattr(accelerator_of(device), "name", None) == name
    if name is not None:
        assert find_accelerator(device).name == name
    else:
        with pytest.raises(UserError, match="not a known accelerator"):
            find_accelerator(device)
