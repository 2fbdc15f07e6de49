"""``lit_llm import SRC OUT`` and ``lit_llm export CKPT OUT``: convert checkpoints.

Both read every checkpoint format of lit_llm. Import writes a Hugging Face directory, export writes
such a directory or a GGUF file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.errors import UserError, check_no_link_to_nothing
from lit_llm.io.atomic import replacing
from lit_llm.io.streams import say
from lit_llm.settings.arguments import Parser

if TYPE_CHECKING:
    import torch

    from lit_llm.models.tokenizer import Tokenizer
    from lit_llm.models.transformer import Transformer

DTYPES = ["float32", "bfloat16", "float16"]


def import_main(args: list[str]) -> None:
    """Parse ``args``, write the directory and print its content.

    Raises:
        UserError: a mistake in the arguments, a source that does not load, a target that exists or
            is not writable.
    """
    parser = Parser(
        prog="lit_llm import",
        description="Write a model and its tokenizer as a Hugging Face directory.",
    )
    parser.add_argument(
        "src",
        metavar="SRC",
        help="a .gguf file, nanochat's model_*.pt or a Hugging Face directory; a run or .ckpt will "
        "do too",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="directory to write; must not exist or be empty"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: the source's")
    options = parser.parse_args(args)
    out = free_directory(options.out)

    from lit_llm.models.hub.checkpoint import load_model

    write_directory(*load_model(options.src, dtype=torch_dtype(options.dtype)), out)


def export_main(args: list[str]) -> None:
    """Parse ``args``, write the directory or file and print its content.

    Raises:
        UserError: as `import_main`; a model or tokenizer that GGUF cannot express.
    """
    parser = Parser(
        prog="lit_llm export",
        description="Write a model and its tokenizer for other programs: transformers and vLLM "
        "load Hugging Face directories, llama.cpp and what is built on it GGUF files.",
    )
    parser.add_argument(
        "ckpt", metavar="CKPT", help="Hugging Face directory, .gguf file, run folder or .ckpt file"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="directory (hf) or file (gguf) to write; must not exist",
    )
    parser.add_argument("--format", choices=["hf", "gguf"], required=True, help="what to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="hf: of the weights; default: the checkpoint's"
    )
    parser.add_argument(
        "--quantization",
        choices=["f16", "q8_0", "f32", "bf16"],
        help="gguf: of the matrices; default f16",
    )
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter to fold into the weights")
    options = parser.parse_args(args)
    if options.format == "hf" and options.quantization is not None:
        raise UserError(
            "--quantization goes with --format gguf; a directory's weights have a --dtype"
        )
    if options.format == "gguf" and options.dtype is not None:
        raise UserError(
            "--dtype goes with --format hf; a GGUF file's weights have a --quantization"
        )
    out = free_directory(options.out) if options.format == "hf" else _free_file(options.out)

    from lit_llm.models.hub.checkpoint import load_model

    model, tokenizer = load_model(options.ckpt, options.adapter, torch_dtype(options.dtype))
    if options.format == "hf":
        return write_directory(model, tokenizer, out)
    from lit_llm.models.hub.gguf.names import gguf_arch_of
    from lit_llm.models.hub.gguf.write import Quantization, write_gguf

    _add_turn_end(tokenizer)
    quantization: Quantization = options.quantization or "f16"
    notes = write_gguf(model, tokenizer, out, quantization)
    _say(out, model, tokenizer, gguf_arch_of(model.config), quantization)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _add_turn_end(tokenizer: Tokenizer) -> None:
    """Add the token that ends an answer in the chat template to the stop tokens.

    Other programs then stop where our chat stops.
    """
    from lit_llm.data.chat.chat_format import ChatFormat

    try:
        tokenizer.add_stop_ids(ChatFormat(tokenizer).stop_ids)
    except UserError:  # no chat template, or one that refuses a plain question and answer
        return


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return torch's dtype of that name; None of None."""
    import torch

    return None if name is None else getattr(torch, name)


def free_directory(path: Path) -> Path:
    """Return the whole path of a directory that is empty or does not exist.

    Raises:
        UserError: it is not empty.
    """
    out = path.expanduser().absolute()  # "." has no name to append .part to
    check_no_link_to_nothing(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty; name another directory")
    return out


def _free_file(path: Path) -> Path:
    out = path.expanduser().absolute()
    check_no_link_to_nothing(out)
    if out.exists():
        raise UserError(f"{out}: exists already; name another file")
    if out.suffix != ".gguf":
        raise UserError(f"{out}: the name of a GGUF file ends in .gguf")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent}: no such folder")
    return out


def write_directory(model: Transformer, tokenizer: Tokenizer, out: Path) -> None:
    """Write a Hugging Face directory under a temporary name, rename it to ``out``, and say so.

    Raises:
        UserError: it could not be written, or float16 cannot hold a weight.
    """
    import torch
    from safetensors import SafetensorError

    from lit_llm.models.hub.config_json import family_of, readers_of

    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float16 and not tensor.isfinite().all():
            raise UserError(
                f"{out}: {name} has values beyond the 65,504 of float16, or not finite: "
                "take --dtype bfloat16"
            )
    try:
        with replacing(out) as part:  # this also replaces an empty directory
            model.save_pretrained(part)
            tokenizer.save_pretrained(part, model_max_length=model.config.max_seq_len)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: could not be written ({error})") from None
    family = family_of(model.config) or f"no known family (for {readers_of(model.config)})"
    _say(out, model, tokenizer, family, str(model.embed.weight.dtype).removeprefix("torch."))


def _say(out: Path, model: Transformer, tokenizer: Tokenizer, family: str, dtype: str) -> None:
    weights = sum(p.numel() for p in model.parameters())
    chat = "with" if tokenizer.chat_template else "without"
    say(f"{out}: {weights:,} parameters, {family}, {dtype}, {chat} a chat template")
