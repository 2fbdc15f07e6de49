"""What `SFTModule` checks of tokens that the data adds to those of the base."""

from __future__ import annotations

from collections.abc import Mapping

from lit_llm.errors import UserError
from lit_llm.models.lora_config import LoRAConfig


def check_train_tokens(lora: LoRAConfig, added: Mapping[str, int], precision: str) -> None:
    """Check what trains beside the updates.

    Args:
        lora: the settings.
        added: tokens that are added, with their ids.
        precision: of the Trainer.

    Raises:
        UserError: ``train_tokens`` is set and no token is added, or the precision is too low for
            what trains in float32.
    """
    if lora.train_tokens is not None and not added:
        raise UserError(
            f"lora.train_tokens={lora.train_tokens}: no token is added to the base's; leave it "
            "out, or add tokens with data.add_tokens"
        )
    trained = "lora.train_modules" if lora.train_modules else ""
    if added and lora.train_tokens != "none":
        trained = trained or "the rows of added tokens (lora.train_tokens)"
    if trained and precision in ("bf16-true", "16-true"):
        raise UserError(
            f"{trained}: trainer.precision={precision} would hold them in half precision; set it "
            "to bf16-mixed, which holds the base in bfloat16 too"
        )


def check_same_tokens(saved: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Check that a checkpoint's rows are those of the tokens that are added now.

    Raises:
        UserError: they are not.
    """
    if saved != now:
        raise UserError(
            f"data.add_tokens: the checkpoint has rows of the added tokens {_listed(saved)}, and "
            f"now these are {_listed(now)}; restore them"
        )


def _listed(tokens: Mapping[str, int]) -> str:
    return ", ".join(f"{token} ({index})" for token, index in tokens.items()) or "none"
