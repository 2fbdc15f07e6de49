"""Read the tensors of a PEFT directory and find the place of each in a model."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_llm.errors import UserError
from lit_llm.io.git_lfs import refuse_pointer
from lit_llm.models.dora import scale_rows
from lit_llm.models.hub.adapter_config import AdapterConfig
from lit_llm.models.hub.adapter_rows import TABLES, Rows, RowsReader
from lit_llm.models.hub.config_json import family_of
from lit_llm.models.hub.tensor_layout import Layout, Slot
from lit_llm.models.lora import is_lora
from lit_llm.models.lora_config import TARGETS, WHOLE, LoRAConfig
from lit_llm.models.quantize import unpacked_shapes
from lit_llm.models.transformer import Transformer

_PREFIX = "base_model.model."
# PEFT's files leave out the adapter's name ("default"); a state dict saved directly contains it.
_FACTOR = re.compile(
    r"(.+)\.(?:lora_([AB])(?:\.default)?\.weight|lora_embedding_([AB])(?:\.default)?"
    r"|lora_(magnitude)_vector(?:\.default)?(?:\.weight)?)"
)
_ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")


class Update(NamedTuple):
    """The update of one of lit_llm's layers; all tensors are float32."""

    a: Tensor
    """(rank, in)."""
    b: Tensor
    """(out, rank)."""
    alpha: float
    magnitude: Tensor | None = None
    """DoRA's, (out,)."""


@dataclass
class Adapter:
    """Updates read from a PEFT directory.

    Attributes:
        config: how the updates were trained; ``rank`` and ``alpha`` are those of layers that no
            pattern matches.
        updates: lit_llm's layer name -> its update.
        weights: lit_llm's weight name -> value that replaces the base's. These are modules that
            were trained as a whole, and, for modules that are not linear layers of a block, the
            base's weight plus the update.
        rows: "embed" or "head" -> its trained rows; a tied head has those of the embedding.
        vocab_size: rows of embedding and head, if the adapter has tokens that the base lacks.
        untied: whether head and embedding, tied in the base, become two matrices.
    """

    config: LoRAConfig
    updates: dict[str, Update] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    vocab_size: int | None = None
    untied: bool = False


def read_adapter(model: Transformer, folder: str | Path) -> Adapter:
    """Read the updates of a PEFT directory for ``model``, with the same results as in PEFT.

    One layer of the family can be several layers of lit_llm. Each of these then gets an update: B's
    rows are divided, A is copied.

    Raises:
        UserError: there is no such adapter, it is not LoRA, or tensors are missing, unknown to the
            model or of another shape.
    """
    return _Reader(model, Path(folder).expanduser()).read()


def layout_without_updates(model: Transformer) -> Layout:
    """Return the layout of the model in its family, with a separate matrix for the head."""
    shapes = {name: shape for name, shape in unpacked_shapes(model).items() if not is_lora(name)}
    untied = dataclasses.replace(model.config, tie_embeddings=False)
    return Layout(untied, shapes, family_of(model.config))


def adaptable(model: Transformer, layout: Layout) -> Iterator[tuple[str, Slot, list[nn.Linear]]]:
    """Yield the family's linear layers that can have updates: name, slot and lit_llm's layers."""
    for name, slot in layout.slots.items():
        modules = [ours.rpartition(".")[0] for ours in slot.ours]
        if name.endswith(".weight") and all(
            module.rsplit(".", 1)[-1] in TARGETS for module in modules
        ):
            linears = [m for m in map(model.get_submodule, modules) if isinstance(m, nn.Linear)]
            if len(linears) == len(modules):
                yield name.removesuffix(".weight"), slot, linears


class _Reader:
    """Reads one directory for one model."""

    def __init__(self, model: Transformer, folder: Path):
        self.folder, self.layout = folder, layout_without_updates(model)
        self.config = AdapterConfig.read(folder / "adapter_config.json")
        self.base = model.state_dict()
        self.tied = model.config.tie_embeddings
        self.linear = {module for module, _, _ in adaptable(model, self.layout)}
        self.factors: dict[str, dict[str, Tensor]] = {}  # family's module -> A and B
        self.whole: dict[str, Tensor] = {}  # family's full tensor name -> tensor
        self.rows: dict[str, Tensor] = {}  # family's module -> its trained rows
        for name, tensor in _load(folder).items():
            self._sort(name, tensor)

    def _sort(self, name: str, tensor: Tensor) -> None:
        uncompiled = name.replace("_orig_mod.", "")  # torch.compile adds this prefix
        inner = uncompiled.removeprefix(_PREFIX)
        if inner == uncompiled:
            raise UserError(f"{self.folder}: tensor {name}: PEFT's begin with {_PREFIX}")
        if found := _ROWS.fullmatch(inner):
            self.rows[found[1]] = tensor
        elif found := _FACTOR.fullmatch(inner):
            module, linear, embedding, magnitude = found.groups()
            # An embedding's A is (rank, vocabulary) and its B (width, rank): the product B A is
            # the update of the transposed weight.
            self.factors.setdefault(module, {})[linear or magnitude or f"embedding_{embedding}"] = (
                tensor
            )
        else:
            plain = inner.replace(".token_adapter.", ".").replace(".base_layer.", ".")
            self.whole[plain] = tensor

    def read(self) -> Adapter:
        config = self.config
        self._check_places()
        self._check_targets()
        reader = RowsReader(self.folder, config, self.layout, self.base, self.tied)
        rows = reader.read(self.rows, self._adapter_name)
        reader.leave_out_base(self.whole, rows)
        vocab_size = reader.grow(self.whole)
        adapter = Adapter(
            LoRAConfig(
                rank=config.rank,
                alpha=config.alpha,
                dropout=config.dropout,
                targets=self._our_targets(),
                rank_stabilized=config.rank_stabilized,
                dora=config.dora,
            ),
            rows=rows,
            vocab_size=vocab_size,
        )
        adapter.config.train_modules = self._trained_whole()
        adapter.untied = self.tied and not config.keep_tied and self._touches_embeddings()
        adapter.untied |= self.tied and "head" in rows
        for name, tensor in self.whole.items():
            slot = self._slot(name)
            shape = self.layout.shape(slot)
            if tensor.shape != shape:
                raise self._another_base(f"{name} has shape {tuple(tensor.shape)}", tuple(shape))
            self._put(adapter, slot, tensor)
        for module in self.factors:
            self._read_update(adapter, module)
        if self.tied and not adapter.untied:
            self._keep_tied(adapter)
        return adapter

    def _slot(self, name: str) -> str:
        slot = self.layout.find(name)
        assert slot is not None  # `_check_places`
        return slot

    def _check_places(self) -> None:
        """Check that every tensor belongs to a module of the model."""
        names = [*(f"{module}.weight" for module in (*self.factors, *self.rows)), *self.whole]
        if not names:
            raise UserError(f"{self.folder}: the adapter holds no tensors")
        if unknown := [name for name in names if self.layout.find(name) is None]:
            raise self._another_base(f"it has tensors for {_some(unknown)}", None)

    def _check_targets(self) -> None:
        """Check that exactly the modules that the config adapts or saves have tensors."""
        config, file = self.config, "adapter_config.json"
        tied = (
            set(map(self._adapter_name, self._embedding_modules())) if config.keep_tied else set()
        )
        if odd := [m for m in self.factors if not config.adapts(m) and m not in tied]:
            raise UserError(
                f"{self.folder}: it has updates of {_some(odd)}, which {file} does not adapt: see "
                "target_modules, exclude_modules, layers_to_transform and modules_to_save"
            )
        modules = {self._adapter_name(name.removesuffix(".weight")): name.removesuffix(".weight")
                   for name in self.layout.slots if name.endswith(".weight")}  # fmt: skip
        if config.targets is not None:
            embeddings = set() if config.takes_all_linear else self._embedding_modules()
            absent = [
                module
                for module, name in modules.items()
                if name in self.linear | embeddings
                and config.adapts(module)
                and module not in self.factors
                and module not in tied
            ]
            if absent:
                raise UserError(
                    f"{self.folder}: the adapter is incomplete: {file} adapts {_some(absent)}, "
                    "and there is no tensor of it"
                )
        for end in config.saved:
            if not any(name.rpartition(".")[0].endswith(end) or f".{end}." in f".{name}"
                       for name in self.whole):  # fmt: skip
                raise UserError(
                    f"{self.folder}: the adapter is incomplete: {file} saves {end} "
                    "(modules_to_save), and there is no tensor of it"
                )

    def _adapter_name(self, module: str) -> str:
        """Return a module's name as the adapter spells it.

        An adapter of a model without a head leaves out the first part of the names.
        """
        short = any(f"{name}.weight" not in self.layout.slots for name in self.factors)
        return module.partition(".")[2] if short and "." in module else module

    def _embedding_modules(self) -> set[str]:
        return {name.removesuffix(".weight") for name, slot in self.layout.slots.items()
                if slot.ours[0] in TABLES}  # fmt: skip

    def _touches_embeddings(self) -> bool:
        """Whether head or embedding has an update or its own copy; in PEFT the other one stays."""
        return any(
            self.config.saves(module) or module in self.factors
            for module in map(self._adapter_name, self._embedding_modules())
        )

    def _our_targets(self) -> tuple[str, ...]:
        ours = {
            name.split(".")[-2]
            for module in self.factors
            for name in self.layout.slots[self._slot(f"{module}.weight")].ours
        }
        return tuple(target for target in TARGETS if target in ours)

    def _trained_whole(self) -> tuple[str, ...]:
        """Return `LoRAConfig.train_modules` if they are exactly what the adapter holds whole."""
        if any(self._slot(f"{m}.weight").removesuffix(".weight") not in self.linear
               for m in self.factors):  # fmt: skip
            return ()  # an update of head or embedding is added to what is held whole
        held = {ours for name in self.whole for ours in self.layout.slots[self._slot(name)].ours}
        if self.tied and held & set(TABLES) and self.config.keep_tied:
            held |= set(TABLES)
        modules = tuple(m for m, names in WHOLE.items() if any(map(names.fullmatch, held)))
        config = LoRAConfig(train_modules=modules)
        tied = self.tied and self.config.keep_tied
        wanted = {name for name in self.base if config.trains_whole(name, tied)}
        return modules if wanted == held else ()

    def _read_update(self, adapter: Adapter, module: str) -> None:
        config, name = self.config, self._slot(f"{module}.weight")
        slot, factors = self.layout.slots[name], self.factors[module]
        embedding = slot.ours[0] == "embed.weight"
        a, b = (factors.get(f"embedding_{side}" if embedding else side) for side in "AB")
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise UserError(f"{self.folder}: the adapter is incomplete: {module} has no {missing}")
        rank, alpha = config.rank_of(module), config.alpha_of(module)
        transposed = embedding or self.layout.transposed(name)  # the family's weight is (in, out)
        self._check_factors(module, name, a, b, rank, transposed)
        a, b, magnitude = a.float(), b.float(), self._magnitude(module, len(b))
        if name.removesuffix(".weight") in self.linear:
            parts = self.layout.split_rows(slot, b)
            lengths = [None] * len(parts) if magnitude is None else (
                self.layout.split_rows(slot, magnitude))  # fmt: skip
            for ours, part, length in zip(slot.ours, parts, lengths, strict=True):
                adapter.updates[ours.removesuffix(".weight")] = Update(a, part, alpha, length)
            return
        update = adapter.config.scale(rank, alpha) * (b @ a)
        if magnitude is None:
            self._put(adapter, name, update.T if transposed else update, added=True)
            return
        weight = self.layout.join(name, self.base).float()
        whole = scale_rows((weight.T if transposed else weight) + update, magnitude)
        self._put(adapter, name, whole.T if transposed else whole)

    def _magnitude(self, module: str, rows: int) -> Tensor | None:
        """Return DoRA's magnitudes of a module, float32; None of an update without them."""
        magnitude = self.factors[module].get("magnitude")
        if (magnitude is None) == self.config.dora:
            has = "no lora_magnitude_vector" if magnitude is None else "a lora_magnitude_vector"
            said = f"adapter_config.json says use_dora={self.config.dora}"
            raise UserError(f"{self.folder}: {module} has {has}, and {said}")
        if magnitude is None:
            return None
        if magnitude.numel() != rows:
            found = f"{module} has {magnitude.numel()} magnitudes"
            raise self._another_base(found, f"(out {rows})")
        return magnitude.float().flatten()

    def _check_factors(
        self, module: str, slot: str, a: Tensor, b: Tensor, rank: int, transposed: bool
    ) -> None:
        """Check that A and B have the config's rank and the widths of the model's layer."""
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise UserError(
                f"{self.folder}: {module} has lora_A {tuple(a.shape)} and lora_B "
                f"{tuple(b.shape)}; adapter_config.json says rank {rank} (r, rank_pattern)"
            )
        shape = self.layout.shape(slot)
        out_features, in_features = reversed(shape) if transposed else shape
        if (b.shape[0], a.shape[1]) != (out_features, in_features):
            found = f"{module} has an update of a weight (out {b.shape[0]}, in {a.shape[1]})"
            raise self._another_base(found, f"(out {out_features}, in {in_features})")

    def _put(self, adapter: Adapter, slot: str, value: Tensor, added: bool = False) -> None:
        """Put the family's tensor ``value`` into ``adapter.weights``.

        With ``added`` it is added to the value already there or in the base.
        """
        weights = adapter.weights
        for ours, member, part in self.layout.split(slot, value):
            if member is None:
                before = weights.get(ours, self.base[ours])
                weights[ours] = before.float() + part if added else part
            else:
                if ours not in weights:
                    weights[ours] = self.base[ours].clone()
                stack = weights[ours]
                stack[member] = stack[member].float() + part if added else part

    def _keep_tied(self, adapter: Adapter) -> None:
        """Keep one matrix for head and embedding; PEFT also saves the head of a tied embedding."""
        head = adapter.weights.pop("head.weight", None)
        if head is None:
            return
        embedding = adapter.weights.setdefault("embed.weight", head)
        # The tolerance allows for the rounding of the two updates, which are transposes of each
        # other.
        if not torch.allclose(head.float(), embedding.float(), atol=1e-4):
            raise UserError(
                f"{self.folder}: it holds a head and an embedding that differ, for a model where "
                "they are tied"
            )

    def _another_base(self, found: str, wanted: object) -> UserError:
        by = f" ({self.config.base})" if self.config.base else ""
        has = "which this model does not have" if wanted is None else f"this model's is {wanted}"
        return UserError(f"{self.folder}: made for another base{by}: {found}, {has}")


def _load(folder: Path) -> dict[str, Tensor]:
    """Load the tensors from the file that PEFT would load."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if pickled.exists() and not file.exists():
        file = pickled
    refuse_pointer(file)
    try:
        if file is not pickled:
            return load_file(file)
        # A pickle can run any code; with weights_only torch loads tensors and nothing else.
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not readable ({said})") from None


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
