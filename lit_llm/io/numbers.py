"""Numbers formatted for people: counts, sizes, durations, money."""

from __future__ import annotations

import math

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def number(value: float, digits: int = 3) -> str:
    """Format a number with a suffix: 1234567 -> "1.23M", 0.00012 -> "1.2e-4".

    "B" is 10^9, as in model sizes.
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = float(f"{abs(value):.{digits - 1}e}")  # rounded first: 999,999 is "1M" and not "1000k"
    if size >= 1e15 or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    unit, suffix = next(((u, s) for u, s in UNITS if size >= u), (1.0, ""))
    decimals = max(0, digits - 1 - math.floor(math.log10(size / unit)))
    text = f"{value / unit:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + suffix


def percent(value: float) -> str:
    """A fraction as a percentage with three significant digits: 0.4123 -> "41.2%"."""
    return f"{number(value * 100)}%" if math.isfinite(value) else str(value)


def whole_or_three_digits(value: float) -> str:
    """Three digits, or the whole number from 100 on: 3.456 -> "3.46", 34567.8 -> "34,568"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_unit(value: float, unit: str) -> str:
    """Format with an SI prefix, where G is 10^9: (2.1e11, "FLOP") -> "210 GFLOP"."""
    value = float(f"{value:.2e}")  # rounded first, as in number
    prefix = min(max(0, int(math.log10(value) // 3)), 6) if 0 < value < math.inf else 0
    return f"{number(value / 1000.0**prefix)} {['', 'k', 'M', 'G', 'T', 'P', 'E'][prefix]}{unit}"


def duration(seconds: float) -> str:
    """Format seconds in two units: 298.4 -> "4 min 58 s"."""
    total = round(seconds)
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if total >= size:
            return f"{total // size} {unit} {total % size // smaller_size} {smaller}"
    return f"{number(seconds)} s"


def dollars(value: float) -> str:
    """Format US dollars, below one cent with two significant digits: 0.00827 -> "$0.0083"."""
    if 0 < value < 0.01:
        return f"${number(value, 2)}" if value >= 0.001 else "under $0.001"
    return f"${value:,.2f}"


def about(hours: float) -> str:
    """Format hours in one unit: 1.5 -> "1.5 hours", 100 -> "4 days"."""
    if hours >= 48:
        return f"{hours / 24:,.0f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{math.ceil(hours * 60)} minutes"


def in_bytes(value: float) -> str:
    """Format a size in powers of 1,000: 1234567 -> "1.23 MB"."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {unit}B"
        value /= 1000
    return f"{value:,.3g} TB"


def in_binary_bytes(count: float) -> str:
    """Format a size in powers of 1,024: 1536 -> "1.5 KiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
