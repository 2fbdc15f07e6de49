"""Position of a run: the Trainer's counters, computed from the optimizer step."""

from __future__ import annotations

from typing import Any


def place(fit_loop: dict[str, Any], step: int, accumulation: int, batches: int) -> None:
    """Change the saved state of Lightning's fit loop so that training continues after ``step``.

    Lightning saves the number of micro-batches and whether the epoch was over. Both depend on the
    accumulation and length at the time of saving, which may have changed. The optimizer step does
    not depend on them.

    Args:
        fit_loop: ``trainer.fit_loop.state_dict()``, or a checkpoint's ``["loops"]["fit_loop"]``.
        step: number of finished optimizer steps.
        accumulation: micro-batches per optimizer step in this run.
        batches: micro-batches in this run; after them the run is over.
    """
    done, over = step * accumulation, int(step * accumulation >= batches)
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["is_last_batch"] = bool(over)
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, done))
    for counts in fit_loop["epoch_progress"].values():
        counts.update(ready=1, started=1, processed=over, completed=over)
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step
