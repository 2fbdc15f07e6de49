"""Where a run is: the Trainer's counters, made from the optimizer step and the length that the run
has now."""

from __future__ import annotations

from typing import Any


def place(fit_loop: dict[str, Any], step: int, accumulation: int, batches: int) -> None:
    """Change the saved state of Lightning's fit loop so that the run goes on after optimizer step
    ``step``.

    Lightning saves how many micro-batches were done and whether the epoch was over. Both depend on
    accumulation and length at the time of saving, which may be others now. The step does not.

    Args:
        fit_loop: ``trainer.fit_loop.state_dict()``, or a checkpoint's ``["loops"]["fit_loop"]``.
        step: optimizer steps done.
        accumulation: micro-batches of an optimizer step, now.
        batches: micro-batches of the run, now: it is over once they are done.
    """
    done, over = step * accumulation, int(step * accumulation >= batches)
    progress = fit_loop["epoch_loop.batch_progress"]
    progress["is_last_batch"] = bool(over)
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, done))
    for counts in fit_loop["epoch_progress"].values():
        counts.update(ready=1, started=1, processed=over, completed=over)
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = step
