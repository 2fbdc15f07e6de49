"""Read and write Hugging Face directories: config.json and (sharded) safetensors."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_llm.errors import UserError
from lit_llm.io.git_lfs import refuse_pointer
from lit_llm.models.config import TransformerConfig
from lit_llm.models.hub import generation_config as generation
from lit_llm.models.hub.config_json import config_from_hf, config_to_hf, family_of
from lit_llm.models.hub.remote_code import write_modeling_file
from lit_llm.models.hub.sequence_classification import SCORE, is_reward_config, reward_config
from lit_llm.models.hub.tensor_layout import Layout
from lit_llm.models.meta import meta_transformer
from lit_llm.models.scorer import become_scorer, is_scorer
from lit_llm.models.transformer import Transformer

MAX_SHARD_BYTES = 5 * 10**9
_STORED_TABLES = re.compile(r"rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$")
"""Tensors of old checkpoints that only repeat the config: frequencies and causal masks."""

_WEIGHT_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_log = logging.getLogger(__name__)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        UserError: the file is missing or broken; the message names it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def iter_tensors(
    folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of every entry in the folder's weights.

    One tensor is in memory at a time (safetensors are mapped). Entries whose names are not
    ``wanted`` are not read.

    Raises:
        UserError: a file is missing or not whole.
    """
    from safetensors import safe_open

    for file in _weight_files(folder):
        with _broken_file_errors(file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as reader:
                    for name in filter(wanted, reader.keys()):
                        yield name, reader.get_tensor(name)
            else:
                # A pickle can run any code; with weights_only torch loads tensors and nothing else.
                held = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
                for name in filter(wanted, held):
                    yield name, held[name]


def stored_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of the folder's weights by dtype name, from the headers of the files alone.

    Raises:
        UserError: as `iter_tensors`.
    """
    from safetensors import safe_open

    total: dict[str, int] = {}
    for file in _weight_files(folder):
        with _broken_file_errors(file):
            if file.suffix == ".safetensors":
                # "pt" would reserve memory for the whole file.
                with safe_open(file, framework="np") as reader:
                    for name in reader.keys():  # noqa: SIM118
                        entry = reader.get_slice(name)
                        dtype = entry.get_dtype()
                        # The number in the dtype's name: BF16, F8_E4M3, I64, U8, BOOL.
                        bits = int(re.sub(r"\D.*", "", dtype.lstrip("BFIUOL")) or 8)
                        total[dtype] = (
                            total.get(dtype, 0) + math.prod(entry.get_shape()) * bits // 8
                        )
            else:
                for tensor in torch.load(
                    file, map_location="cpu", mmap=True, weights_only=True
                ).values():
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    total[dtype] = total.get(dtype, 0) + tensor.numel() * tensor.element_size()
    return total


@contextmanager
def _broken_file_errors(file: Path) -> Iterator[None]:
    """Turn the libraries' exceptions for a broken weight file into a UserError.

    The message names the file.
    """
    from safetensors import SafetensorError

    refuse_pointer(file)
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError,
            AttributeError) as error:  # fmt: skip
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not a whole file of weights ({said})") from None


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the folder's weights.

    If there are several kinds of files, those that transformers loads are taken. Other weight files
    beside them, left by an earlier save, are named in a warning.

    Raises:
        UserError: one is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            _say_unused(folder, {name})
            return [folder / name]
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(
                isinstance(file, str) for file in weight_map.values()
            ):
                raise UserError(f"{index}: has no weight_map of file names")
            for tensor, file in weight_map.items():
                if Path(file).name != file or not (folder / file).is_file():
                    raise UserError(
                        f"{folder / file}: no such file; {index.name} says that it holds {tensor}"
                    )
            _say_unused(folder, {index.name, *weight_map.values()})
            return [folder / file for file in sorted(set(weight_map.values()))]
    raise UserError(
        f"{folder / 'model.safetensors'}: no such file; a model directory holds it or its shards"
    )


def _say_unused(folder: Path, used: set[str]) -> None:
    names = {file.name for file in folder.iterdir() if _WEIGHT_FILE.fullmatch(file.name)} - used
    if names:
        _warn_once(
            f"{folder}: the weights are read from {_some(sorted(used))}, as transformers does; "
            f"not used: {_some(sorted(names))}"
        )


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def read_config(folder: Path) -> TransformerConfig:
    """Return the shape of the model in a Hugging Face directory.

    Head and embedding are tied as in the model that `read_model` returns.

    Raises:
        UserError: as `config_from_hf`.
    """
    return _config_and_family(folder)[0]


def _check_folder(folder: Path) -> None:
    """Raise UserError for what users give in the place of a model's folder."""
    if not folder.is_dir():
        what = "a file of no known kind" if folder.exists() else "no such file or folder"
        raise UserError(
            f"{folder}: {what}; a model is a Hugging Face directory, a .gguf file or "
            "package:NAME/FILE (hf download OWNER/NAME --local-dir DIR fetches one of the hub)"
        )
    if (folder / "config.json").exists():
        return
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: is an adapter, not a model; give the model it was made for, or merge both: "
            f"lit_llm merge {folder} OUT"
        )
    if (folder / "final" / "config.json").is_file():
        raise UserError(f"{folder}: is a run; its model is {folder / 'final'}")


def _config_and_family(folder: Path) -> tuple[TransformerConfig, str | None]:
    """Return the config, and the family whose tensor names the weights use.

    The family is None for lit_llm's own names. config.json may tie the head to the embedding while
    the weights hold two tensors that differ. They then stay two tensors, with a warning, as in
    transformers (``PreTrainedModel.tie_weights``).
    """
    _check_folder(folder)
    hf = read_json(folder / "config.json")
    config = config_from_hf(hf, str(folder / "config.json"))
    family = None if hf["model_type"] == "lit_llm" else hf["model_type"]
    if config.tie_embeddings and _head_differs(folder, config, family):
        _warn_once(
            f"{folder}: config.json ties the head to the embedding (tie_word_embeddings), but the "
            "weights hold two that differ: they are not tied"
        )
        config = dataclasses.replace(config, tie_embeddings=False)
    return config, family


def _head_differs(folder: Path, config: TransformerConfig, family: str | None) -> bool:
    """Whether the weights hold a head that differs from the embedding; False without weights."""
    layout = _embedding_and_head(config, family)
    try:
        files = iter_tensors(folder, lambda name: layout.find(name) is not None)
        found = {layout.find(name): tensor for name, tensor in files}
    except UserError:  # loading the weights reports the error
        return False
    if len(found) < 2:
        return False
    one, other = found.values()
    return one.shape != other.shape or not torch.equal(one.to(other.dtype), other)


def _embedding_and_head(config: TransformerConfig, family: str | None) -> Layout:
    """Return a layout of embedding and head alone, as in a model where they are not tied."""
    shapes = dict.fromkeys(("embed.weight", "head.weight"), torch.Size())
    return Layout(dataclasses.replace(config, tie_embeddings=False), shapes, family)


def read_model(
    folder: Path,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Transformer], None] | None = None,
    convert: Callable[[str, Tensor], dict[str, Tensor]] | None = None,
    scorer: bool = False,
) -> Transformer:
    """See `Transformer.from_pretrained`; with ``scorer`` read a reward model instead.

    Raises:
        UserError: also if the directory holds a model of the other kind.
    """
    config, family = _config_and_family(folder)
    if is_reward_config(read_json(folder / "config.json")) != scorer:
        raise UserError(
            f"{folder}: is a language model, not a reward model (...ForSequenceClassification)"
            if scorer
            else f"{folder}: is a reward model, not a language model; it scores answers"
        )
    if scorer:
        config = dataclasses.replace(config, tie_embeddings=False)
    model = meta_transformer(config)
    if scorer:
        become_scorer(model)
    layout = Layout(
        config, {name: tensor.shape for name, tensor in model.state_dict().items()}, family
    )
    if prepare is not None:
        prepare(model)
    loaded: dict[str, Tensor] = {}
    stacks: dict[str, Tensor] = {}
    missing = set(layout.slots)
    unknown = []
    embedding, head = _embedding_and_head(config, family).slots
    for name, tensor in iter_tensors(folder):
        name = head if scorer and name == SCORE else name
        # A tied head is the embedding; some files hold only the head.
        theirs = layout.find(embedding if name == head and config.tie_embeddings else name)
        if theirs is None:
            if not _STORED_TABLES.search(name):
                unknown.append(name)
            continue
        if tensor.shape != layout.shape(theirs):
            raise UserError(
                f"{folder}: tensor {name} has shape {tuple(tensor.shape)}, config.json says "
                f"{tuple(layout.shape(theirs))}"
            )
        missing.discard(theirs)
        tensor = tensor if dtype is None else tensor.to(dtype)
        for ours, member, part in layout.split(theirs, tensor):
            if member is None:
                loaded |= {ours: part} if convert is None else convert(ours, part)
            else:
                stacks.setdefault(ours, part.new_empty(layout.shapes[ours]))[member] = part
    if unknown or missing:
        raise UserError(
            f"{folder}: unknown tensors: {_some(unknown)}; tensors missing: "
            f"{_some(sorted(missing))}"
        )
    for ours in list(stacks):
        stack = stacks.pop(ours)
        loaded |= {ours: stack} if convert is None else convert(ours, stack)
    model.assign_weights(loaded)
    model.generation_config = generation.read_generation_config(folder)
    return model


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"
    )


def write_model(
    model: Transformer,
    folder: Path,
    dtype: torch.dtype | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """See `Transformer.save_pretrained`."""
    from lit_llm.models.hub.weight_file import save_tensors

    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state_dict is None else state_dict
    layout = Layout(
        config, {name: tensor.shape for name, tensor in state.items()}, family_of(config)
    )
    hf = config_to_hf(config, dtype or state["embed.weight"].dtype)
    if is_scorer(model):
        hf = reward_config(hf, family_of(config))
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id,
           "pad_token_id": config.pad_token_id}  # fmt: skip
    fields = {key: value for key, value in ids.items() if value is not None}
    fields |= model.generation_config
    ends, eos = generation.eos_ids(fields), hf.get(generation.EOS)
    if len(ends) > 1 and eos in ends:  # for programs that read only config.json
        hf[generation.EOS] = [eos, *(i for i in ends if i != eos)]
    _write_json(folder / "config.json", hf)
    if "auto_map" in hf:
        write_modeling_file(folder)
    if not is_scorer(model):
        generation.write_generation_config(folder, fields)

    head = (
        next(n for n, slot in layout.slots.items() if "head.weight" in slot.ours)
        if (is_scorer(model))
        else None
    )

    def named(name: str) -> str:
        return SCORE if name == head else name

    def saved(name: str) -> Tensor:
        tensor = layout.join(name, state).detach()
        return tensor.to(device="cpu", dtype=dtype or tensor.dtype).contiguous()

    def size(name: str) -> int:
        return (
            layout.shape(name).numel() * (dtype or state[layout.slots[name].ours[0]].dtype).itemsize
        )

    # Fill shards of at most MAX_SHARD_BYTES in the order of the tensors.
    shards: list[list[str]] = [[]]
    filled = 0
    for name in layout.slots:
        filled += size(name)
        if filled > MAX_SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = size(name)
        shards[-1].append(name)
    for left in folder.iterdir():  # weight files of an earlier save could be read instead of these
        if _WEIGHT_FILE.fullmatch(left.name) and "safetensors" in left.name:
            left.unlink()
    if len(shards) == 1:
        save_tensors({named(name): saved(name) for name in shards[0]}, folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_tensors({named(name): saved(name) for name in names}, folder / shard)
        weight_map |= dict.fromkeys(map(named, names), shard)
    index = {
        "metadata": {"total_size": sum(size(name) for name in layout.slots)},
        "weight_map": weight_map,
    }
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
