"""The settings of a module in its checkpoint, in a form in which a subclass with arguments of its
own opens too."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_llm.lightning_internals import constructor_arguments
from lit_llm.models.hub.checkpoint import SETTINGS

_PLAIN = (bool, int, float, str, bytes, torch.Tensor, torch.dtype, torch.device)


def _is_plain(value: Any) -> bool:
    """Whether ``torch.load`` reads the value with ``weights_only``."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(inner) for key, inner in value.items())
    if type(value) in (list, tuple, set):
        return all(map(_is_plain, value))
    return value is None or type(value) in _PLAIN


class SavedSettings:
    """What a module of ours was made with; to be made in its ``__init__``.

    Lightning opens a checkpoint with the hyperparameters in it as arguments of the class. It
    collects those of all the classes a module inherits from, and hands a class that takes
    ``**kwargs`` all of them: one that says ``super().__init__({...}, **kwargs)`` would get
    ``transformer`` twice. For such a class the checkpoint's hyperparameters are what the class
    itself was given, and everything else stands beside them.
    """

    def __init__(self, module: L.LightningModule):
        parameters = inspect.signature(type(module).__init__).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        own = not type(module).__init__.__module__.startswith("lit_llm.")
        self._not_given: set[str] = set()
        # Of *args Lightning does not know the names: there nothing can be left out.
        if (
            own
            and inspect.Parameter.VAR_KEYWORD in kinds
            and inspect.Parameter.VAR_POSITIONAL not in kinds
        ):
            frame = inspect.currentframe()
            assert frame is not None and frame.f_back is not None
            *ours, given = constructor_arguments(frame.f_back)
            self._not_given = {name for args in ours for name in args} - set(given)

    def write(
        self, checkpoint: dict[str, Any], hparams: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> None:
        """Put ``hparams`` into ``checkpoint``, with the values in ``changed``."""
        settings = {**hparams, **changed}
        if odd := [name for name, value in settings.items() if not _is_plain(value)]:
            # Lightning collects a subclass's own arguments too, and a checkpoint that holds such a
            # value could not be resumed: it is read with weights_only.
            rank_zero_warn(
                f"the checkpoint does not hold {', '.join(odd)}, which is no plain value: give it "
                "again to load_from_checkpoint"
            )
            settings = {name: value for name, value in settings.items() if name not in odd}
        checkpoint["hyper_parameters"] = {
            name: value for name, value in settings.items() if name not in self._not_given
        }
        if self._not_given:
            checkpoint[SETTINGS] = settings
