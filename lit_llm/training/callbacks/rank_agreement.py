"""Agreement of a run's processes, over the CPU: the step they continue from, and stop requests."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from lit_llm.errors import UserError


class Ranks:
    """All processes of a fit. For a single process no method communicates.

    Attributes:
        group: process group of all processes on the CPU, so that nothing waits for a device. None
            for a single process.
        first: whether this is the first process.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.first = True

    def join(self, trainer: L.Trainer) -> None:
        """Create the group. All processes must call this when training starts.

        Raises:
            UserError: see `check_same_step`.
        """
        check_same_step(trainer)
        self.first = trainer.is_global_zero
        self.group = dist.new_group(backend="gloo") if trainer.world_size > 1 else None

    def highest(self, *numbers: int) -> list[int]:
        """The maximum of each number over all processes.

        Processes get a signal at different steps, and finish their parts of a checkpoint at
        different times. The maximum makes all of them act at the same step.
        """
        if self.group is None:
            return list(numbers)
        highest = torch.tensor(numbers)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        return highest.tolist()


def check_same_step(trainer: L.Trainer) -> None:
    """Check that all processes continue from the same step.

    Each process has looked for a checkpoint by itself.

    Raises:
        UserError: the steps differ; only the first process raises it. The others exit with status
            0, because with any other status their launcher would kill the first process.
    """
    steps = [trainer.global_step] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(steps, trainer.global_step)
    for rank, step in enumerate(steps):
        if step != steps[0]:
            if not trainer.is_global_zero:
                sys.exit(0)
            raise UserError(
                f"--ckpt_path: the first process continues from step {steps[0]}, "
                f"process {rank} from step {step}: put the run folder where all processes see the "
                "same checkpoints"
            )
