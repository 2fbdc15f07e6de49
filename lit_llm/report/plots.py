"""Line charts as HTML around an inline SVG, with gaps at missing values and without lost extremes.

The SVG holds only lines and is stretched to the width of the page. All text is HTML, so it keeps
its size on a phone and in print. A chart is complete without JavaScript; ``script.js`` adds the
values under the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from lit_llm.io.numbers import UNITS, number, percent

WIDTH = 1000  # width of the drawing in SVG units, stretched by the browser
PADDING = 8  # pixels between the outermost values and the frame, so that lines are not cut in half
BUCKETS = 250  # slices of up to 4 points each: about two pixels wide in the widest chart
SMOOTHED_SHARE = 0.02  # share of the rows in the mean that is drawn over a faint line
LARGEST = 1e100  # arithmetic on ranges overflows beyond; such values are treated as infinite
COLOURS = 8  # --s0 to --s7 in style.css; further series repeat them dashed


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        x, step, y: (n,) float64, x increasing. A y that is not finite makes a gap.
        faint: raw values that are drawn behind their mean.
        derived: a mean; its exceptional values are not reported a second time.
        dashed: another run's line.
        css: classes of the line and its legend entry, with which the page shows and hides it.
    """

    label: str
    x: np.ndarray
    step: np.ndarray
    y: np.ndarray
    colour: int = 0
    faint: bool = False
    derived: bool = False
    dashed: bool = False
    css: str = ""


@dataclass(frozen=True)
class Axis:
    """The x axis that all charts of a page share.

    Attributes:
        name: "tokens" or "step".
        low, high: range.
        ticks: unit of the labels -> (position 0..1, label).
    """

    name: str
    low: float
    high: float
    ticks: dict[str, list[tuple[float, str]]]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` evenly spaced multiples of 1, 2, 2.5 or 5 times 10^k inside [low, high].

    For count >= 3 there are between two and 4/3 count + 1 of them.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.75 * rough)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Ticks of a log axis over [low, high], 0 < low < high.

    These are powers of ten, with 2 and 5 times these powers if there is room.
    """
    first, last, decades = (
        math.floor(math.log10(low)),
        math.ceil(math.log10(high)),
        math.log10(high / low),
    )
    if decades < 1:
        return nice_ticks(low, high, count)
    multiples = (1, 2, 5) if decades < 2.5 else (1,)
    ticks = [
        m * 10.0**e for e in range(first, last + 1) for m in multiples if low <= m * 10.0**e <= high
    ]
    return ticks[:: math.ceil(len(ticks) / (count + 2))]


def tick_labels(ticks: list[float], as_percent: bool = False) -> list[str]:
    """Labels in one common unit, with the fewest decimals that distinguish evenly spaced ticks."""
    if len(ticks) < 2:
        return [percent(t) if as_percent else number(t) for t in ticks]
    step, largest = ticks[1] - ticks[0], max(abs(ticks[0]), abs(ticks[-1]))
    scale, suffix = 1.0, ""
    if as_percent:
        scale, suffix = 0.01, "%"
    elif largest < 1e-3 or largest >= 1e15:
        exponent = math.floor(math.log10(largest) + 1e-9)
        scale, suffix = 10.0**exponent, f"e{exponent}"
    elif largest >= 1e3:
        scale, suffix = next((u, s) for u, s in UNITS if largest >= u)
    step /= scale
    decimals = next((d for d in range(16) if abs(round(step, d) - step) <= 1e-6 * step), 16)
    return ["0" if abs(t) < 1e-9 * largest else f"{t / scale:.{decimals}f}{suffix}" for t in ticks]


def downsample(x: np.ndarray, y: np.ndarray, buckets: int = BUCKETS) -> np.ndarray:
    """Indices of the first, lowest, highest and last finite point in equal slices of x.

    At most 4 * buckets + 2 indices, increasing. A line through these points covers the same pixels
    as a line through all points. (M4: Jugel et al., "M4: A Visualization-Oriented Time Series Data
    Aggregation", VLDB 2014.)

    Args:
        x: (n,) increasing.
        y: (n,) values.
        buckets: number of slices.
    """
    finite = np.flatnonzero(np.isfinite(y))
    if len(finite) <= 4 * buckets:
        return finite
    xf, yf = x[finite], y[finite]
    bucket = np.minimum((xf - xf[0]) / (xf[-1] - xf[0]) * buckets, buckets - 1).astype(int)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    ends = np.append(starts[1:], len(xf))
    keep: set[int] = set()
    for a, b in zip(starts, ends, strict=True):
        keep |= {int(a), int(b) - 1, int(a + yf[a:b].argmin()), int(a + yf[a:b].argmax())}
    return finite[sorted(keep)]


def smooth(y: np.ndarray, share: float = SMOOTHED_SHARE) -> np.ndarray:
    """Running mean of the finite values, with triangular weights.

    The window has the nearest ``share`` of all rows. Near the start it shrinks on both sides, so
    that the mean does not lift the steep first part of a loss curve. At the end only the missing
    side shrinks, so that the last value is a mean too. Values that are not finite become nan. If
    the window is shorter than a row, the values stay unchanged.
    """
    half = round(len(y) * share / 4)  # two box filters make a triangle, which is twice as wide
    finite = np.isfinite(y)
    if half == 0:
        return np.where(finite, y, np.nan)
    row = np.arange(len(y))
    reach = np.minimum(half, row)
    low, high = row - reach, np.minimum(row + reach, len(y) - 1) + 1
    counts = np.concatenate([[0], np.cumsum(finite)])
    for _ in range(2):
        sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
        y = np.where(
            finite, (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1), np.nan
        )
    return y


def visible_range(
    values: list[np.ndarray], zero: bool = False, log: bool = False
) -> tuple[float, float]:
    """The y range (low < high) that shows all values of all series except extreme spikes.

    A value is a spike if it lies outside the 2nd to 98th percentile by more than three times the
    distance between these percentiles. For a series of less than 50 values it is thirty times,
    because the first few values are often far from the rest for good reason.

    Args:
        values: one array (n,) of finite values per series.
        zero: whether the range must include zero.
        log: whether distances are ratios; the values must be positive.
    """
    # The range is the union over all series of the values that are not spikes.
    low, high = math.inf, -math.inf
    for series in values:
        ordered = np.sort(np.log10(series) if log else series)
        if not len(ordered):
            continue
        inner_low, inner_high = (
            ordered[math.ceil(0.02 * (len(ordered) - 1))],
            ordered[int(0.98 * (len(ordered) - 1))],
        )
        reach = (3 if len(ordered) >= 50 else 30) * (inner_high - inner_low)
        kept = (
            ordered[(ordered >= inner_low - reach) & (ordered <= inner_high + reach)]
            if reach > 0
            else ordered
        )
        low, high = min(low, kept[0]), max(high, kept[-1])
    if low > high:
        low, high = 0.0, 1.0
    if zero and not log:
        low, high = min(low, 0.0), max(high, 0.0)
    # A range that is too narrow for distinct ticks gets a margin.
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-6 * largest, 1e-90):
        margin = max(0.05 * largest, 0.05 if log else 0.0)
        low, high = (low - margin, high + margin) if margin > 1e-90 else (0.0, 1.0)
    return (float(10.0**low), float(10.0**high)) if log else (float(low), float(high))


@dataclass(frozen=True)
class _Scale:
    """Map from values to pixels.

    y counts from the top of a drawing ``height`` pixels high; x is in ``WIDTH`` units.
    """

    low: float
    high: float
    log: bool
    height: int
    axis: Axis

    @property
    def floor(self) -> int:
        """Pixel of the lowest value: zero lies on the frame, other values a little above it."""
        return self.height - (0 if self.low == 0 and not self.log else PADDING)

    def y(self, values: np.ndarray) -> np.ndarray:
        low, high, at = self.low, self.high, values
        if self.log:
            low, high, at = math.log10(low), math.log10(high), np.log10(values)
        pixels = self.floor - (at - low) / (high - low) * (self.floor - PADDING)
        # Browsers draw badly at 1e9 pixels.
        return np.clip(pixels, -10 * self.height, 11 * self.height)

    def x(self, values: np.ndarray) -> np.ndarray:
        return (values - self.axis.low) / (self.axis.high - self.axis.low) * WIDTH


def line_chart(
    title: str,
    unit: str,
    series: list[Series],
    axis: Axis,
    *,
    note: str = "",
    zero: bool = False,
    log: bool = False,
    as_percent: bool = False,
    height: int = 170,
    marks: Sequence[tuple[str, float]] = (),
    css: str = "",
) -> Markup:
    """A ``<figure>`` with the series over a shared x axis.

    All strings are escaped here. Points outside the drawing and values that are not finite are
    counted in a sentence under the chart. Points outside are also marked at the edge.

    Args:
        title, unit: caption.
        series: the lines.
        axis: the shared x axis.
        note: sentence under the chart.
        zero: whether the y axis includes zero.
        log: whether the y axis is logarithmic; values <= 0 become gaps.
        as_percent: whether y values are shown in percent.
        height: in pixels.
        marks: (kind, x) of events.
        css: further classes of the figure.
    """
    usable = [
        np.where((np.abs(s.y) < LARGEST) & ((s.y > 0) | (not log)), s.y, np.nan) for s in series
    ]
    head = (
        f"<b><bdi>{escape(title)}</bdi></b> "
        f'<span class="unit">{escape(unit)}{", log scale" if log else ""}</span>'
    )
    if not any(np.isfinite(y).any() for y in usable):
        said = (
            "Nothing but values that are not finite."
            if any(len(y) for y in usable)
            else "Not measured in this run."
        )
        return Markup(
            f'<figure class="{f"chart empty {css}".strip()}"><figcaption>{head}</figcaption>'
            f'<p class="note">{said}</p></figure>'
        )
    scale = _Scale(
        *visible_range([y[np.isfinite(y)] for y in usable], zero, log), log, height, axis
    )
    text = percent if as_percent else _four_digits

    ticks = nice_ticks(scale.low, scale.high, 5 if height > 200 else 4)
    labels = tick_labels(ticks, as_percent)
    if log:
        ticks = log_ticks(scale.low, scale.high)
        labels = [number(t) for t in ticks]
    values = np.unique(np.concatenate([y[np.isfinite(y)] for y in usable]))
    if len(values) == 1:  # a single value needs no scale; it becomes the only label
        ticks, labels = [float(values[0])], [text(float(values[0]))]
    # Lines, legend entries and the data for script.js, series by series.
    tops = scale.y(np.array(ticks))
    drawn, keys, data = "", "", []
    for one, y in zip(series, usable, strict=True):
        keep = downsample(one.x, y)
        drawn += _lines(one, y, keep, scale)
        last = text(float(y[keep[-1]])) if len(keep) else "—"
        kind = " ".join(filter(None, ["key", "faint" * one.faint, "dashed" * one.dashed, one.css]))
        label = f"<i></i><bdi>{escape(one.label)}</bdi> <output>{last}</output>"
        keys += f'<span class="{kind}" style="{_colour(one)}">{label}</span>'
        data.append(
            {"x": _short(one.x[keep]), "step": _short(one.step[keep]), "y": _short(y[keep])}
        )

    ends = [
        f"{s.label}: last value {text(d['y'][-1])}"
        for s, d in zip(series, data, strict=True)
        if d["y"]
    ]
    summary = f"{title}. {'; '.join(ends)}"
    attributes = {
        "data-series": json.dumps(data, separators=(",", ":")),
        "data-scale": json.dumps(
            [axis.low, axis.high, scale.low, scale.high, PADDING, scale.floor, log, as_percent]
        ),
    }
    grid = "".join(f"M0 {top:.1f}H{WIDTH}" for top in tops)
    y_labels = "".join(
        f'<span style="top:{t:.1f}px">{escape(s)}</span>' for t, s in zip(tops, labels, strict=True)
    )
    x_labels = "".join(
        f'<div class="x by-{name}">'
        + "".join(
            f'<span style="left:{at:.2%}{";transform:translateX(-90%)" if at > 0.93 else ""}">'
            f"{escape(label)}</span>"
            for at, label in places
        )
        + "</div>"
        for name, places in axis.ticks.items()
    )
    sentences = [note, *_exceptions(series, usable, scale, text)]
    return Markup(
        f'<figure class="{f"chart {css}".strip()}" '
        f'style="--h:{height}px;--gutter:{max(map(len, labels)) + 1}ch" '
        + " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
        + f'><figcaption>{head}<span class="keys">{keys}</span></figcaption>'
        f'<div class="body"><div class="y">{y_labels}</div>'
        f'<div class="area" tabindex="0" role="img" aria-label="{escape(summary)}">'
        f'<svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<path class="grid" d="{grid}"/>{drawn}{_marks(marks, scale)}</svg></div>{x_labels}</div>'
        f'<p class="note">{escape(" ".join(s for s in sentences if s))}</p></figure>'
    )


def _four_digits(value: float) -> str:
    return number(value, 4)


def _colour(series: Series) -> str:
    return f"--c:var(--s{series.colour % COLOURS})"


def _short(values: np.ndarray) -> list[float]:
    """Round to seven digits, which suffice for a read-out and keep the page small."""
    return [int(v) if v == int(v) else float(f"{v:.7g}") for v in values.tolist()]


def _lines(series: Series, y: np.ndarray, keep: np.ndarray, scale: _Scale) -> str:
    """SVG of one series: its line, dots for few points, and edge ticks at clipped points."""
    px, py = scale.x(series.x[keep]), scale.y(y[keep])
    gaps = np.cumsum(~np.isfinite(y))[keep]
    line = ""
    for i, (a, b) in enumerate(zip(px, py, strict=True)):
        starts = i == 0 or gaps[i] != gaps[i - 1]
        alone = starts and (i + 1 == len(keep) or gaps[i + 1] != gaps[i])
        # a point without neighbours: "h0" with a round cap draws a dot
        line += f"{'M' if starts else 'L'}{a:.1f} {b:.1f}{'h0' if alone else ''}"
    dashed = series.dashed or series.colour >= COLOURS
    css = "faint" if series.faint else "line dashed" if dashed else "line"
    css = f"{css} {series.css}".strip()
    svg = f'<path class="{css}" style="{_colour(series)}" d="{line}"/>' if line else ""
    if len(keep) <= 40 and not series.faint:
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(px, py, strict=True))
        svg += (
            f'<path class="{f"dots {series.css}".strip()}" style="{_colour(series)}" d="{dots}"/>'
        )
    marks = "".join(f"M{a:.1f} 0v6" for a in px[py < 0]) + "".join(
        f"M{a:.1f} {scale.height}v-6" for a in px[py > scale.height]
    )
    return svg + (f'<path class="clipped" style="{_colour(series)}" d="{marks}"/>' if marks else "")


def _marks(marks: Sequence[tuple[str, float]], scale: _Scale) -> str:
    """One path per kind: a line from top to bottom for a resume, a short line for other kinds."""
    drawn: dict[str, str] = {}
    for kind, x in marks:
        at = float(scale.x(np.array(x)))
        length = {"resumed": f"0V{scale.height}", "saved": f"{scale.height}v-7"}.get(kind, "0v9")
        drawn[kind] = drawn.get(kind, "") + f"M{at:.1f} {length}"
    return "".join(f'<path class="mark {kind}" d="{path}"/>' for kind, path in drawn.items())


def _exceptions(
    series: list[Series], usable: list[np.ndarray], scale: _Scale, text: Callable[[float], str]
) -> list[str]:
    """Sentences about values that the drawing does not show, one per series and kind."""
    found = []
    for one, y in ((s, y) for s, y in zip(series, usable, strict=True) if not s.derived):
        top = scale.y(y)
        above = (top < 0, "above the axis, up", np.nanmax)
        below = (top > scale.height, "below the axis, down", np.nanmin)
        for beyond, side, extreme in (above, below):
            if count := int(beyond.sum()):
                points = "1 point is" if count == 1 else f"{count:,} points are"
                found.append(f"{one.label}: {points} {side} to {text(float(extreme(y)))}.")
        if count := int((~np.isfinite(y)).sum()):
            kind = "not positive or not finite" if scale.log else "not finite"
            found.append(
                f"{one.label}: {count:,} value{' is' if count == 1 else 's are'} {kind} and left "
                f"as a gap."
            )
    return found
