"""Freed memory is kept for the next step: a block that is given back costs its pages again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from lit_llm.models.kernels.heap import keep_freed_memory

# Of an aligned block glibc keeps the odd end apart, in a cache of seven, before it joins what was
# freed: the first few blocks do not fit where the one before lay.
PAGES_OF_A_LATER_BLOCK = """
import resource, torch
from lit_llm.models.kernels.heap import keep_freed_memory
keep_freed_memory()
for _ in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(24 * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_is_freed_stays() -> None:
    command = [sys.executable, "-c", PAGES_OF_A_LATER_BLOCK]
    said = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    assert int(said.stdout) < 10  # of the block's 6,144


def test_who_sets_it_himself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked for the C library"))
    keep_freed_memory()
