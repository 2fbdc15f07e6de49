"""Intercept random initialisations: redirect their draws, or skip them (`NoDraws`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_INITIALIZERS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"}


class Initializers(TorchFunctionMode, ABC):
    """A mode in which random initialisations call ``draw`` instead of torch."""

    def __torch_function__(
        self,
        func: Callable,
        types: Iterable[type],
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") not in _INITIALIZERS:
            return func(*args, **kwargs)
        tensor, args = (args[0], args[1:]) if args else (kwargs.pop("tensor"), ())
        self.draw(tensor, lambda into: func(into, *args, **kwargs))
        return tensor

    @abstractmethod
    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Initialise ``tensor``; ``fill`` draws the numbers for a tensor of its shape."""


class NoDraws(Initializers):
    """Skip random initialisations.

    The model overwrites the initial values of torch's layers with its own. On the meta device an
    initialisation would draw no number, but it would import the compiler, which takes a second.
    """

    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Do nothing."""
