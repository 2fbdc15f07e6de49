"""Chat templates that the package ships, for bases without one, or without tools: see `TOKENS`."""

from __future__ import annotations

from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

_FOLDER = Path(__file__).with_name("templates")
# Control tokens that a template writes. Without them a model would see their characters as text,
# and nothing would end a turn.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "hermes": ("<|im_start|>", "<|im_end|>"),  # chatml with tools and thoughts
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "plain": (),
}


def template_source(name: str, tokenizer: Tokenizer) -> str:
    """Source of the chat template that ``data.chat_template`` names.

    It is one of the tokenizer's named templates, one of the package's, or a file, in this order; a
    file of the name of a template is given as ``./chatml``.

    Raises:
        UserError: the file is not readable, or the tokenizer lacks control tokens of the package's
            template.
    """
    if name in tokenizer.named_templates:
        return tokenizer.named_templates[name]
    if name in TOKENS:
        missing = [token for token in TOKENS[name] if token not in tokenizer.control_tokens]
        if name == "plain" and tokenizer.eos_id is None:
            missing = ["an end-of-text token (eos_token)"]
        if missing:
            raise UserError(
                f"data.chat_template={name}: the tokenizer lacks {', '.join(missing)}; add them "
                "with data.add_tokens, or take plain, which needs no token but eos_token"
            )
        return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: {name} is not readable ({error}); give a file, or one of "
            f"{', '.join([*tokenizer.named_templates, *TOKENS])}"
        ) from None
