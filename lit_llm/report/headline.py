"""The top of the page: the run's state, one summarizing sentence and eight numbers.

Each of them also works if some facts are unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

from lit_llm.io.numbers import dollars, duration, number, percent, with_unit
from lit_llm.report.plots import smooth
from lit_llm.report.reading import Run


def _last(run: Run, column: str) -> float | None:
    values = run.finite(column)
    return float(values[-1]) if len(values) else None


def _median(run: Run, column: str) -> float | None:
    values = run.finite(column)
    return float(np.median(values)) if len(values) else None


def _tokens(run: Run) -> float | None:
    """Tokens trained on: the larger of two records, as a killed run may miss its last write."""
    return max(
        (t for t in (run.number("tokens"), _last(run, "tokens")) if t is not None), default=None
    )


def headline(run: Run) -> list[dict[str, str]]:
    """The eight numbers at the top of the page.

    Each has a label, a value ("—" if unknown), a unit and a note in small print.
    """

    def item(label: str, value: str | None, unit: str = "", *notes: str | None) -> dict[str, str]:
        note = "; ".join(n for n in notes if n) if value else "not recorded"
        return {"label": label, "value": value or "—", "unit": unit if value else "", "note": note}

    def shown(
        value: float | None, text: str = "{}", form: Callable[[float], str] = number
    ) -> str | None:
        return None if value is None else text.format(form(value))

    def flops(value: float) -> str:
        return with_unit(value, "FLOP")

    def four(value: float) -> str:
        return f"{value:.3f}" if 0.1 <= abs(value) < 100 else number(value, 4)

    bits, tokens, parameters = (
        run.finite("val_bits_per_byte"),
        _tokens(run),
        run.number("parameters"),
    )
    planned, seconds, price = (
        run.number("tokens_planned"),
        run.number("seconds"),
        run.number("usd_per_hour"),
    )
    loss, training = _last(run, "val_loss"), smooth(run.finite("train_loss"))[-1:]
    resumes = int(run.number("resumes") or 0)
    training_note = shown(training[0], "training {}", four) if len(training) else None
    first_bits = shown(bits[0], "first {}", four) if len(bits) > 1 else None
    planned_note = f"of {number(planned)} planned" if planned and tokens != planned else None
    per_parameter = (
        shown(tokens / parameters, "{} per parameter") if tokens and parameters else None
    )
    resumed = (
        "without interruption"
        if resumes == 0
        else f"resumed {'once' if resumes == 1 else f'{resumes} times'}"
    )
    peak = shown(run.number("peak_flops"), "median, of {}/s", flops)
    peak_source = (
        f"({run.info['peak_flops_source']})" if peak and run.info.get("peak_flops_source") else ""
    )
    cost = None if seconds is None or price is None else seconds / 3600 * price
    return [
        item(
            "Validation",
            shown(bits[-1], form=four) if len(bits) else None,
            "bits per byte",
            first_bits,
        ),
        item("Validation loss", shown(loss, form=four), "nats/token", training_note),
        item("Tokens", shown(tokens), "", planned_note, per_parameter),
        item(
            "Parameters",
            shown(parameters),
            "",
            _trained_note(run),
            shown(run.number("flops_per_token"), "{} per token", flops),
        ),
        item("Training time", shown(seconds, form=duration), "", resumed, _spike_guard_note(run)),
        item("Throughput", shown(_median(run, "tokens_per_second")), "tokens/s", "median"),
        item(
            "MFU", shown(_median(run, "mfu"), form=percent), "", f"{peak or 'median'} {peak_source}"
        ),
        item("Cost", shown(cost, form=dollars), "", shown(price, "at {} per hour", dollars)),
    ]


def _trained_note(run: Run) -> str | None:
    """Counts of trained and frozen parameters, if some are frozen."""
    parameters, trained = run.number("parameters"), run.number("parameters_trained")
    if not parameters or trained is None or not trained < parameters:
        return None
    share = percent(trained / parameters)
    return f"{number(trained)} trained ({share}), {number(parameters - trained)} frozen"


def _spike_guard_note(run: Run) -> str | None:
    """Actions of SpikeGuard: skipped steps and rollbacks."""
    skipped = sum(event["steps"] for event in run.events if event["event"] == "skipped")
    back = sum(event["event"] == "rolled back" for event in run.events)
    said = [f"{skipped} step{'s' * (skipped != 1)} skipped"] if skipped else []
    return (
        ", ".join(said + [f"rolled back {'once' if back == 1 else f'{back} times'}"] * bool(back))
        or None
    )


def status(run: Run) -> dict[str, str]:
    """The run's state: a class for the style sheet, and a sentence."""
    state = run.info.get("status")
    if state == "finished":
        return {"kind": "finished", "text": "Finished"}
    planned, tokens = run.number("tokens_planned"), _tokens(run)
    reached = (
        f" at {percent(tokens / planned)} of the planned tokens"
        if planned and tokens is not None
        else ""
    )
    if state == "running":
        # A killed run cannot update its status. The time of the last write tells the reader whether
        # it still runs.
        return {
            "kind": "running",
            "text": f"Running or killed{reached}, last metrics at {last_write(run)}",
        }
    if state == "interrupted":
        return {"kind": "interrupted", "text": f"Interrupted{reached}"}
    return {"kind": "unknown", "text": f"State not recorded, last metrics at {last_write(run)}"}


def last_write(run: Run) -> str:
    for name in ("metrics.csv", "run.json"):
        if (run.folder / name).is_file():
            written = datetime.fromtimestamp((run.folder / name).stat().st_mtime, UTC)
            return f"{written:%Y-%m-%d %H:%M} UTC"
    return "an unknown time"


def lead(run: Run) -> str:
    """One sentence on the run and its result, from the facts that are known."""
    parameters, tokens, seconds = run.number("parameters"), _tokens(run), run.number("seconds")
    bits, loss = _last(run, "val_bits_per_byte"), _last(run, "train_loss")
    text = f"A model of {number(parameters)} parameters" if parameters else "A model"
    text += f", trained on {number(tokens)} tokens" if tokens else ""
    text += f" in {duration(seconds)}" if seconds else ""
    if device := run.info.get("device"):
        devices = int(run.number("world_size") or 1)
        text += f" on {devices} \u00d7 {device}" if devices > 1 else f" on {device}"
    if bits is not None:
        return f"{text}: {number(bits, 4)} bits per byte on text it has not seen."
    return f"{text}: training loss {number(loss, 4)}." if loss is not None else f"{text}."
