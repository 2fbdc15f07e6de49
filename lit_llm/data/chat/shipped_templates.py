"""Chat templates that the package ships, for bases without one, or without tools: see `TOKENS`."""

from __future__ import annotations

from pathlib import Path

from lit_llm.errors import UserError
from lit_llm.models.tokenizer import Tokenizer

_FOLDER = Path(__file__).with_name("templates")
# Control tokens that a template writes. Without them a model would see their characters as text,
# and nothing would end a turn; see `missing_tokens`.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "hermes": ("<|im_start|>", "<|im_end|>"),  # chatml with tools and thoughts
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "plain": (),
}


def missing_tokens(name: str | None, tokenizer: Tokenizer) -> list[str]:
    """Control tokens of the package's template ``name`` that the tokenizer lacks.

    The list is empty for other templates, whose control tokens are not known.
    """
    if name is None or name in tokenizer.named_templates:
        return []
    return [token for token in TOKENS.get(name, ()) if token not in tokenizer.control_tokens]


def template_source(name: str, tokenizer: Tokenizer) -> str:
    """Source of the chat template that ``data.chat_template`` names.

    It is one of the tokenizer's named templates, one of the package's, or a file, in this order; a
    file of the name of a template is given as ``./chatml``.

    Raises:
        UserError: the file is not readable, or the tokenizer lacks the eos token that plain writes.
    """
    if name in tokenizer.named_templates:
        return tokenizer.named_templates[name]
    if name in TOKENS:
        if name == "plain" and tokenizer.eos_id is None:
            raise UserError(
                "data.chat_template=plain: the tokenizer lacks an end-of-text token (eos_token); "
                "take chatml, whose tokens are added"
            )
        return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template: {name} is not readable ({error}); give a file, or one of "
            f"{', '.join([*tokenizer.named_templates, *TOKENS])}"
        ) from None
