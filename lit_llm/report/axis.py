"""The x axis that all charts of a page share: its unit, range and labels."""

from __future__ import annotations

import numpy as np

from lit_llm.report.plots import Axis, nice_ticks, tick_labels
from lit_llm.report.reading import Run

# Least distance between labels as a share of the axis; "12.5M" takes 40 of 300 pixels
_APART = 0.11
_CLOCKS = ((3 * 3600.0, 3600.0, "h"), (180.0, 60.0, "min"), (0.0, 1.0, "s"))


def x_axis(run: Run) -> tuple[Axis | None, np.ndarray]:
    """The shared x axis, and the position of each row on it.

    The axis counts tokens if every row records them, else steps. A point has one position, whether
    the labels count tokens, steps or training time.
    """
    step = run.columns.get("step", np.array([]))
    tokens = run.columns.get("tokens", np.array([]))
    if not len(step):
        return None, step
    counted = len(tokens) == len(step) and bool(
        np.isfinite(tokens).all() and (np.diff(tokens) >= 0).all()
    )
    x = tokens if counted else step
    # Training begins at 0. If the file begins much later, its first rows are lost, and the axis
    # starts at the first row.
    low = 0.0 if x[-1] > 0 and x[0] >= 0 and (x[0] <= 0.5 * x[-1] or x[0] == x[-1]) else float(x[0])
    high = float(x[-1]) if x[-1] > low else low + 1.0
    by = {"tokens": _places("tokens", tokens, x, low, high)} if counted else {}
    by["step"] = _places("steps", step, x, low, high)
    seconds = seconds_in_training(run, tokens) if counted and low == 0 else None
    if seconds is not None:
        of, name = next((size, name) for least, size, name in _CLOCKS if seconds[-1] >= least)
        by["time"] = _places(name, seconds / of, x, low, high)
    return Axis("tokens" if counted else "step", low, high, by), x


def seconds_in_training(run: Run, tokens: np.ndarray) -> np.ndarray | None:
    """Seconds (n,) of training up to each row, computed from the token rate, without validation.

    None if fewer than two rows measured a rate.
    """
    rate = run.columns.get("tokens_per_second", np.array([]))
    known = np.flatnonzero(np.isfinite(rate) & (rate > 0))
    if len(known) < 2:
        return None
    if run.columns["step"][known[0]] == 1:  # the next row's mean rate includes the first step
        known = known[1:]
    # A rate is the mean since the previous measured row. Rows between two measurements take the
    # next rate.
    following = known[np.minimum(np.searchsorted(known, np.arange(len(rate))), len(known) - 1)]
    return np.cumsum(np.diff(tokens, prepend=0.0) / rate[following])


def _places(
    name: str, values: np.ndarray, x: np.ndarray, low: float, high: float
) -> list[tuple[float, str]]:
    """(position 0..1, label) for round ``values`` within the data, without overlap."""
    start = 0.0 if low == 0 else float(values[0])
    last = float(values[-1])
    if len(values) == 1 or last <= start:
        ticks = [start, last] if last > start else [last]
    else:
        ticks = nice_ticks(start, last, 5)
        if name in ("steps", "tokens"):
            ticks = [tick for tick in ticks if tick == round(tick)] or [start, last]
    known, places = values, x
    if start < values[0]:
        known, places = np.append(start, values), np.append(low, x)
    at = (np.interp(ticks, known, places) - low) / (high - low)
    labels = tick_labels(ticks)
    labels[-1] += f" {name}"
    kept: list[tuple[float, str]] = []
    for place, label in sorted(zip(at.tolist(), labels, strict=True), reverse=True):
        if not kept or kept[-1][0] - place >= _APART:
            kept.append((place, label))
    return kept[::-1]
