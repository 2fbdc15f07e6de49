"""How random initialisations draw their numbers: elsewhere as torch does, under `NoDraws` not at
all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_INITIALIZERS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"}


class Initializers(TorchFunctionMode, ABC):
    """Random initialisations go through ``draw``."""

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
        """Initialise ``tensor``; ``fill`` draws the numbers of a tensor of its shape."""


class NoDraws(Initializers):
    """Random initialisations do nothing: those of torch's layers are overwritten by the model's
    own, and on meta they would draw no number, but import the compiler, for a second."""

    def draw(self, tensor: Tensor, fill: Callable[[Tensor], Any]) -> None:
        """Leave it."""
