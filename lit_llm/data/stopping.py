"""Whether a model that is finetuned with a chat template can learn where its answers end."""

from __future__ import annotations

from lit_llm.data.chat import ChatFormat
from lit_llm.errors import UserError


def learns_to_stop(chat: ChatFormat) -> bool:
    """Whether the tokens that are learnt of an answer hold one that ends generation.

    False if the template puts no token after an answer, spells one that the tokenizer does not
    have, or leaves it out of its ``{% generation %}`` block. True if the template refuses the
    question and answer that are tried: its rows are then refused with its own words.
    """
    try:
        ids, spoken = chat.encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except UserError:
        return True
    return any(speaks and i in chat.stop_ids for i, speaks in zip(ids, spoken, strict=True))
