"""What the processes of a run settle among themselves on the CPU: where they go on, what is asked
of them."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
import torch.distributed as dist

from lit_llm.errors import UserError


class Ranks:
    """All processes of a fit; for a process alone every method answers at once.

    Attributes:
        group: of all processes, on the CPU: nothing here waits for a device. None for one alone.
        first: whether this is the first process.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.first = True

    def join(self, trainer: L.Trainer) -> None:
        """Make the group; all processes call it when training starts.

        Raises:
            UserError: see `check_same_step`.
        """
        check_same_step(trainer)
        self.first = trainer.is_global_zero
        self.group = dist.new_group(backend="gloo") if trainer.world_size > 1 else None

    def highest(self, *numbers: int) -> list[int]:
        """The highest of each number that any of the processes has.

        They get a signal at different steps, and are done with their parts of a checkpoint at
        different times.
        """
        if self.group is None:
            return list(numbers)
        highest = torch.tensor(numbers)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        return highest.tolist()


def check_same_step(trainer: L.Trainer) -> None:
    """See that all processes go on from one step: each has looked for a checkpoint itself.

    Raises:
        UserError: on the first process; the others exit, as their launcher would kill it for any
            other end.
    """
    steps = [trainer.global_step] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(steps, trainer.global_step)
    for rank, step in enumerate(steps):
        if step != steps[0]:
            if not trainer.is_global_zero:
                sys.exit(0)
            raise UserError(
                f"--ckpt_path: the first process goes on from step {steps[0]}, "
                f"process {rank} from step {step}: put the run folder where all processes see the "
                "same checkpoints"
            )
