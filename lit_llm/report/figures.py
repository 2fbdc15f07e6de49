"""Charts of a run: which columns share a chart, its scale, and the note under it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from markupsafe import Markup

from lit_llm.io.numbers import number, percent
from lit_llm.report import marks
from lit_llm.report.plots import Axis, Series, line_chart, smooth
from lit_llm.report.reading import Run

STANDARD = {"step", "tokens", "train_loss", "val_loss", "val_bits_per_byte", "lr", "grad_norm"} | {
    "tokens_per_second", "mfu", "data_wait", "memory_gb",
}  # fmt: skip
BY_SOURCE, LOSS_BY_SOURCE = "val_bits_per_byte/", "val_loss/"
# Smoothing levels that the page offers: share of the rows in each mean.
SMOOTHING = {"smooth-little": 0.02, "smooth-much": 0.1}
_OTHER_COLOUR = 7  # colour index of another run's curves


def sources_table(run: Run) -> list[dict[str, str]]:
    """One row per validation source: first, best and last bits per byte, and last loss.

    The loss is in nats per token.
    """
    rows = []
    for name in run.columns:
        if name.startswith(BY_SOURCE):
            source = name.removeprefix(BY_SOURCE)
            values, loss = run.finite(name), run.finite(LOSS_BY_SOURCE + source)
            if len(values):
                shown = [f"{v:.3f}" for v in (values[0], values.min(), values[-1])]
                row = dict(zip(("first", "best", "last"), shown, strict=True))
                rows.append(
                    {
                        "source": source,
                        **row,
                        "loss": f"{loss[-1]:.3f}" if len(loss) else "—",
                    }
                )
    return rows


def figure_sections(
    run: Run, axis: Axis, x: np.ndarray, other: Run | None = None
) -> list[dict[str, Any]]:
    """Sections with charts: id, title, charts (HTML), and whether the charts are small.

    Args:
        run: the run.
        axis: the shared x axis.
        x: position (n,) of each row on the axis.
        other: an earlier run, whose curves are drawn dashed.
    """
    happened = marks.places(marks.marks(run), run, x)

    def chart(
        title: str,
        unit: str,
        series: list[Series],
        *,
        twin: bool = False,
        log: bool = False,
        **options: Any,
    ) -> Markup:
        """Draw a chart; ``twin`` adds a copy with a log scale, which the reader can switch to."""
        options["marks"] = happened
        if not twin:
            return line_chart(title, unit, series, axis, log=log, **options)
        return line_chart(title, unit, series, axis, css="linear", **options) + line_chart(
            title, unit, series, axis, css="logarithmic", log=True, **options
        )

    def one(column: str, label: str = "", colour: int = 0) -> Series:
        rows = run.measured(column)
        values = run.columns.get(column, np.array([]))[rows]
        return Series(label or column, x[rows], run.columns["step"][rows], values, colour)

    def noisy(column: str, label: str = "mean", colour: int = 0) -> list[Series]:
        """The raw values and their running means; rough raw values are drawn faint."""
        raw = one(column, label, colour)
        finite = raw.y[np.isfinite(raw.y)]
        rough = len(finite) > 1 and float(np.abs(np.diff(finite)).sum()) > 4 * float(np.ptp(finite))
        means = {css: smooth(raw.y, share) for css, share in SMOOTHING.items()}
        different = {
            css: mean
            for css, mean in means.items()
            if not np.array_equal(mean[np.isfinite(raw.y)], finite)
        }
        # If the raw values are smooth, the lightly smoothed mean looks the same and is left out.
        faint = rough and "smooth-little" in different
        plain = "value" if label == "mean" else label
        return [
            replace(raw, label="raw" if faint else plain, faint=faint, css="raw"),
            *(
                replace(raw, label=label if faint else "mean", y=mean, derived=True, css=css)
                for css, mean in different.items()
                if faint or css != "smooth-little"
            ),
        ]

    def earlier(column: str) -> list[Series]:
        """The other run's curve within the range of this run's axis."""
        rows = other.measured(column) if other else np.array([], dtype=int)
        if other is None or not len(rows) or axis.name not in other.columns:
            return []
        at = other.columns[axis.name]
        rows = rows[(at[rows] >= axis.low) & (at[rows] <= axis.high)]
        y = other.columns[column]
        y = smooth(y, SMOOTHING["smooth-little"])[rows] if column == "train_loss" else y[rows]
        name = f"{other.name}: {column.replace('_', ' ')}"
        step = other.columns["step"][rows]
        return [Series(name, at[rows], step, y, _OTHER_COLOUR, derived=True, dashed=True)]

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
    faint = "Faint: as logged. Solid: mean of the rows around. " if loss[0].faint else ""
    if other:
        faint += f"Dashed: {other.name}. "
    total = one("val_bits_per_byte", "all" if by_source else "validation", 1)
    learning = [
        chart(
            "Loss", "nats per token",
            [*loss, one("val_loss", "validation", 1), *earlier("train_loss"), *earlier("val_loss")],
            twin=True, note=faint + best("val_loss"), height=270,
        ),
        chart(
            "Validation", "bits per byte", [*by_source, total, *earlier("val_bits_per_byte")],
            twin=True, note=best("val_bits_per_byte"), height=270,
        ),
    ]  # fmt: skip
    optimisation = [
        chart("Learning rate", "", [one("lr", "rate")], zero=True, note=of("lr", "Highest {1}.")),
        chart(
            "Gradient norm", "before clipping", noisy("grad_norm"), zero=not wide_grad,
            log=wide_grad, note=of("grad_norm", "Median {0}, highest {1}."),
        ),
    ]  # fmt: skip
    speed = [
        chart(
            "Throughput", "tokens per second", noisy("tokens_per_second"), zero=True,
            note=of("tokens_per_second", "Median {0}."),
        ),
        chart(
            "Model FLOPs utilisation", "of the peak", noisy("mfu"), zero=True, as_percent=True,
            note=of("mfu", "Median {0}.", percent),
        ),
        chart(
            "Waiting for data", "share of the step", noisy("data_wait"), zero=True, as_percent=True,
            note=of("data_wait", "Median {0}, highest {1}.", percent),
        ),
        chart(
            "Memory", "GB", [one("memory_gb", "peak")], zero=True,
            note=of("memory_gb", "Highest {1} GB.")
        ),
    ]  # fmt: skip
    others = [
        name
        for name in run.columns
        if name not in STANDARD
        and not name.startswith((BY_SOURCE, LOSS_BY_SOURCE))
        and len(run.measured(name))
    ]
    sections: list[dict[str, Any]] = [
        {"id": "learning", "title": "Learning", "charts": learning},
        {"id": "optimisation", "title": "Optimisation", "charts": optimisation},
        {"id": "speed", "title": "Speed", "charts": speed},
    ]
    if others:
        charts = [chart(name, "", noisy(name), height=120) for name in others]
        sections.append({"id": "others", "title": "Other metrics", "charts": charts, "small": True})
    return sections
