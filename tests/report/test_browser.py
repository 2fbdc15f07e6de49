"""The report in a browser: charts are drawn and read out, choices work, the policy holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import chromium, without_policy

from lit_llm.report.html import write_report

FakeRun = Callable[..., Path]

CHECK = """
<script>
const charts = [...document.querySelectorAll(".chart[data-series]")];
const areas = charts.map((chart) => chart.querySelector(".area"));
const shown = (element) => getComputedStyle(element).display !== "none";
const values = (chart) => [...chart.querySelectorAll("output")].map((o) => o.textContent);
const read = () => charts.map(values);
const before = read();
const box = areas[0].getBoundingClientRect();
const point = {clientX: box.left + box.width / 4, clientY: box.top + 9};
areas[0].dispatchEvent(new PointerEvent("pointermove", point));
const during = read(), where = areas[0].querySelector(".where").textContent;
areas[0].dispatchEvent(new PointerEvent("pointerleave", {}));
for (const id of ["by-step", "logarithmic", "smooth-none"])
  document.querySelector(`#${id}`).click();
const result = {
  charts: charts.length, where, changed: JSON.stringify(before) !== JSON.stringify(during),
  restored: JSON.stringify(before) === JSON.stringify(read()),
  drawn: charts.filter(shown).map((chart) => {
    const lines = [...chart.querySelectorAll("path.line, path.raw")].filter(shown);
    return lines.length > 0 && lines.every((path) => {
      const size = path.getBoundingClientRect();
      return size.width > 100 && size.height > 0;
    });
  }),
  titles: charts.filter(shown).map((chart) => chart.querySelector("figcaption").textContent),
  means: [...document.querySelectorAll(".smooth-little, .smooth-much")].filter(shown).length,
  axes: charts.filter(shown).map((chart) =>
    [...chart.querySelectorAll(".x")].filter((x) => x.offsetHeight).map((x) => x.className)),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  title: document.title,
};
document.body.innerHTML = "<p id=result></p>";
document.querySelector("#result").textContent = JSON.stringify(result);
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser_every_plot_is_drawn_and_read_out(
    fake_run: FakeRun, tmp_path: Path, width: int
) -> None:
    report = write_report(fake_run())
    done = chromium(tmp_path, report, f"--window-size={width},900", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    # The page's own script has run: its policy lets it.
    assert 'class="cursor"' in done.stdout

    # The same page with a second script, which its policy would refuse.
    html = without_policy(report.read_text(encoding="utf-8"))
    probe = tmp_path / "probe.html"
    probe.write_text(html.replace("</body>", CHECK + "</body>"), encoding="utf-8")
    done = chromium(tmp_path, probe, f"--window-size={width},900", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    result = json.loads(re.search(r'<p id="result">(.*?)</p>', done.stdout).group(1))
    assert result["charts"] == 13 and result["drawn"] == [True] * 11
    assert result["changed"] and result["restored"]
    assert re.fullmatch(r"2\.4\d+M tokens · step (59|60)\d", result["where"])
    assert [title for title in result["titles"] if "log scale" in title]
    assert result["means"] == 0
    assert result["axes"] == [["x by-step"]] * 11
    assert result["overflow"] == 0


@pytest.mark.slow
def test_in_a_browser_the_policy_refuses_other_scripts(fake_run: FakeRun, tmp_path: Path) -> None:
    report = write_report(fake_run(steps=20))
    html = report.read_text(encoding="utf-8").replace(
        "</body>", "<script>document.title = 'owned'</script></body>"
    )
    report.write_text(html, encoding="utf-8")
    done = chromium(tmp_path, report, "--dump-dom")
    assert "<title>owned" not in done.stdout and "Content Security Policy" in done.stderr
