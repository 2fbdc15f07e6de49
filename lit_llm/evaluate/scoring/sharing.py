"""Work that the ranks of torch.distributed share: each rank gets all answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO, TypeVar

import torch.distributed as dist
from tqdm import tqdm

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ranks() -> tuple[int, int]:
    """This rank and the number of ranks; 0 and 1 without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(found: dict[int, Answer]) -> dict[int, Answer]:
    """What all ranks found. All ranks must call it."""
    if ranks()[1] == 1:
        return found
    parts: list[Any] = [None] * ranks()[1]
    dist.all_gather_object(parts, found)
    whole: dict[int, Answer] = {}
    for part in parts:
        whole |= part
    return whole


def share(
    items: Sequence[Item],
    work: Callable[[Item], Answer],
    sizes: Sequence[int],
    bar: tqdm[Any],
) -> list[Answer]:
    """Compute the answer to every item, on every rank; each turn gives each rank one item.

    In the last turn, a rank without an item repeats the last one: with sharded weights all ranks
    must make the same number of forward passes.

    Args:
        items: the same on every rank.
        work: computes an answer.
        sizes: by how much the bar moves for each item.
        bar: see `progress`.
    """
    rank, count = ranks()
    done: dict[int, Answer] = {}
    with bar:
        for first in range(0, len(items), count):
            number = first + rank
            answer = work(items[min(number, len(items) - 1)])
            if number < len(items):
                done[number] = answer
            bar.update(sum(sizes[first : first + count]))
    whole = gather(done)
    return [whole[number] for number in range(len(items))]


def progress(stream: TextIO | None, total: int, what: str, unit: str) -> tqdm[Any]:
    """A bar with rate and remaining time on the first rank; hidden without a stream."""
    hidden = stream is None or ranks()[0] > 0
    return tqdm(total=total, desc=what, unit=unit, unit_scale=True, file=stream or sys.stderr,
                disable=hidden)  # fmt: skip
