"""The plots of a run: which columns go together, on which scale, and what is said under each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lit_llm.report.plots import (
    SMOOTHED_SHARE,
    Axis,
    Series,
    line_chart,
    nice_ticks,
    number,
    percent,
    smooth,
    tick_labels,
)
from lit_llm.report.reading import Run

STANDARD = {"step", "tokens", "train_loss", "val_loss", "val_bits_per_byte", "lr", "grad_norm"} | {
    "tokens_per_second", "mfu", "data_wait", "memory_gb",
}  # fmt: skip
BY_SOURCE = "val_bits_per_byte/"


def x_axis(run: Run) -> tuple[Axis | None, np.ndarray]:
    """The shared x axis, and where on it each row lies: tokens when every row has them, steps otherwise."""
    step = run.columns.get("step", np.array([]))
    tokens = run.columns.get("tokens", np.array([]))
    if not len(step):
        return None, step
    counted = len(tokens) == len(step) and bool(
        np.isfinite(tokens).all() and (np.diff(tokens) >= 0).all()
    )
    x = tokens if counted else step
    low = 0.0 if x[0] >= 0 and x[0] <= 0.2 * x[-1] else float(x[0])
    high = float(x[-1]) if x[-1] > low else low + 1.0

    def places(name: str, values: np.ndarray, start: float) -> list[tuple[float, str]]:
        ticks = nice_ticks(start, max(float(values[-1]), start + 1.0), 5)
        at = (
            np.interp(ticks, np.append(start, values), np.append(low, x))
            if values is not x
            else np.array(ticks)
        )
        labels = tick_labels(ticks)
        labels[-1] += f" {name}"
        return [
            (float(a), label) for a, label in zip((at - low) / (high - low), labels, strict=True)
        ]

    by = {"tokens": places("tokens", tokens, low)} if counted else {}
    by["step"] = places("steps", step, 0.0 if low == 0 else float(step[0]))
    return Axis("tokens" if counted else "step", low, high, by), x


def figure_sections(run: Run, axis: Axis, x: np.ndarray) -> list[dict[str, Any]]:
    """The sections with plots: id, title, charts (HTML) and whether these are small."""

    def one(column: str, label: str = "", colour: int = 0) -> Series:
        rows = run.measured(column)
        values = run.columns.get(column, np.array([]))[rows]
        return Series(label or column, x[rows], run.columns["step"][rows], values, colour)

    def noisy(column: str, label: str = "mean", colour: int = 0) -> list[Series]:
        """The raw values faint under their running mean; one plain line where there is no noise to average away."""
        raw = one(column, label, colour)
        finite, mean = raw.y[np.isfinite(raw.y)], smooth(raw.y)
        rough = len(finite) > 1 and float(np.abs(np.diff(finite)).sum()) > 4 * float(np.ptp(finite))
        if not rough or np.array_equal(mean[np.isfinite(raw.y)], finite):
            return [replace(raw, label="value" if label == "mean" else label)]
        return [replace(raw, label="raw", faint=True), replace(raw, y=mean, derived=True)]

    def best(column: str) -> str:
        rows = run.measured(column)
        values = run.columns.get(column, np.array([]))[rows]
        if not np.isfinite(values).any():
            return ""
        row = rows[np.nanargmin(np.where(np.isfinite(values), values, np.nan))]
        return f"Best {number(run.columns[column][row], 4)} at {number(x[row])} {axis.name}."

    def of(column: str, sentence: str, shown: Callable[[float], str] = number) -> str:
        values = run.finite(column)
        return (
            sentence.format(*(shown(float(v)) for v in (np.median(values), values.max())))
            if len(values)
            else ""
        )

    sources = [name for name in run.columns if name.startswith(BY_SOURCE)]
    by_source = [one(name, name.removeprefix(BY_SOURCE), 2 + i) for i, name in enumerate(sources)]
    grad = run.finite("grad_norm")
    wide_grad = (
        len(grad) > 0 and float(grad.min()) > 0 and float(grad.max()) > 30 * float(grad.min())
    )
    loss = noisy("train_loss", "training")
    faint = (
        f"Faint: as logged. Solid: mean over {SMOOTHED_SHARE:.0%} of the rows. "
        if len(loss) > 1
        else ""
    )
    total = one("val_bits_per_byte", "all" if by_source else "validation", 1)
    tall: dict[str, Any] = {"height": 270}
    learning = [
        line_chart(
            "Loss", "nats per token", [*loss, one("val_loss", "validation", 1)], axis,
            note=faint + best("val_loss"), **tall,
        ),
        line_chart(
            "Validation", "bits per byte", [*by_source, total], axis, note=best("val_bits_per_byte"), **tall
        ),
    ]  # fmt: skip
    optimisation = [
        line_chart("Learning rate", "", [one("lr", "rate")], axis, zero=True, note=of("lr", "Highest {1}.")),
        line_chart(
            "Gradient norm", "before clipping", noisy("grad_norm"), axis, zero=not wide_grad, log=wide_grad,
            note=of("grad_norm", "Median {0}, highest {1}."),
        ),
    ]  # fmt: skip
    speed = [
        line_chart(
            "Throughput", "tokens per second", noisy("tokens_per_second"), axis, zero=True,
            note=of("tokens_per_second", "Median {0}."),
        ),
        line_chart(
            "Model FLOPs utilisation", "of the peak", noisy("mfu"), axis, zero=True, as_percent=True,
            note=of("mfu", "Median {0}.", percent),
        ),
        line_chart(
            "Waiting for data", "share of the step", noisy("data_wait"), axis, zero=True, as_percent=True,
            note=of("data_wait", "Median {0}, highest {1}.", percent),
        ),
        line_chart(
            "Memory", "GB", [one("memory_gb", "peak")], axis, zero=True, note=of("memory_gb", "Highest {1} GB.")
        ),
    ]  # fmt: skip
    others = [
        name
        for name in run.columns
        if name not in STANDARD and name not in sources and len(run.measured(name))
    ]
    sections: list[dict[str, Any]] = [
        {"id": "learning", "title": "Learning", "charts": learning},
        {"id": "optimisation", "title": "Optimisation", "charts": optimisation},
        {"id": "speed", "title": "Speed", "charts": speed},
    ]
    if others:
        charts = [line_chart(name, "", noisy(name), axis, height=120) for name in others]
        sections.append({"id": "others", "title": "Other metrics", "charts": charts, "small": True})
    return sections
