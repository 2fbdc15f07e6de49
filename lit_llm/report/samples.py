"""The samples section: text that the model wrote, by step, broken text first."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_llm.io.numbers import number
from lit_llm.report.reading import Run

# Limits that keep the page small enough to read and to send.
SAMPLE_STEPS, SAMPLES_A_STEP, SAMPLE_CHARACTERS = 12, 8, 3000
_LOOP = 0.6  # share of a text's words in repetitions of one phrase
_LONGEST_LOOP = 12  # length of the longest phrase, in words


def broken(text: str) -> str | None:
    """What is wrong with a continuation: "empty", "repeats itself" (at its end), or None."""
    words = text.split()
    if not words:
        return "empty"
    # For each phrase length, count the words at the end that equal the word one phrase earlier.
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
    """Samples grouped by step, and the number of steps left out.

    At most ``SAMPLE_STEPS`` evenly spaced steps are kept, always including the first and the last.
    """
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
