"""One base with several adapters, which are switched without loading the base again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lit_llm.models.hub.adapters import Adapters
from lit_llm.models.hub.checkpoint import check_base, choose_device, load_for, tokenizer_of_adapter
from lit_llm.models.hub.locate import locate
from lit_llm.models.tokenizer import Tokenizer

BASE = "base"
"""Name of the model without an adapter, which no adapter may have."""


class AdapterChoice:
    """A model whose adapters have names; `use` chooses one, or the base alone.

    The updates stay beside the weights, so a step is slower than with an adapter that
    `open_model` folds in.

    Args:
        path, device: of the base, as for `open_model`.
        folders: PEFT directories by name.

    Attributes:
        model: the base with the updates in use; at first those of the first adapter.
        names: `BASE` and the adapters.
        used: the name in use.

    Raises:
        UserError: as `load_model` of the base and each adapter.
    """

    def __init__(self, path: str | Path, folders: Mapping[str, str | Path], device: str = "auto"):
        place = choose_device(device)
        self.model, base = load_for(path, place)
        self._adapters = Adapters(self.model)
        self._tokenizers = {BASE: base}
        for name, folder in folders.items():
            check_base(self.model, locate(folder))
            self._adapters.add(name, folder)
            size = self.model.config.vocab_size
            self._tokenizers[name] = tokenizer_of_adapter(locate(folder), base, size)
        self.model.to(place)
        self.names = tuple(self._tokenizers)
        self.used = BASE
        self.use(next(iter(folders), BASE))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of what is in use: an adapter may have its own chat template."""
        return self._tokenizers[self.used]

    def use(self, name: str) -> None:
        """Take the updates called ``name``; `BASE` takes none.

        Raises:
            UserError: there is no adapter of that name.
        """
        self._adapters.use(None if name == BASE else name)
        self.model.eval()
        self.used = name
