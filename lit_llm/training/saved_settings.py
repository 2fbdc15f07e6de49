"""Module settings in checkpoints, stored so that subclasses with their own arguments load too."""

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
    """Whether ``torch.load`` can read the value with ``weights_only``."""
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(inner) for key, inner in value.items())
    if type(value) in (list, tuple, set):
        return all(map(_is_plain, value))
    return value is None or type(value) in _PLAIN


class SavedSettings:
    """The constructor arguments of a lit_llm module. Create it in the module's ``__init__``.

    When Lightning loads a checkpoint, it passes the saved hyperparameters to the class as
    arguments. It collects the arguments of all base classes, and passes all of them to a class that
    takes ``**kwargs``. A class that calls ``super().__init__({...}, **kwargs)`` would then get
    ``transformer`` twice. For such a class the checkpoint's hyperparameters are only the arguments
    that the class itself was given. All settings are stored under a separate key.
    """

    def __init__(self, module: L.LightningModule):
        parameters = inspect.signature(type(module).__init__).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        own = not type(module).__init__.__module__.startswith("lit_llm.")
        self._only_of_base_classes: set[str] = set()
        # Lightning does not know the names of *args, so with *args nothing can be left out.
        if (
            own
            and inspect.Parameter.VAR_KEYWORD in kinds
            and inspect.Parameter.VAR_POSITIONAL not in kinds
        ):
            frame = inspect.currentframe()
            assert frame is not None and frame.f_back is not None
            # The last dict has the arguments of the subclass; the others those of its base classes.
            *of_base_classes, given = constructor_arguments(frame.f_back)
            self._only_of_base_classes = {name for args in of_base_classes for name in args}
            self._only_of_base_classes -= set(given)

    def write(
        self, checkpoint: dict[str, Any], hparams: Mapping[str, Any], changed: Mapping[str, Any]
    ) -> None:
        """Write ``hparams``, updated with ``changed``, into ``checkpoint``."""
        settings = {**hparams, **changed}
        if odd := [name for name, value in settings.items() if not _is_plain(value)]:
            # Lightning also collects the subclass's own arguments. Checkpoints are read with
            # weights_only, so a checkpoint with such a value could not be resumed.
            rank_zero_warn(
                f"the checkpoint does not hold {', '.join(odd)}, because the value is not plain: "
                "pass it to load_from_checkpoint again"
            )
            settings = {name: value for name, value in settings.items() if name not in odd}
        checkpoint["hyper_parameters"] = {
            name: value
            for name, value in settings.items()
            if name not in self._only_of_base_classes
        }
        if self._only_of_base_classes:
            checkpoint[SETTINGS] = settings
