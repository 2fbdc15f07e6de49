"""The report: numbers and axes by property, the page by what it says of whole, running, killed and
hostile runs."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lit_llm.errors import UserError
from lit_llm.io.numbers import dollars, duration, with_unit
from lit_llm.report.html import write_report
from lit_llm.report.plots import (
    Axis,
    Series,
    downsample,
    line_chart,
    log_ticks,
    nice_ticks,
    number,
    percent,
    smooth,
    tick_labels,
    visible_range,
)
from lit_llm.report.reading import read_run

FakeRun = Callable[..., Path]
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>&"
FINITE = st.floats(-1e12, 1e12)
# A page each: fewer examples. The first text strategy of a process reads Unicode tables, which
# takes seconds.
ANY_JSON = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
RUN_KEYS = [
    "name", "status", "seconds", "parameters", "flops_per_token", "peak_flops", "peak_flops_source",
    "device", "world_size", "tokens", "tokens_planned", "usd_per_hour", "environment", "command",
    "resumes", "git",
]  # fmt: skip
CARD_KEYS = st.sampled_from(["splits", "train", "dropped", "stdlib", "tokens", "bytes"])
NEXT_TO_NOTHING = [
    "",
    "step,tokens\n",
    "loss\n1\n",
    "step,train_loss\n7,3.5\n",
    "\0\0\xff\n",
    "step\nx\n",
]


class Elements(HTMLParser):
    """(tag, attributes) of every element, in order."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, css: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.found if css in (attrs.get("class") or "").split()]


def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def chart(y: list[float] | np.ndarray, **options) -> str:
    x = np.arange(len(y), dtype=float)
    axis = Axis("step", 0.0, max(len(y) - 1.0, 1.0), {"step": [(0.0, "0")]})
    return str(
        line_chart("T", "u", [Series("s", x, x, np.asarray(y, dtype=float))], axis, **options)
    )


# numbers and axes


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1, "1"), (3.14159, "3.14"), (999.4, "999"), (999.9, "1k"), (1234567, "1.23M"),
        (999_999, "1M"), (7e9, "7B"), (1.5e13, "15T"), (0.0123, "0.0123"), (0.0003, "3e-4"),
        (-2500, "-2.5k"), (1e18, "1e18"), (100, "100"), (math.nan, "nan"), (math.inf, "inf"),
    ],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-30, 1e30))
def test_number_is_within_its_digits(value: float) -> None:
    text = number(value)
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1])
    assert (float(text[:-1]) * scale if scale else float(text)) == pytest.approx(value, rel=0.0051)


def test_units() -> None:
    assert (with_unit(2.1e11, "FLOP"), with_unit(999_990, "B"), with_unit(0, "B")) == (
        "210 GFLOP",
        "1 MB",
        "0 B",
    )
    assert (duration(298.4), duration(11_520), duration(187_200)) == (
        "4 min 58 s",
        "3 h 12 min",
        "2 d 4 h",
    )
    assert (duration(12.34), duration(59.7)) == ("12.3 s", "1 min 0 s")
    assert (dollars(0.00827), dollars(1234.5), dollars(0), dollars(1e-9)) == (
        "$0.0083",
        "$1,234.50",
        "$0.00",
        "under $0.001",
    )
    assert percent(0.4123) == "41.2%"


@given(FINITE, FINITE, st.integers(3, 8))
def test_ticks_are_even_inside_few_and_told_apart(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    assume(high - low > 1e-6 * max(abs(low), abs(high), 1e-9))
    ticks = nice_ticks(low, high, count)
    slack = 1e-5 * (high - low)
    assert 2 <= len(ticks) <= count * 4 / 3 + 1 + 1e-3
    assert low - slack <= ticks[0] and ticks[-1] <= high + slack
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-3)
    assert len(set(tick_labels(ticks))) == len(ticks)


@given(st.floats(1e-12, 1e12), st.floats(1.001, 1e15))
def test_log_ticks_are_inside_rising_and_few(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 8
    assert all(low * 0.999 <= t <= low * ratio * 1.001 for t in ticks)
    assert all(a < b for a, b in pairwise(ticks))


def test_tick_labels_share_a_unit() -> None:
    assert tick_labels([0, 500_000, 1_000_000]) == ["0", "0.5M", "1.0M"]
    assert tick_labels([0, 2.5e-4, 5e-4]) == ["0", "2.5e-4", "5.0e-4"]
    assert tick_labels([0, 0.25, 0.5], as_percent=True) == ["0", "25%", "50%"]


@given(
    arrays(float, st.integers(1, 400), elements=st.floats(-1e9, 1e9) | st.just(math.nan)),
    st.integers(1, 20),
)
def test_downsampling_keeps_ends_and_extremes(y: np.ndarray, buckets: int) -> None:
    assume(np.isfinite(y).any())
    keep = downsample(np.arange(len(y), dtype=float), y, buckets)
    assert len(keep) <= 4 * buckets and (np.diff(keep) > 0).all()
    assert np.isfinite(y[keep]).all()
    assert y[keep].min() == np.nanmin(y) and y[keep].max() == np.nanmax(y)
    finite = np.flatnonzero(np.isfinite(y))
    assert keep[0] == finite[0] and keep[-1] == finite[-1]


@given(arrays(float, st.integers(0, 300), elements=st.floats(-1e6, 1e6) | st.just(math.nan)))
def test_smoothing_stays_within_the_values_and_keeps_gaps(y: np.ndarray) -> None:
    mean = smooth(y, 0.1)
    assert np.array_equal(np.isnan(mean), np.isnan(y))
    if np.isfinite(y).any():
        assert np.nanmin(mean) >= np.nanmin(y) - 1e-3 and np.nanmax(mean) <= np.nanmax(y) + 1e-3


def test_smoothing_follows_a_line_and_takes_noise_away() -> None:
    line = np.linspace(5, 2, 1000)
    assert np.allclose(smooth(line)[:-20], line[:-20], atol=1e-9)  # no lag, not even at the start
    noise = np.random.default_rng(0).normal(0, 1, 4000)
    assert smooth(noise)[100:-100].std() < 0.15
    assert np.array_equal(smooth(line[:10]), line[:10])


@given(
    st.lists(arrays(float, st.integers(0, 80), elements=st.floats(-1e99, 1e99)), max_size=3),
    st.booleans(),
)
def test_range_is_never_empty(values: list[np.ndarray], zero: bool) -> None:
    low, high = visible_range(values, zero)
    assert math.isfinite(low) and math.isfinite(high) and low < high
    assert nice_ticks(low, high)
    if zero:
        assert low <= 0 <= high


def test_range_leaves_a_spike_out_but_not_the_start_of_a_curve() -> None:
    loss = 2 + 6 * np.exp(-np.linspace(0, 8, 500))
    assert visible_range([loss]) == (pytest.approx(loss.min()), pytest.approx(8.0))
    spiked = loss.copy()
    spiked[300] = 1e6
    assert visible_range([spiked])[1] == pytest.approx(8.0)
    assert visible_range([np.array([5.6, 2.6, 2.3, 2.2, 2.1])])[1] == 5.6


# one chart


@pytest.mark.parametrize(
    "y",
    [
        [1.0], [0.0, 0.0], [5.0] * 100, [1e300, 1.0], [math.nan, 1.0], [-1e-300, 1e-300],
        list(range(100_000)), [1.0, math.inf, 2.0, -math.inf], [1e9, 1e9 + 1],
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"zero": True}, {"log": True}, {"as_percent": True}])
def test_any_series_is_drawn_or_said_not_to_be(y: list[float], options: dict[str, bool]) -> None:
    html = chart(y, **options)
    found = Elements(html)
    if not found.of("area"):
        assert "not finite" in html
        return
    for attrs in found.of("line"):
        assert re.fullmatch(r"([ML]-?[\d.]+ -?[\d.]+(h0)?)+", attrs["d"])
    assert len(html) < 120_000


def test_a_value_that_is_not_finite_breaks_the_line_and_is_said() -> None:
    html = chart([1, 2, math.nan, 3, math.inf, 4])
    (line,) = Elements(html).of("line")
    # Two of the three pieces are single points
    assert line["d"].count("M") == 3 and line["d"].count("h0") == 2
    assert "2 values are not finite" in html


def test_a_spike_is_cut_off_marked_and_said() -> None:
    html = chart([*np.linspace(3, 2, 99), 4e6, *np.linspace(2, 1.9, 99)])
    assert len(Elements(html).of("clipped")) == 1
    assert "1 point is above the axis, up to 4M." in html


def test_log_axis_leaves_what_it_cannot_show_as_a_gap() -> None:
    html = chart([1, 10, 0, -1, 1000], log=True)
    assert "log scale" in html and "2 values are not positive or not finite" in html


def test_chart_escapes_every_string() -> None:
    x = np.arange(3.0)
    axis = Axis("step", 0, 2, {"step": [(0.5, HOSTILE)]})
    html = str(line_chart(HOSTILE, HOSTILE, [Series(HOSTILE, x, x, x)], axis, note=HOSTILE))
    assert {tag for tag, _ in Elements(html).found}.isdisjoint({"img", "script"})
    assert html.count("&lt;img") >= 5


# whole pages


def test_page_of_a_finished_run(fake_run: FakeRun) -> None:
    folder = fake_run()
    html = page(folder)
    found = Elements(html)
    run = read_run(folder)
    # The standard charts, two of them on a log scale too, and three of the user's.
    assert len(found.of("area")) == 8 + 2 + 3
    assert all(attrs["d"] for tag, attrs in found.found if tag == "path")
    for said in ("quickstart", "Finished", "bits per byte", "9.83M", "5.24M", "5 min", "$0.0087",
                 "at $0.10 per hour", "resumed once", "2.31 TFLOP/s (measured, float32 matmul)",
                 "stdlib-tests", "token_accuracy", "2.13.0+cpu", "3f9a2c1", "def read", "18.8 MB",
                 "not UTF-8: 2"):  # fmt: skip
        assert said in html, said
    assert f"{run.columns['val_bits_per_byte'][-1]:.3f}" in html
    assert run.problems == [] and not found.of("problems")
    assert "1 point is above the axis, up to 14.7." in html
    assert not list(folder.glob("*.partial"))


def test_page_asks_for_nothing_from_outside(fake_run: FakeRun) -> None:
    html = page(fake_run())
    links = [
        v
        for _, attrs in Elements(html).found
        for k, v in attrs.items()
        if k in ("src", "href", "action")
    ]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\(|@import|https?://", html)


def test_page_is_the_same_twice(fake_run: FakeRun) -> None:
    folder = fake_run(steps=300)
    assert page(folder) == page(folder)


def test_running_run_without_the_rest(fake_run: FakeRun) -> None:
    folder = fake_run(steps=30, status="running", extra=False)
    for name in ("samples.jsonl", "config.yaml", "datacard.json"):
        (folder / name).unlink()
    html = page(folder)
    for said in ("Running or killed at 1.25% of the planned tokens", "There is no config.yaml",
                 "No samples were written", "There is no datacard.json",
                 "of 9.83M planned"):  # fmt: skip
        assert said in html, said


def test_killed_before_run_json_and_in_the_middle_of_a_line(fake_run: FakeRun) -> None:
    folder = fake_run(steps=60)
    (folder / "run.json").write_text('{"name": "qui', encoding="utf-8")
    whole = (folder / "metrics.csv").read_text(encoding="utf-8")
    (folder / "metrics.csv").write_text(whole[: whole.rindex(",1.1")], encoding="utf-8")
    run = read_run(folder)
    assert run.columns["step"].tolist() == list(range(1, 60))
    html = page(folder)
    for said in (
        "State not recorded",
        "run.json does not hold a JSON object",
        "1 incomplete line(s)",
        "not recorded",
    ):
        assert said in html, said


@pytest.mark.parametrize("content", NEXT_TO_NOTHING)
def test_metrics_with_next_to_nothing_in_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.csv").write_text(content, encoding="utf-8")
    assert ("<svg" in page(tmp_path)) == ("3.5" in content)


@ANY_JSON
@given(st.dictionaries(st.sampled_from(RUN_KEYS), JSON_LEAF | st.lists(st.integers(), max_size=3)))
def test_run_json_of_any_kind_makes_a_page(
    tmp_path_factory: pytest.TempPathFactory, info: dict
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    assert "</html>" in page(folder)


@ANY_JSON
@given(
    st.recursive(
        JSON_LEAF, lambda inner: st.dictionaries(CARD_KEYS, inner) | st.lists(inner, max_size=3)
    )
)
def test_datacard_of_any_shape_makes_a_page(
    tmp_path_factory: pytest.TempPathFactory, card: object
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "datacard.json").write_text(json.dumps(card), encoding="utf-8")
    assert "</html>" in page(folder)


def test_a_step_logged_twice_counts_once_and_words_are_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,train_loss,note\n2,5,a\n1,9,\n2,4,b\n", encoding="utf-8"
    )
    run = read_run(tmp_path)
    assert run.columns["step"].tolist() == [1, 2] and run.columns["train_loss"].tolist() == [9, 4]
    assert "metrics.csv: column note has 1 value(s) that are not numbers." in run.problems


def test_steps_are_the_axis_where_tokens_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,tokens,train_loss\n1,,5\n2,20,4\n", encoding="utf-8"
    )
    html = page(tmp_path)
    assert (
        'class="axis-step"' in html
        and "by-tokens" not in html.split("<script>")[0].split("</style>")[1]
    )


def test_hostile_text_stays_text(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    text = HOSTILE + "\x00\x1b[31m\ud800 \u202e"
    sample = {"step": 1, "tokens": 1, "prompt": HOSTILE, "text": text}
    (folder / "samples.jsonl").write_text(
        json.dumps(sample) + "\nnot json\n[1]\n", encoding="utf-8"
    )
    (folder / "config.yaml").write_text(f"key: {HOSTILE}\n# {HOSTILE}\n", encoding="utf-8")
    (folder / "datacard.json").write_text(
        json.dumps({HOSTILE: HOSTILE, "splits": {HOSTILE: {HOSTILE: {}}}})
    )
    (folder / "run.json").write_text(
        json.dumps(dict.fromkeys(["name", "device", "command", "git", "status"], HOSTILE))
    )
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[0] = [HOSTILE if name == "logit_scale" else name for name in rows[0]]
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    html = page(folder)
    tags = [tag for tag, _ in Elements(html).found]
    assert "img" not in tags and tags.count("script") == 1
    assert "\x00" not in html and "\x1b" not in html and "␀␛[31m" in html
    assert "2 line(s) that cannot be read" in html


def test_secrets_are_hidden(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    (folder / "config.yaml").write_text(
        "api_key: s3cret one\nhf_token: 's3cret'\n- password: s3cret\n"
        "seed: 7\napi_token: null\ntokens: 100\neos_token: x\n"
    )
    (folder / "run.json").write_text(
        json.dumps({"command": "fit --a.api_key s3cret --token='s3 cret' --data.tokens 5"})
    )
    html = page(folder)
    assert "s3cret" not in html and "s3 cret" not in html and html.count("(hidden)") == 5
    for kept in (
        "<b>tokens</b>: 100",
        "<b>api_token</b>: null",
        "<b>eos_token</b>: x",
        "--data.tokens 5",
    ):
        assert kept in html, kept


def test_many_long_samples_are_thinned_and_said_so(fake_run: FakeRun) -> None:
    folder = fake_run(steps=20)
    lines = [
        {"step": s, "prompt": "p", "text": "p" + "x" * 9000} for s in range(50) for _ in range(10)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = page(folder)
    assert len(Elements(html).of("step")) == 12 and "38 steps between are left out" in html
    assert (
        "Step 0<" in html
        and "Step 49<" in html
        and "cut here" in html
        and "2 more at this step" in html
    )


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither metrics"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "absent")
