// The read-out under the pointer (or the arrow keys), shared by all charts.
// The page is complete without it.
(() => {
  "use strict";

  function number(value, digits = 4) {  // as plots.number in Python
    if (value === 0) return "0";
    const size = Math.abs(Number(value.toPrecision(digits)));
    if (size >= 1e15 || size < 1e-3) return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
    const [unit, suffix] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([u]) => size >= u) ?? [1, ""];
    return String(Number((value / unit).toPrecision(digits))) + suffix;
  }

  function nearest(xs, x) {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
  }

  function element(css, parent) {
    const made = document.createElement("div");
    made.className = css;
    made.hidden = true;
    return parent.appendChild(made);
  }

  const charts = [...document.querySelectorAll(".chart[data-series]")].map((figure) => {
    const area = figure.querySelector(".area");
    const outputs = [...figure.querySelectorAll(".key output")];
    const [x0, x1, y0, y1, ceiling, floor, log, asPercent] = JSON.parse(figure.dataset.scale);
    const scaled = log ? Math.log10 : (y) => y;
    const series = JSON.parse(figure.dataset.series).map((points, i) => {
      const key = figure.querySelectorAll(".key")[i];
      const spot = element(key.className.replace("key", "spot"), area);
      spot.style.cssText = key.style.cssText;
      return { ...points, spot, output: outputs[i], last: outputs[i].textContent };
    });
    const text = (y) => (asPercent ? `${number(y * 100, 3)}%` : number(y));
    const top = (y) => floor - (scaled(y) - scaled(y0)) / (scaled(y1) - scaled(y0)) * (floor - ceiling);
    const finest = series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    return { area, series, finest, x0, x1, text, top,
             cursor: element("cursor", area), where: element("where", area) };
  });

  function show(chosen, x) {
    const at = nearest(chosen.finest.x, x);
    x = chosen.finest.x[at];
    for (const chart of charts) {
      const left = `${100 * (x - chart.x0) / (chart.x1 - chart.x0)}%`;
      chart.cursor.style.left = left;
      chart.cursor.hidden = false;
      chart.where.hidden = chart !== chosen;
      for (const { x: xs, y: ys, spot, output } of chart.series) {
        if (!xs.length) continue;
        const i = nearest(xs, x);
        const top = chart.top(ys[i]);
        output.textContent = chart.text(ys[i]);
        spot.style.left = `${100 * (xs[i] - chart.x0) / (chart.x1 - chart.x0)}%`;
        spot.style.top = `${top}px`;
        spot.hidden = top < 0 || top > chart.area.clientHeight;
      }
    }
    const step = `step ${chosen.finest.step[at].toLocaleString("en")}`;
    const share = (x - chosen.x0) / (chosen.x1 - chosen.x0);
    chosen.where.textContent = document.querySelector(".by-tokens") ? `${number(x)} tokens · ${step}` : step;
    chosen.where.style.left = `${100 * share}%`;
    chosen.where.style.transform = `translateX(${-100 * share}%)`;  // stays inside the chart at both ends
  }

  function clear() {
    for (const chart of charts) {
      chart.cursor.hidden = chart.where.hidden = true;
      for (const { spot, output, last } of chart.series) {
        spot.hidden = true;
        output.textContent = last;
      }
    }
  }

  for (const chart of charts) {
    const { area, x0, x1, finest } = chart;
    let at = finest.x.length - 1;
    const point = (event) => {
      const box = area.getBoundingClientRect();
      const x = x0 + (event.clientX - box.left) / box.width * (x1 - x0);
      at = nearest(finest.x, x);
      show(chart, x);
    };
    area.addEventListener("pointermove", point);
    area.addEventListener("pointerdown", point);
    area.addEventListener("pointerleave", clear);
    area.addEventListener("blur", clear);
    area.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      at = Math.min(Math.max(at + by * Math.ceil(finest.x.length / 100), 0), finest.x.length - 1);
      show(chart, finest.x[at]);
    });
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
