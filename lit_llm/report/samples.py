"""What the model wrote, step by step, with what is broken in it first."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_llm.io.numbers import number
from lit_llm.report.reading import Run

# Keep the page small enough to read and to send.
SAMPLE_STEPS, SAMPLES_A_STEP, SAMPLE_CHARACTERS = 12, 8, 3000
_LOOP = 0.6  # of a text's words in repetitions of one run of words
_LONGEST_LOOP = 12  # words


def broken(text: str) -> str | None:
    """What is wrong with a continuation: "empty", "repeats itself" (at its end), or None."""
    words = text.split()
    if not words:
        return "empty"
    for length in range(1, min(_LONGEST_LOOP, len(words) // 3) + 1):
        repeated = 0
        while words[len(words) - 1 - repeated] == words[len(words) - 1 - repeated - length]:
            repeated += 1
            if repeated + length >= len(words):
                break
        if repeated + length >= max(_LOOP * len(words), 3 * length, 6):
            return "repeats itself"
    return None


def sample_groups(run: Run) -> tuple[list[dict[str, Any]], int]:
    """Samples by step, the first and the last among them, and how many steps were left out."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    tokens: dict[int, str] = {}
    for sample in run.samples:
        prompt, text = str(sample.get("prompt") or ""), sample["text"]
        text = text.removeprefix(prompt)
        by_step.setdefault(sample["step"], []).append(
            {
                "prompt": prompt, "text": text[:SAMPLE_CHARACTERS],
                "cut": len(text) > SAMPLE_CHARACTERS, "broken": broken(text),
            }
        )  # fmt: skip
        if isinstance(sample.get("tokens"), int | float):
            tokens[sample["step"]] = number(float(sample["tokens"]))
    steps = sorted(by_step)
    spread = np.linspace(0, max(len(steps) - 1, 0), SAMPLE_STEPS).round().astype(int)
    kept = [steps[i] for i in sorted({*spread.tolist()})] if steps else []
    groups = []
    for step in kept:
        ordered = sorted(by_step[step], key=lambda sample: sample["broken"] is None)
        groups.append(
            {
                "step": f"{step:,}",
                "tokens": tokens.get(step),
                "samples": ordered[:SAMPLES_A_STEP],
                "broken": sum(sample["broken"] is not None for sample in ordered),
                "of": len(ordered),
                "more": max(0, len(ordered) - SAMPLES_A_STEP),
                "open": step in (kept[0], kept[-1]),
            }
        )
    return groups, len(steps) - len(kept)
