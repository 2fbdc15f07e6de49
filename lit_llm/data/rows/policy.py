"""RowPolicy: the settings of `InstructionDataModule` that decide which rows are learnt, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lit_llm.errors import UserError

Format = Literal[
    "auto", "messages", "conversations", "prompt_completion", "question_answer", "alpaca",
    "segments", "text",
]  # fmt: skip
TrainOn = Literal["all", "last", "none-but-marked"]
Reasoning = Literal["learn", "mask", "drop"]
TooLong = Literal["turns", "drop", "cut", "raise"]
Mixing = Literal["concat", "proportional"]
# Keys of a message; the other names of ``data.columns`` are keys of a row.
_OF_MESSAGES = ("role", "content", "from", "value", "name", "tool_call_id", "reasoning_content",
                "tool_calls")  # fmt: skip
_OF_ROWS = ("messages", "conversations", "prompt", "completion", "response", "question", "answer",
            "query", "instruction", "input", "output", "segments", "text", "system", "history",
            "tools", "chat_template_kwargs", "split", "group", "weight", "id", "chosen", "rejected",
            "margin", "responses", "scores", "label")  # fmt: skip


@dataclass(frozen=True)
class RowPolicy:
    """Settings of the same names of `InstructionDataModule`; all are part of the cache's key."""

    format: Format = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    train_on: TrainOn = "all"
    reasoning: Reasoning = "learn"
    split_reasoning: Literal["auto", "off"] = "auto"
    too_long: TooLong = "turns"
    mixing: Mixing | Mapping[str, float] = "concat"
    source_caps: int | Mapping[str, int] | None = None
    decontaminate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [key for key in self.columns if key not in _OF_MESSAGES + _OF_ROWS]
        if unknown:
            raise UserError(
                f"data.columns: {unknown[0]!r} is not a key of the formats; known are "
                f"{', '.join(_OF_ROWS + _OF_MESSAGES)}"
            )
        if isinstance(self.mixing, Mapping) and not (
            set(self.mixing) == {"temperature"} and 0.1 <= self.mixing["temperature"] <= 100
        ):
            raise UserError(
                f"data.mixing={dict(self.mixing)}: give {', '.join(get_args(Mixing))} or "
                "{temperature: t} with t from 0.1 to 100"
            )
        caps = self.source_caps
        for cap in caps.values() if isinstance(caps, Mapping) else [1 if caps is None else caps]:
            if cap < 1:
                raise UserError(f"data.source_caps={caps}: a source needs at least one example")

    def key(self) -> dict[str, Any]:
        """The settings as plain values, for the cache's key."""
        return dataclasses.asdict(self)

    def renamed(self, row: dict[str, Any], seen: set[str]) -> dict[str, Any]:
        """The row with the names of ``columns`` replaced by ours, in its messages too.

        A key of the row that has our name already gives way to the renamed one.

        Args:
            row: the row as the file has it.
            seen: gets the names that were found.
        """
        if not self.columns:
            return row
        row = _renamed(row, {o: t for o, t in self.columns.items() if o in _OF_ROWS}, seen)
        inner = {ours: theirs for ours, theirs in self.columns.items() if ours in _OF_MESSAGES}
        for key, value in row.items() if inner else ():
            if isinstance(value, list):
                row[key] = [_renamed(m, inner, seen) if isinstance(m, dict) else m for m in value]
        return row


def _renamed(row: dict[str, Any], names: dict[str, str], seen: set[str]) -> dict[str, Any]:
    found = {ours: theirs for ours, theirs in names.items() if theirs in row}
    seen.update(found.values())
    rest = {key: value for key, value in row.items() if key not in found.values()}
    return rest | {ours: row[theirs] for ours, theirs in found.items()}
