"""What rehearsing general questions costs a finetuning run."""

from __future__ import annotations

from typing import Any

from lit_llm.data.instructions import InstructionDataModule
from lit_llm.data.rows.row_files import GENERAL, read_rows
from lit_llm.models.hub.huggingface import read_json

SHARE = 3 / 7
"""Share of the examples that the measured preset rehearses (finetune/quickstart)."""


def rehearsal_cost(data: Any) -> dict[str, Any] | None:
    """Tokens of one pass that rehearsal takes, or would take; None for data without it.

    Returns:
        "used": whether the run rehearses; "share": of the examples, or `SHARE`; "tokens": of
        general questions in a pass; "own_tokens": the others in a pass. Time is proportional to
        tokens, but for padding.
    """
    if not isinstance(data, InstructionDataModule):
        return None
    sources = [data.sources] if isinstance(data.sources, str) else data.sources
    if GENERAL in sources:
        return None  # its own weight decides
    splits = read_json(data.datacard_file)["splits"]
    examples, all_tokens = splits["train"]["examples"], splits["train"]["tokens"]
    lengths = []
    for _, row in read_rows(GENERAL):
        assert isinstance(row, dict)  # a file of the package
        question, answer = row["messages"]
        ids = data.chat.prompt_ids([question])
        lengths.append(len(ids) + len(data.tokenizer.encode(answer["content"])) + 1)
    used, share = data.rehearsal > 0, data.rehearsal or SHARE
    ratio = share / (1 - share)
    # Examples that are held out of the sources count too when the share is made.
    held_out = 0 if data.validation else splits["validation"]["examples"]
    own = (examples - ratio * held_out) / (1 + ratio) if used else examples
    tokens = round(ratio * (own + held_out) * sum(lengths) / len(lengths))
    return {
        "used": used,
        "share": share,
        "tokens": tokens,
        "own_tokens": all_tokens - (tokens if used else 0),
    }
