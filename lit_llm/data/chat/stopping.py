"""Check that finetuning with a chat template teaches the model to end its answers."""

from __future__ import annotations

from lit_llm.data.chat.chat_format import ChatFormat
from lit_llm.errors import UserError


def learns_to_stop(chat: ChatFormat) -> bool:
    """Whether the supervised tokens of an answer include one that ends generation.

    False if the template writes no token after an answer, writes one that the tokenizer does not
    have, or leaves it out of its ``{% generation %}`` block. True if the template refuses the test
    conversation: then its rows are refused with the template's own message.
    """
    try:
        ids, assistant_mask = chat.encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except UserError:
        return True
    return any(speaks and i in chat.stop_ids for i, speaks in zip(ids, assistant_mask, strict=True))
