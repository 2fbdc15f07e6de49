"""Accelerators: peak rates, memory, links and prices, from ``hardware.csv``."""

from __future__ import annotations

import csv
import difflib
import functools
from dataclasses import dataclass
from pathlib import Path

from lit_llm.errors import UserError

_ATTAINABLE = 0.85
"""Share of the peak that the best matrix product reaches, where nobody has measured it: between the
measured A100 (0.87) and H100 (0.80), see ``attainable_tflops`` in hardware.csv."""

_PCIE = 64
"""GB/s each way of the fastest PCIe (generation 5, 16 lanes)."""


@dataclass(frozen=True)
class Accelerator:
    """One kind of GPU or TPU. Rates are a second, of one chip, dense (no sparsity)."""

    name: str
    peak_flops: float
    """Of bfloat16 products, float16 where there are none in bfloat16."""
    fp8_flops: float | None
    attainable_flops: float
    """The best product that was measured, in the same type."""
    memory_bytes: float
    memory_rate: float
    """Bytes read or written."""
    linked: bool
    """Whether the GPUs of a node exchange data directly, faster than through PCIe."""
    usd_low: float | None
    """Dollars an hour: spot or the cheapest provider."""
    usd: float | None
    """Dollars an hour, on demand, typical."""
    price_source: str

    @property
    def ridge(self) -> float:
        """FLOPs that take as long as one byte from memory: what a kernel must do per byte to be
        bound by compute."""
        return self.peak_flops / self.memory_rate


@functools.cache
def accelerators() -> dict[str, Accelerator]:
    """All known ones by name."""
    with open(Path(__file__).with_name("hardware.csv"), encoding="utf-8", newline="") as file:
        return {row["name"]: _read(row) for row in csv.DictReader(file)}


def _read(row: dict[str, str]) -> Accelerator:
    def number(key: str, scale: float = 1.0) -> float | None:
        return float(row[key]) * scale if row[key] else None

    peak, memory, rate = (
        number("dense_tflops", 1e12),
        number("memory_gb", 1e9),
        number("memory_tb_s", 1e12),
    )
    assert peak is not None and memory is not None and rate is not None
    return Accelerator(
        row["name"], peak, number("fp8_tflops", 1e12), number(
            "attainable_tflops", 1e12
        ) or _ATTAINABLE * peak,
        memory, rate, (number("node_gb_s") or 0) > _PCIE, number("usd_low"), number("usd_typical"),
        row[
            "price_source"
        ],
    )  # fmt: skip


_MAKERS = frozenset(["nvidia", "tesla", "geforce", "amd"])
_OTHERS = frozenset(
    ["laptop", "max", "nvl", "d"]
)  # behind a name: another product, such as a laptop's


def find_accelerator(name: str) -> Accelerator:
    """The accelerator called ``name``, in any case and spelling of blanks.

    A part of a name between hyphens is enough if one accelerator alone has it: "4090". A part of a
    word is not, because other accelerators are called so: an H20 is no H200 and an L4 no L40S. A
        name
    that begins with its maker's is read as a driver's: "NVIDIA A100-SXM4-80GB".

    Raises:
        UserError: no such accelerator, or several; names the nearest.
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
    """The accelerator that a CUDA device's name ("NVIDIA H100 80GB HBM3") is, or None."""
    words = set(device_name.lower().replace("-", " ").split())
    if words & _OTHERS:
        return None
    matches = [
        accelerator for name, accelerator in accelerators().items() if words >= set(name.split("-"))
    ]
    return max(matches, key=lambda accelerator: len(accelerator.name), default=None)
