"""How many examples each source contributes to the training mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from lit_llm.data.rows.policy import Mixing
from lit_llm.errors import UserError

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` of the items, evenly spaced in their order, each at most once."""
    return [items[i * len(items) // count] for i in range(count)]


def contributions(
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    mixing: Mixing | Mapping[str, float],
) -> dict[str, int]:
    """Number of examples of each source in an epoch.

    - "concat": the source's examples times its weight.
    - "proportional": as many examples in all as there are, parted by the weights.
    - {"temperature": t}: the same, parted by weight * size ** (1 / t) (multilingual models sample
      languages so, arXiv:1907.05019): 1 keeps the sizes, a large t makes the sources equal.

    A source with examples and a weight above 0 contributes at least one.

    Args:
        sizes: examples of each source.
        weights: weight of each source.
        mixing: see above.

    Raises:
        UserError: all weights of sources with examples are 0.
    """
    if mixing == "concat":
        shares = {name: size * weights[name] for name, size in sizes.items()}
    else:
        power = 1 / mixing["temperature"] if isinstance(mixing, Mapping) else 0.0
        raw = {name: weights[name] * size**power if size else 0.0 for name, size in sizes.items()}
        total = sum(raw.values())
        if not total:
            raise UserError("data.sources: all weights are 0, or no source has an example")
        shares = {name: sum(sizes.values()) * share / total for name, share in raw.items()}
    return {name: max(round(share), 1) if share else 0 for name, share in shares.items()}


def repeated(items: Sequence[Item], once: Sequence[bool], count: int) -> list[Item]:
    """The items in their order, over and over, until ``count`` of those that may be repeated.

    The numbers of repetitions of two items differ by one at most; what remains is evenly spaced.

    Args:
        items: the examples of a source.
        once: for each, whether it stands exactly once (an example for validation).
        count: number of the others in the result.
    """
    free = [item for item, one in zip(items, once, strict=True) if not one]
    often, rest = divmod(count, len(free)) if free else (0, 0)
    first = list(items) if often else [i for i, one in zip(items, once, strict=True) if one]
    return first + free * max(0, often - 1) + spread(free, rest)
