"""Whether a model that is finetuned with a chat template can learn where its answers end."""

from __future__ import annotations

from lit_llm.data.chat import ChatFormat
from lit_llm.errors import UserError


def learns_to_stop(chat: ChatFormat) -> bool:
    """Whether the tokens that are learnt of an answer hold one that ends generation.

    False for a template that puts no token after an answer, that spells one which the tokenizer does not know, or that
    leaves it out of its ``{% generation %}`` block. True where the template refuses a question and an answer alone: the
    rows tell then.
    """
    try:
        ids, spoken = chat.encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
    except UserError:
        return True
    return any(speaks and i in chat.stop_ids for i, speaks in zip(ids, spoken, strict=True))
