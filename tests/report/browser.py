"""Pages in Chromium: what it draws, whether they scroll sideways, and what axe-core says.

`make axe` installs axe-core, a judge of accessibility (the rules of WCAG 2 and common practice).
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_PACKAGES = Path(os.environ.get("AXE_NPM", Path(__file__).parents[2] / ".peers-axe"))
AXE = _PACKAGES / "node_modules" / "axe-core" / "axe.min.js"
# Within the page: everything unfolded, then the rules, and what sticks out of the window.
_EXAMINE = """
addEventListener("load", async () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const root = document.documentElement;
  const outside = [...document.body.querySelectorAll("*")].filter((element) =>
    element.getBoundingClientRect().right > root.clientWidth + 1
    && !element.closest(".scroll, nav, pre, .unseen"));
  const found = await axe.run(document, {resultTypes: ["violations"]});
  top.document.title = JSON.stringify({
    width: root.clientWidth, overflow: root.scrollWidth - root.clientWidth,
    outside: outside.slice(0, 5).map((element) => element.outerHTML.slice(0, 120)),
    violations: found.violations.flatMap((rule) =>
      rule.nodes.map((node) => `${rule.id}: ${node.target} ${node.html.slice(0, 160)}`)),
    checked: found.passes.length,
    title: document.title, dark: matchMedia("(prefers-color-scheme: dark)").matches,
  });
});
"""


def chromium(tmp_path: Path, file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A page opened and left again; skips the test where there is no Chromium."""
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("needs the `chromium` program (Debian: apt-get install chromium)")
    return subprocess.run(
        [binary, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", *flags,
         file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def without_policy(page: str) -> str:
    """The page with the policy taken out that refuses all scripts but its own."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)


def examine(tmp_path: Path, page: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What the page is like in a window ``width`` pixels wide.

    Returns:
        violations: axe-core's, a line an element; overflow: pixels that the page scrolls sideways;
        outside: elements right of the window; width, title, and checked, how many rules it passed.
    """
    if not AXE.is_file():
        pytest.skip(f"needs axe-core, which is not in {_PACKAGES} (make axe)")
    scripts = f"<script>{AXE.read_text(encoding='utf-8')}</script><script>{_EXAMINE}</script>"
    inner = without_policy(page.read_text(encoding="utf-8"))
    inner = inner.replace("</head>", scripts + "</head>", 1)
    probe = tmp_path / f"probe-{width}.html"
    # Chromium's own window is 500 pixels wide at least.
    frame = f"border:0;width:{width}px;height:900px"
    probe.write_text(
        f'<!doctype html><title>?</title><iframe style="{frame}" '
        f'srcdoc="{html.escape(inner)}"></iframe>',
        encoding="utf-8",
    )
    flags = [
        "--hide-scrollbars",
        "--window-size=1400,1000",
        "--virtual-time-budget=30000",
        "--dump-dom",
    ]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = chromium(
        tmp_path,
        probe,
        "--hide-scrollbars",
        "--window-size=1400,1000",
        "--virtual-time-budget=30000",
        "--dump-dom",
        *flags,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None and title[1] != "?", done.stderr
    return json.loads(html.unescape(title[1]))
