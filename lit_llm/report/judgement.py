"""Sentences that interpret a run's numbers for readers who are new to training."""

from __future__ import annotations

from typing import Any

import numpy as np

from lit_llm.io.numbers import number
from lit_llm.report.forgetting import final_state, forgetting, of_final, of_gap
from lit_llm.report.plots import smooth
from lit_llm.report.reading import Run

# Tokens per parameter with the least loss for a training budget (arXiv:2203.15556)
ENOUGH_TOKENS = 20
_FEW_EXAMPLES, _FEW_STEPS = 20, 50
_NOTABLE = 0.005  # smallest relative change of a loss that counts as a change
_OVERFIT = 0.02  # relative rise of the validation loss above its best that counts as overfitting


def judgements(run: Run) -> list[str]:
    """Sentences that apply to ``run``, the most important first."""
    steps, loss = _measured(run, "step", "train_loss")
    held_out = _measured(run, "step", "val_loss")
    parameters, tokens = run.number("parameters"), run.number("tokens")
    finetuned = run.datacard.get("kind") == "instructions"
    measured = forgetting(run.folder)
    found = [
        of_training(loss),
        of_validation(*held_out, loss, kept=final_state(run.folder).get("monitor") == "val_loss"),
        of_gap(*held_out, steps, loss) if finetuned else None,
        of_final(run),
        *(measured["sentences"] if measured else []),
        of_steps(int(steps[-1])) if len(steps) else None,
        None if finetuned or not parameters or not tokens else of_tokens(tokens / parameters),
        of_examples(_validation_size(run.datacard), "examples" if finetuned else "documents"),
    ]
    return [sentence for sentence in found if sentence]


def of_training(loss: np.ndarray) -> str | None:
    """Judge whether the training loss (n,) fell at all."""
    finite = loss[np.isfinite(loss)]
    if len(loss) and not len(finite):
        return "The training loss was never a number: lower model.learning_rate."
    if len(finite) < 4:
        return None
    tenth = max(1, len(finite) // 10)
    first, last = float(finite[:tenth].mean()), float(finite[-tenth:].mean())
    if last < first * (1 - _NOTABLE):
        return None
    return (
        f"Training loss did not fall: {number(first)} at the start, {number(last)} at the end. "
        "Try another model.learning_rate."
    )


def of_validation(
    steps: np.ndarray, loss: np.ndarray, training: np.ndarray, kept: bool = False
) -> str | None:
    """Judge the validation loss (n,) at ``steps``: falling, flat, or rising against training.

    ``kept`` says that ``final/`` holds the weights of the lowest loss.
    """
    keep = np.isfinite(loss)
    steps, loss = steps[keep], loss[keep]
    if len(loss) < 3:
        return None
    best = int(loss.argmin())
    rise = float(loss[-1] / loss[best] - 1) if loss[best] > 0 else 0.0
    if rise > _OVERFIT and _fell(training):
        return (
            f"It overfits: validation loss is {rise:.0%} above its best, at step "
            f"{steps[best]:,.0f}, {steps[-1] - steps[best]:,.0f} steps before the end, while "
            "training loss went on falling."
            + ("" if kept else " Take checkpoints/best.ckpt, or train for fewer steps.")
        )
    if best < len(loss) - 2 and _fell(training):
        return (
            f"Validation loss has stopped falling: it was lowest at step {steps[best]:,.0f}, "
            f"{steps[-1] - steps[best]:,.0f} steps before the end."
        )
    since = int(np.searchsorted(steps, steps[0] + 0.75 * (steps[-1] - steps[0])))
    since = min(since, len(loss) - 2)
    fall = float(1 - loss[-1] / loss[since]) if loss[since] > 0 else 0.0
    if fall > _NOTABLE:
        return (
            f"Validation loss was still falling: by {fall:.1%} since step {steps[since]:,.0f}. "
            "More tokens are likely to lower it further."
        )
    return "Validation loss has stopped falling." if abs(fall) <= _NOTABLE else None


def _fell(training: np.ndarray) -> bool:
    mean = smooth(training, 0.2)
    mean = mean[np.isfinite(mean)]
    return len(mean) > 1 and bool(mean[-1] <= mean[len(mean) // 2])


def of_tokens(per_parameter: float) -> str | None:
    """Judge whether a pretrained model saw enough tokens for its size."""
    if per_parameter >= ENOUGH_TOKENS / 2:
        return None
    return (
        f"{per_parameter:.2g} tokens a parameter: a model of this size learns most for its "
        f"cost from about {ENOUGH_TOKENS}. This one is undertrained."
    )


def of_steps(steps: int) -> str | None:
    """Judge whether the number of optimizer steps is large enough."""
    if steps >= _FEW_STEPS:
        return None
    many = f"{steps} optimizer step{'s' if steps != 1 else ''}"
    return f"{many}: too few to learn much. More passes or a smaller batch make more."


def of_examples(size: int | None, what: str) -> str | None:
    """Judge whether the validation split is large enough for a reliable loss."""
    if size is None or size >= _FEW_EXAMPLES:
        return None
    if size == 0:
        return "There is no validation split, so nobody can tell whether the model overfits."
    return f"{size} validation {what[:-1] if size == 1 else what} say{'s' * (size == 1)} little."


def _measured(run: Run, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    rows = run.measured(y)
    empty = np.array([])
    return run.columns.get(x, empty)[rows], run.columns.get(y, empty)[rows]


def _validation_size(card: dict[str, Any]) -> int | None:
    """Documents or examples in the validation split; None if the card does not record it."""
    splits = card.get("splits")
    split = splits.get("validation", {}) if isinstance(splits, dict) else None
    if not isinstance(split, dict) or not splits:
        return None
    if isinstance(split.get("examples"), int):
        return split["examples"]
    counts = [part.get("documents") for part in split.values() if isinstance(part, dict)]
    return sum(count for count in counts if isinstance(count, int))
