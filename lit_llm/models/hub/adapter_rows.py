"""Rows of added tokens in a PEFT directory: ``trainable_token_indices``.

PEFT's rules are in peft/utils/other.py (``set_additional_trainable_modules``). A tied head follows
the embedding there, unless it has rows at other places.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.models.hub.adapter_config import AdapterConfig
from lit_llm.models.hub.tensor_layout import Layout
from lit_llm.models.tokenizer import Tokenizer

TABLES = ("embed.weight", "head.weight")


class Rows(NamedTuple):
    """Trained rows of embedding or head."""

    ids: list[int]
    values: Tensor
    """float32 (rows, width)."""


class RowsReader:
    """Finds the rows of one directory for one model.

    Args:
        folder: of the adapter, for messages.
        config: of the adapter.
        layout: of the model in its family; head and embedding are two tensors in it.
        base: the model's state dict.
        tied: whether head and embedding are one matrix in the model.
    """

    def __init__(
        self,
        folder: Path,
        config: AdapterConfig,
        layout: Layout,
        base: dict[str, Tensor],
        tied: bool,
    ):
        self.folder, self.config, self.layout = folder, config, layout
        self.base, self.tied = base, tied
        named = {slot.ours[0]: name for name, slot in layout.slots.items()}
        self.tables = {table: named[table].removesuffix(".weight") for table in TABLES}

    def read(
        self, tensors: dict[str, Tensor], name_in_adapter: Callable[[str], str]
    ) -> dict[str, Rows]:
        """Return the rows of "embed" and "head"; those of a tied head are the embedding's.

        Args:
            tensors: the family's module -> its rows.
            name_in_adapter: gives a module's name as the adapter spells it.

        Raises:
            UserError: tensors and adapter_config.json do not fit each other or the model.
        """
        left, found = dict(tensors), {}
        embedding = TABLES[0], self.tables[TABLES[0]]
        for table, module in self.tables.items():
            ids = self._ids(table, module)
            values = left.pop(name_in_adapter(module), None)
            # With more rows than its base has, PEFT saves those of a tied head as well.
            tied_head = self.tied and table == "head.weight"
            ids = ids if values is None or not tied_head else ids or self._ids(*embedding)
            follows = tied_head and values is None
            if (ids is None) != (values is None) and not follows:
                has = "has no rows" if values is None else "has rows"
                raise UserError(
                    f"{self.folder}: {module} {has}, and adapter_config.json says "
                    f"trainable_token_indices={self.config.token_ids}"
                )
            if ids is None or values is None:
                continue
            wanted = (len(ids), self.layout.shapes[table][1])
            if values.shape != wanted:
                raise UserError(
                    f"{self.folder}: made for another base: {module} has rows "
                    f"{tuple(values.shape)}, and this model's are {wanted}"
                )
            found[table.removesuffix(".weight")] = Rows(ids, values.float())
        if left:
            raise UserError(
                f"{self.folder}: it has rows of {', '.join(left)}, which is neither embedding nor "
                "head"
            )
        if self.tied and len(found) == 2 and found["embed"].ids == found["head"].ids:
            del found["head"]
        return found

    def _ids(self, table: str, module: str) -> list[int] | None:
        for end, ids in self.config.token_ids.items():
            if module.endswith(end) if end else table == "embed.weight":
                return ids
        return None

    def leave_out_base(self, whole: dict[str, Tensor], rows: dict[str, Rows]) -> None:
        """Leave out whole matrices that the base has too, in place.

        PEFT saves embedding and head whole beside their rows if the model has more rows than its
        base.

        Args:
            whole: the family's tensor name -> tensor.
            rows: what `read` returns.
        """
        for table, module in self.tables.items():
            name, base = f"{module}.weight", self.base[table]
            own = rows.get(table.removesuffix(".weight"), rows.get("embed") if self.tied else None)
            if own is None or name not in whole or len(whole[name]) < len(base):
                continue
            new, old = range(len(base), len(whole[name])), whole[name][: len(base)]
            if set(new) <= set(own.ids) and torch.equal(old.to(base), base):
                del whole[name]

    def grow(self, whole: dict[str, Tensor]) -> int | None:
        """Return the rows of embedding and head if the adapter needs more than the model has.

        The layout then has them too.

        Raises:
            UserError: the adapter does not say what is in all of them.
        """
        size = self.layout.shapes["embed.weight"][0]
        listed = {i for ids in self.config.token_ids.values() for i in ids}
        tables = [f"{module}.weight" for module in self.tables.values()]
        saved = max((len(whole[name]) for name in tables if name in whole), default=0)
        needed = max(listed, default=-1) + 1
        # Of a matrix that was trained whole, the tokenizer tells that it has added tokens.
        tokenizer = self.folder / "tokenizer.json"
        if saved > size and tokenizer.is_file():
            needed = saved if Tokenizer.from_pretrained(tokenizer).vocab_size > size else needed
        if needed <= size:
            return None
        if needed > saved and not listed.issuperset(range(size, needed)):
            raise UserError(
                f"{self.folder}: it has a row for token {needed - 1}, the model has {size} rows, "
                "and the adapter has not all of those between; give the base with all its rows"
            )
        for table in TABLES:
            self.layout.shapes[table] = torch.Size((needed, self.layout.shapes[table][1]))
        return needed
