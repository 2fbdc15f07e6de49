"""Answers of lm-eval's generation tasks in padded batches, for what the engine does not take.

These are models whose weights are divided among ranks, which all make the same forward passes,
models under autocast, and models that give logits and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from lit_llm.evaluate.decode import Decoding, decode
from lit_llm.evaluate.engine_answers import Prompt
from lit_llm.evaluate.measuring import measuring
from lit_llm.evaluate.scoring.plain import LogitsModel
from lit_llm.evaluate.scoring.sharing import progress, share
from lit_llm.models.tokenizer import Tokenizer
from lit_llm.models.transformer import Transformer


def padded_answers(
    model: Transformer | LogitsModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    stop_ids: set[int],
    batch_size: int,
    bar_stream: TextIO | None = None,
) -> list[str]:
    """Answer each prompt, up to its first stop string or stop token.

    Prompts of equal settings share batches, the longest first. Arguments as for `engine_answers`.
    """
    groups: dict[Decoding, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(prompt.how, []).append(number)
    batches = []
    for members in groups.values():
        members.sort(key=lambda number: -len(prompts[number].ids))
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]

    def answer(batch: list[int]) -> list[str]:
        some = [prompts[number] for number in batch]
        with measuring(model):
            return decode(
                model, tokenizer, [prompt.ids for prompt in some], some[0].how,
                # Repeated samples of one prompt differ.
                seeds=[(prompt.seed + prompt.choice) % 2**63 for prompt in some],
                stop_ids=stop_ids,
            )  # fmt: skip

    bar = progress(bar_stream, len(prompts), "generating", "answer")
    answers = [""] * len(prompts)
    for batch, texts in zip(
        batches, share(batches, answer, list(map(len, batches)), bar), strict=True
    ):
        for number, text in zip(batch, texts, strict=True):
            answers[number] = text
    return answers
