"""``lit_llm import SRC OUT``: any checkpoint we read as a Hugging Face directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from lit_llm.arguments import Parser
from lit_llm.errors import UserError


def import_main(args: list[str]) -> None:
    """Parse ``args``, write the directory and say what it holds.

    Raises:
        UserError: a mistake in the arguments, a source that does not load, a target that is in use or not writable.
    """
    parser = Parser(prog="lit_llm import", description="Write a model and its tokenizer as a Hugging Face directory.")
    parser.add_argument("src", metavar="SRC", help="a .gguf file or Hugging Face directory; a run or .ckpt will do too")
    parser.add_argument("out", metavar="OUT", type=Path, help="directory to write; must not exist or be empty")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights; default: the source's"
    )
    options = parser.parse_args(args)
    out: Path = options.out.expanduser().absolute()  # "." has no name to put .part behind
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty; name another directory")

    import torch
    from safetensors import SafetensorError

    from lit_llm.models.checkpoint import load_model
    from lit_llm.models.config_json import family_of

    model, tokenizer = load_model(options.src, dtype=None if options.dtype is None else getattr(torch, options.dtype))
    part = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by an import that was killed
        model.save_pretrained(part)
        tokenizer.save_pretrained(part, model_max_length=model.config.max_seq_len)
        part.replace(out)  # over an empty directory too
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: could not be written ({error})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    weights = sum(p.numel() for p in model.parameters())
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    chat = "with" if tokenizer.chat_template else "without"
    family = family_of(model.config) or "lit_llm (no Hugging Face family has this shape)"
    print(f"{out}: {weights:,} parameters, {family}, {dtype}, {chat} a chat template")
