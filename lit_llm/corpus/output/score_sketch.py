"""Counts and quantiles of scores that add up from file to file.

The method is DDSketch (Masson et al. 2019, arXiv:1908.10693). A score falls into the bin of its
sign and its logarithm, so that a quantile is within 0.5% of its value whatever the range, and the
bins of several files are added name by name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

_BASE = 1.01
_SMALLEST = 1e-9  # what is nearer to 0 counts as 0
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def sketch(scores: pa.Array) -> dict[str, Any]:
    """Of an array of numbers.

    Returns:
        "documents" with a score, "missing" those without, "total" of the scores, "bins": number of
        a bin -> scores in it, and "lowest" and "highest" where there is a score. All JSON-able.
    """
    values = scores.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    found = {
        "documents": len(values), "missing": scores.null_count, "total": float(values.sum()),
        "bins": {},
    }  # fmt: skip
    if len(values):
        found |= {"lowest": float(values.min()), "highest": float(values.max())}
        size = np.maximum(np.abs(values), _SMALLEST)
        steps = np.ceil(np.log(size / _SMALLEST) / math.log(_BASE))
        numbers, counts = np.unique(np.sign(values) * steps, return_counts=True)
        found["bins"] = {
            str(int(number)): int(count) for number, count in zip(numbers, counts, strict=True)
        }
    return found


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sketch of the scores of both."""
    both = {key: one[key] + other[key] for key in ("documents", "missing", "total")}
    bins = dict(one["bins"])
    for number, count in other["bins"].items():
        bins[number] = bins.get(number, 0) + count
    parts = [part for part in (one, other) if part["documents"]]
    if parts:
        both["lowest"] = min(part["lowest"] for part in parts)
        both["highest"] = max(part["highest"] for part in parts)
    return {**both, "bins": bins}


def described(sketch: dict[str, Any]) -> dict[str, Any]:
    """What the data card says of a sketch: counts, extremes, mean and quantiles."""
    card = {"documents": sketch["documents"], "missing": sketch["missing"]}
    if not sketch["documents"]:
        return card
    lowest, highest = sketch["lowest"], sketch["highest"]
    ordered = sorted((int(number), count) for number, count in sketch["bins"].items())
    numbers = np.array([number for number, _ in ordered])
    upto = np.cumsum([count for _, count in ordered])
    quantiles = {}
    for share in QUANTILES:
        # The score of this rank lies in the first bin that reaches it.
        number = numbers[np.searchsorted(upto, share * (sketch["documents"] - 1), side="right")]
        value = 2 * _SMALLEST * _BASE ** abs(number) / (1 + _BASE) if number else 0.0
        quantiles[f"{share:g}"] = _rounded(min(max(math.copysign(value, number), lowest), highest))
    mean = _rounded(sketch["total"] / sketch["documents"])
    return card | {
        "lowest": _rounded(lowest), "highest": _rounded(highest), "mean": mean,
        "quantiles": quantiles,
    }  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
