"""Models of shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lit_llm.models.config import TransformerConfig
from lit_llm.models.transformer import Transformer

_RANDOM = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"}


class _NoDraws(TorchFunctionMode):
    """Random initialisations do nothing: on meta they would draw no number, but import the compiler, for a second."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def meta_transformer(config: TransformerConfig) -> Transformer:
    """A `Transformer` on the meta device; `Transformer.assign_weights` fills it."""
    with torch.device("meta"), _NoDraws():
        return Transformer(config)
