"""Shares of the sources in training: weights, temperature, and a limit on passes."""

from __future__ import annotations

from collections.abc import Mapping

from lit_llm.corpus.config import MixtureSettings
from lit_llm.errors import UserError


def shares(
    sizes: Mapping[str, float], weights: Mapping[str, float], settings: MixtureSettings
) -> dict[str, float]:
    """Return each source's share of training; the shares sum to 1.

    Shares are weights (sizes, if all weights are equal) to the power 1 / temperature. If a source
    would get more than ``max_epochs`` passes in ``settings.tokens``, it gets this limit, and the
    others share the rest in their proportions, until none exceeds it. If all are at the limit,
    there is too little text for the run.

    Args:
        sizes: tokens (or bytes, without ``settings.tokens``) by source.
        weights: weights by source, 0 or more.
        settings: of the mixture.

    Raises:
        UserError: no source that has text has a weight, or the run is longer than all sources'
            passes.
    """
    relative = weights if len(set(weights.values())) > 1 else sizes
    wanted = {
        name: relative[name] ** (1 / settings.temperature)
        for name in sizes
        if sizes[name] and relative[name]
    }
    if not wanted:
        raise UserError("sources: every source that has text has weight 0; raise one")
    total = sum(wanted.values())
    found = {name: 0.0 for name in sizes}
    if settings.tokens is None:
        return found | {name: value / total for name, value in wanted.items()}
    limits = {name: settings.max_epochs * sizes[name] / settings.tokens for name in wanted}
    if sum(limits.values()) < 1 - 1e-9:
        most = sum(limits.values()) * settings.tokens
        raise UserError(
            f"mixture.tokens: {settings.tokens:,.0f} are more than the {most:,.0f} that "
            f"mixture.max_epochs={settings.max_epochs:g} passes give; lower it, or add text"
        )
    # Fix the sources above their limits, share the rest among the others, and repeat: with a larger
    # share, further sources may exceed their limits.
    free, rest = dict(wanted), 1.0
    while free:
        scale = rest / sum(free.values())
        above = [name for name, value in free.items() if value * scale > limits[name]]
        if not above:
            return found | {name: value * scale for name, value in free.items()}
        for name in above:
            found[name] = limits[name]
            rest -= limits[name]
            del free[name]
    return found
