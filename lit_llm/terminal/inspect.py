"""``lit_llm inspect CKPT``: facts of a checkpoint, from its config and file headers.

No weights are loaded. ``lit_llm inspect CONFIG`` renders examples of a finetuning run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.errors import UserError
from lit_llm.io.metrics import read_metrics
from lit_llm.io.numbers import in_binary_bytes
from lit_llm.io.streams import json_text
from lit_llm.settings.arguments import Parser
from lit_llm.settings.ranges import Number, Range
from lit_llm.terminal.inspect_data import (
    inspect_examples,
    is_config,
    split_overrides,
    text_of_examples,
)

if TYPE_CHECKING:
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.tokenizer import Tokenizer

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def inspect_main(args: list[str]) -> None:
    """Parse ``args`` and print the facts of the checkpoint, or examples of a finetuning config.

    Raises:
        UserError: a mistake in the arguments; a checkpoint that is missing, broken or of an unknown
            kind; whatever ends the run of the config before training.
    """
    parser = Parser(
        prog="lit_llm inspect",
        description="Say what a checkpoint is without loading its weights, or what a finetuning "
        "config learns. Settings of a config may follow: --data.seq_len 512.",
    )
    parser.add_argument(
        "ckpt",
        metavar="CKPT",
        help="Hugging Face directory, .gguf file, run folder or .ckpt file; or a finetuning config",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--examples",
        type=Number(int, Range(1, 10_000)),
        default=None,
        metavar="N",
        help="number of examples of a config (5)",
    )
    args, overrides = split_overrides(args)
    options = parser.parse_args(args)
    if is_config(options.ckpt):
        count = 5 if options.examples is None else options.examples
        facts = inspect_examples(options.ckpt, count, overrides)
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(json_text(facts, indent=2) if options.json else text_of_examples(facts, coloured))
        return
    if options.examples is not None or any(overrides.values()):
        raise UserError(f"{options.ckpt}: --examples and --data.KEY belong to a finetuning config")
    facts = inspect_checkpoint(options.ckpt)
    print(json_text(facts, indent=2) if options.json else _text(facts))


def inspect_checkpoint(ckpt: str | Path) -> dict[str, Any]:
    """Facts of a checkpoint as plain values, under the keys of ``--json``.

    Raises:
        UserError: see `inspect_main`.
    """
    from lit_llm.models.config import TransformerConfig
    from lit_llm.models.hub.checkpoint import (
        model_folder,
        open_training_checkpoint,
        settings_of,
        tokenizer_of_run,
    )
    from lit_llm.models.hub.locate import locate
    from lit_llm.models.tokenizer import Tokenizer

    found = locate(ckpt)
    if not found.exists():
        raise UserError(f"{ckpt}: no such file or folder")
    found = model_folder(found) if found.is_dir() and found.suffix != ".ckpt" else found
    facts: dict[str, Any] = {"path": str(found)}
    stored: dict[str, int] = {}
    if found.suffix == ".ckpt":
        checkpoint = open_training_checkpoint(found)
        fields = settings_of(checkpoint)["transformer"]
        config = TransformerConfig.from_dict(
            {"preset": fields} if isinstance(fields, str) else fields
        )
        tokenizer = tokenizer_of_run(found)
        for tensor in checkpoint["state_dict"].values():
            dtype = str(tensor.dtype).removeprefix("torch.")
            stored[dtype] = stored.get(dtype, 0) + tensor.numel() * tensor.dtype.itemsize
        step = checkpoint.get("global_step")
        facts |= {
            "format": "training checkpoint",
            "step": step,
            "tokens_seen": _tokens_seen(found, step),
        }
    elif found.suffix == ".gguf":
        from lit_llm.models.hub.gguf.read import config_of, open_gguf
        from lit_llm.models.hub.gguf.tokenizer import tokenizer_of

        file = open_gguf(found)
        config, tokenizer = config_of(file), tokenizer_of(file)
        for info in file.tensors.values():
            stored[info.kind] = stored.get(info.kind, 0) + info.size
        facts |= {"format": "GGUF"}
    elif found.is_dir():
        from lit_llm.models.hub.huggingface import stored_bytes

        config, tokenizer = (
            TransformerConfig.from_pretrained(found),
            Tokenizer.from_pretrained(found),
        )
        stored = stored_bytes(found)
        facts |= {"format": "Hugging Face directory"}
    else:
        raise UserError(
            f"{ckpt}: is not a checkpoint; give a Hugging Face directory, .gguf file, run folder "
            f"or .ckpt"
        )
    return facts | _shape(config) | {"stored_bytes": stored} | _tokenizer(tokenizer)


def _shape(config: TransformerConfig) -> dict[str, Any]:
    from lit_llm.models.accounting.flops import (
        flops_per_token,
        idle_parameters,
        matrix_parameters,
        num_parameters,
    )
    from lit_llm.models.hub.config_json import family_of

    assert config.num_kv_heads is not None and config.head_dim is not None
    total, embedding = num_parameters(config), config.vocab_size * config.hidden_size
    facts: dict[str, Any] = {
        "family": family_of(config) or "lit_llm",
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "parameters": total,
        "embedding_parameters": embedding,
    }
    if config.num_experts:
        facts["experts"], facts["experts_per_token"] = config.num_experts, config.experts_per_token
        facts["active_parameters"] = total - idle_parameters(config)
    kv_values = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return facts | {
        "weight_bytes": {name: total * size for name, size in _BYTES.items()},
        "kv_cache_bytes_per_token": {name: kv_values * size for name, size in _BYTES.items()},
        "forward_flops_per_token": 2 * matrix_parameters(config),
        "training_flops_per_token": flops_per_token(config, config.max_seq_len),
        "context": config.max_seq_len,
        "vocabulary": config.vocab_size,
    }


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_tokens": tokenizer.vocab_size,
        "special_tokens": {
            name: token for name, token in tokenizer.special_names.items() if token is not None
        },
        "chat_template": tokenizer.chat_template is not None,
    }


def _tokens_seen(file: Path, step: int | None) -> int | None:
    """Tokens at ``step`` in the run's metrics.csv, or None if it does not record them."""
    tokens = (
        read_metrics(file.parent.parent).column("tokens").get(step) if step is not None else None
    )
    try:
        return None if tokens is None else int(tokens)
    except ValueError:
        raise UserError(
            f"{file.parent.parent / 'metrics.csv'}: tokens of step {step} is {tokens!r}, "
            "not a number"
        ) from None


def _text(facts: dict[str, Any]) -> str:
    lines = [facts["path"]]

    def say(name: str, *values: str) -> None:
        lines.append(f"  {name:18} {', '.join(values)}")

    say("format", facts["format"])
    if "step" in facts:
        tokens = facts["tokens_seen"]
        say(
            "training",
            f"step {facts['step']}",
            *([] if tokens is None else [f"{tokens:,} tokens seen"]),
        )
    say("family", facts["family"])
    say(
        "shape", f"{facts['layers']} layers", f"width {facts['hidden_size']}",
        f"{facts['heads']} heads of {facts['head_dim']} ({facts['kv_heads']} for keys and values)",
    )  # fmt: skip
    say(
        "parameters",
        f"{facts['parameters']:,}",
        f"{facts['embedding_parameters']:,} in the embedding",
    )
    if "experts" in facts:
        active = f"{facts['active_parameters']:,} parameters active"
        say("experts", f"{facts['experts_per_token']} of {facts['experts']}", active)
    say(
        "stored",
        *(f"{in_binary_bytes(size)} {dtype}" for dtype, size in facts["stored_bytes"].items()),
    )
    say(
        "weights in memory",
        *(f"{in_binary_bytes(size)} {dtype}" for dtype, size in facts["weight_bytes"].items()),
    )
    say(
        "KV cache a token",
        *(
            f"{in_binary_bytes(size)} {dtype}"
            for dtype, size in facts["kv_cache_bytes_per_token"].items()
        ),
    )
    say(
        "FLOPs a token", f"{facts['forward_flops_per_token']:.3g} forward without attention",
        f"{facts['training_flops_per_token']:.3g} training at full context",
    )  # fmt: skip
    say("context", f"{facts['context']:,} tokens")
    say("vocabulary", f"{facts['vocabulary']:,}", f"{facts['tokenizer_tokens']:,} in the tokenizer")
    say("special tokens", *(f"{name} {token}" for name, token in facts["special_tokens"].items()))
    say("chat template", "yes" if facts["chat_template"] else "no")
    return "\n".join(lines)
