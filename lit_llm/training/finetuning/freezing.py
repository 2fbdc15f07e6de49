"""Freeze some of a model's weights by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from lit_llm.errors import UserError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every trained weight whose name begins with a match of a pattern, in place.

    Raises:
        UserError: a pattern matches no trained weight, or nothing is left to train.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    frozen = set()
    for pattern in patterns:
        found = {name for name in trained if re.match(pattern, name)}
        if not found:
            some = ", ".join([*list(trained)[:2], list(trained)[-1]])
            raise UserError(
                f"model.freeze: {pattern!r} matches no trained weight; they are named as {some}"
            )
        frozen |= found
    if len(frozen) == len(trained):
        raise UserError("model.freeze: it freezes every weight, and nothing is left to train")
    for name in frozen:
        trained[name].requires_grad_(False)
