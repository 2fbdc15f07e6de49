"""Accelerators: peak rates, memory, links and prices, read from ``hardware.csv``."""

from __future__ import annotations

import csv
import difflib
import functools
from dataclasses import dataclass
from pathlib import Path

from lit_llm.errors import UserError

_ATTAINABLE = 0.85
"""Share of the peak that the best matrix product reaches, for chips without a measurement.

It lies between the measured A100 (0.87) and H100 (0.80), see ``attainable_tflops`` in hardware.csv.
"""

_PCIE = 64
"""GB/s in each direction of the fastest PCIe (generation 5, 16 lanes)."""


@dataclass(frozen=True)
class Accelerator:
    """One kind of GPU or TPU. Rates are per second, for one chip, dense (no sparsity)."""

    name: str
    peak_flops: float
    """Peak of bfloat16 products; of float16 products if the chip has no bfloat16."""
    fp8_flops: float | None
    fp32_share: float
    """Rate of float32 products as a share of the peak.

    Half with bfloat16's hardware: TF32 on NVIDIA's, as ``set_float32_matmul_precision("high")``
    takes it. An eighth on chips before it, which have no TF32 (V100: 15.7 of 125 TFLOP/s; T4: 8.1
    of 65).
    """
    attainable_flops: float
    """Best measured rate of a product, in the same dtype."""
    memory_bytes: float
    memory_rate: float
    """Bytes read or written per second."""
    linked: bool
    """Whether the GPUs of a node exchange data over a direct link, faster than PCIe."""
    usd_low: float | None
    """Dollars an hour: spot price or cheapest provider."""
    usd: float | None
    """Dollars an hour: typical on-demand price."""
    price_source: str

    @property
    def ridge(self) -> float:
        """FLOPs that take as long as one byte from memory.

        A kernel that computes more per byte is bound by compute, not by memory.
        """
        return self.peak_flops / self.memory_rate


@functools.cache
def accelerators() -> dict[str, Accelerator]:
    """Return all known accelerators by name."""
    with open(Path(__file__).with_name("hardware.csv"), encoding="utf-8", newline="") as file:
        return {row["name"]: _read(row) for row in csv.DictReader(file)}


def _read(row: dict[str, str]) -> Accelerator:
    def number(key: str, scale: float = 1.0) -> float | None:
        return float(row[key]) * scale if row[key] else None

    peak, memory = number("dense_tflops", 1e12), number("memory_gb", 1e9)
    rate = number("memory_tb_s", 1e12)
    assert peak is not None and memory is not None and rate is not None
    return Accelerator(
        name=row["name"],
        peak_flops=peak,
        fp8_flops=number("fp8_tflops", 1e12),
        fp32_share=1 / 2 if row["precision"] == "bf16" else 1 / 8,
        attainable_flops=number("attainable_tflops", 1e12) or _ATTAINABLE * peak,
        memory_bytes=memory,
        memory_rate=rate,
        linked=(number("node_gb_s") or 0) > _PCIE,
        usd_low=number("usd_low"),
        usd=number("usd_typical"),
        price_source=row["price_source"],
    )


_MAKERS = frozenset(["nvidia", "tesla", "geforce", "amd"])
# Words after a name that mark a different product, such as a laptop GPU.
_OTHERS = frozenset(["laptop", "max", "nvl", "d"])


def find_accelerator(name: str) -> Accelerator:
    """Return the accelerator called ``name``, in any case, with blanks, hyphens or underscores.

    Hyphens separate the parts of a name. One part is enough if only one accelerator has it: "4090".
    A fragment of a part is not enough, because other accelerators have similar names: an H20 is no
    H200 and an L4 no L40S. A name that begins with the manufacturer is read like a driver's name:
    "NVIDIA A100-SXM4-80GB".

    Raises:
        UserError: no such accelerator, or several; the message names the nearest.
    """
    known = accelerators()
    words = name.lower().replace("_", " ").replace("-", " ").split()
    wanted = "-".join(words)
    bare = "".join(words)
    for key in known:
        if key.replace("-", "") == bare:
            return known[key]
    if words and words[0] in _MAKERS and (device := accelerator_of(name)):
        return device
    near = [key for key in known if words and set(words) <= set(key.split("-"))]
    if len(near) == 1:
        return known[near[0]]
    near = near or difflib.get_close_matches(wanted, known, n=4, cutoff=0.3) or list(known)
    raise UserError(f"gpu={name}: not a known accelerator; nearest are {', '.join(near)}")


def accelerator_of(device_name: str) -> Accelerator | None:
    """Return the accelerator for a CUDA device name ("NVIDIA H100 80GB HBM3"), or None."""
    words = set(device_name.lower().replace("-", " ").split())
    if words & _OTHERS:
        return None
    matches = [
        accelerator for name, accelerator in accelerators().items() if words >= set(name.split("-"))
    ]
    return max(matches, key=lambda accelerator: len(accelerator.name), default=None)
