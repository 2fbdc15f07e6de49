"""Corrections of p-values for the number of claims that are made together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (n,) adjusted by Holm's method: the chance of even one false claim is kept.

    The k-th smallest of n is multiplied by n - k + 1 (Holm 1979, Scandinavian Journal of
    Statistics 6:65).
    """
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    return _in_place(np.minimum(1.0, np.maximum.accumulate(scaled)), order)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """p-values (n,) adjusted so that the expected share of false claims among all is kept.

    The k-th smallest of n is multiplied by n / k (Benjamini, Hochberg 1995, Journal of the Royal
    Statistical Society B 57:289).
    """
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * len(p) / np.arange(1, len(p) + 1)
    smallest_from_here = np.minimum.accumulate(scaled[::-1])[::-1]
    return _in_place(np.minimum(1.0, smallest_from_here), order)


CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "holm": holm,
    "bh": benjamini_hochberg,
    "none": lambda p: np.asarray(p, float),
}


def _in_place(adjusted: np.ndarray, order: np.ndarray) -> np.ndarray:
    found = np.empty_like(adjusted)
    found[order] = adjusted
    return found
