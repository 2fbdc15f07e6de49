"""How random initialisations draw their numbers: not at all, or whole tensors of which a part is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from lit_llm.models.sharded import copy_part

_INITIALIZERS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"}


class _Initializers(TorchFunctionMode):
    """Random initialisations go through ``draw``."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") not in _INITIALIZERS:
            return func(*args, **kwargs)
        tensor, args = (args[0], args[1:]) if args else (kwargs.pop("tensor"), ())
        self.draw(tensor, lambda into: func(into, *args, **kwargs))
        return tensor

    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        raise NotImplementedError


class NoDraws(_Initializers):
    """Random initialisations do nothing: those of torch's layers are overwritten by the model's own, and on meta they
    would draw no number, but import the compiler, for a second."""

    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Leave it."""


class WholeDraws(_Initializers):
    """Random initialisations of a DTensor draw the whole tensor and keep a part of it.

    So a model divided among any number of processes, seeded alike, starts from the weights it would have on one.
    """

    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Fill ``tensor``, which any process may hold a part of."""
        if not isinstance(tensor, DTensor):
            fill(tensor)
            return
        full = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        fill(full)
        copy_part(tensor, full)
