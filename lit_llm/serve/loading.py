"""Loads a checkpoint and starts its engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError, settings_called
from lit_llm.io.streams import say
from lit_llm.models.engine.budget import token_budgets
from lit_llm.models.engine.check import check
from lit_llm.models.engine.core import Engine
from lit_llm.models.engine.loop import EngineLoop
from lit_llm.models.engine.slots import capacities
from lit_llm.models.hub.checkpoint import choose_device, load_model, tokenizer_of_adapter
from lit_llm.models.hub.digest import digest
from lit_llm.models.hub.locate import locate
from lit_llm.models.kernels.device import has_fast_bf16
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer
from lit_llm.serve.api.service import ServedModel
from lit_llm.settings.arguments import adapter_name, named_adapter

_SETTINGS = {"kv_gb": "--kv_gb", "prefix_gb": "--prefix_gb"}


def load_served(options: argparse.Namespace) -> dict[str, ServedModel]:
    """The model of ``options.ckpt`` and its adapters by name, all with one running engine.

    Raises:
        UserError: the checkpoint or an adapter does not load, two have one name, or keys and values
            do not fit into memory.
    """
    model, tokenizer = _open(options)
    weights = digest(model.named_parameters())
    with settings_called(_SETTINGS):
        kv_tokens, prefix_tokens = token_budgets(model, options.kv_gb, options.prefix_gb)
    name = options.name or model_name(options.ckpt)
    adapters = named_adapters(options.adapter, name)
    vocab_size = model.config.vocab_size
    engine = Engine(
        model,
        kv_tokens,
        prefix_tokens,
        options.step_tokens,
        adapters=adapters,
        tokenizer=tokenizer,
    )
    loop = EngineLoop(engine, options.max_waiting, options.max_waiting_tokens, options.step_timeout)
    # A request of the whole context must fit into the memory for keys and values.
    context = max(size for size in capacities(engine.max_seq_len) if size <= kv_tokens)

    def served(called: str, words: Tokenizer, root: str) -> ServedModel:
        return ServedModel(
            called,
            loop,
            words,
            ChatFormat(words) if words.chat_template is not None else None,
            digest=weights,
            root=root,
            adapter=None if called == name else called,
            parent=None if called == name else name,
            context=context,
        )

    found = {name: served(name, tokenizer, options.ckpt)}
    for called, folder in adapters.items():
        own = tokenizer_of_adapter(locate(folder), tokenizer, vocab_size)
        found[called] = served(called, own, folder)
    return found


def model_name(ckpt: str) -> str:
    """Name of a model without ``--name``: its folder's, or its file's without the suffix.

    ``final/`` of a run has the run's name.
    """
    path = Path(ckpt).absolute()
    if path.name == "final":
        return path.parent.name
    return path.stem if path.suffix in (".gguf", ".ckpt") else path.name


def named_adapters(given: Sequence[str], base: str) -> dict[str, str]:
    """Folders of adapters by name, from NAME=DIR or DIR (see `adapter_name`).

    Raises:
        UserError: a name is there twice.
    """
    found: dict[str, str] = {}
    for word in given:
        named, folder = named_adapter(word)
        name = named or adapter_name(folder)
        if name in found or name == base:
            raise UserError(f"--adapter {word}: there is another model named {name}; give NAME=DIR")
        found[name] = folder
    return found


def check_engine(options: argparse.Namespace) -> bool:
    """Say whether answers depend on their company on this machine; return whether they do not.

    Raises:
        UserError: the checkpoint does not load.
    """
    found = check(_open(options)[0])
    for line in found.lines():
        say(line)
    return found.holds


def _open(options: argparse.Namespace) -> tuple[Transformer, Tokenizer]:
    device = choose_device(options.device)
    dtype = torch.bfloat16 if has_fast_bf16(device) else torch.float32
    model, tokenizer = load_model(options.ckpt, dtype=dtype)
    return model.to(device), tokenizer
