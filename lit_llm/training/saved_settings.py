"""The settings of a module in its checkpoint, in a form in which a subclass with arguments of its
own opens too."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.core.mixins import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args

from lit_llm.models.checkpoint import SETTINGS


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
            *ours, given = collect_init_args(frame.f_back, [], classes=(HyperparametersMixin,))
            self._not_given = {name for args in ours for name in args} - set(given)

    def write(
        self, checkpoint: dict[str, Any], hparams: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> None:
        """Put ``hparams`` into ``checkpoint``, with the values in ``changed``."""
        settings = {**hparams, **changed}
        checkpoint["hyper_parameters"] = {
            name: value for name, value in settings.items() if name not in self._not_given
        }
        if self._not_given:
            checkpoint[SETTINGS] = settings
