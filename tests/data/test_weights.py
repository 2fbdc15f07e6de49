"""Weights of rows, answers and text parts, from the file to the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_templates import TALK, chat_of

from lit_llm import InstructionDataModule
from lit_llm.data.blocks import IGNORE
from lit_llm.errors import UserError

USER, ANSWER = {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes, it is"}


def weights_of(messages: list, template: str = "chatml") -> list[tuple[str, float]]:
    """(text, weight) of each run of learnt tokens with one weight."""
    chat = chat_of(template)
    path = chat.encode_conversation(messages).paths[0]
    runs: list[tuple[list[int], float]] = []
    for token, weight in zip(path.ids.tolist(), path.all_weights.tolist(), strict=True):
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(token)
        else:
            runs.append(([token], weight))
    return [(chat.tokenizer.decode(ids), weight) for ids, weight in runs if weight]


def test_an_answer_and_its_parts() -> None:
    first, last = {**TALK[1], "weight": 0.5}, {**TALK[3], "weight": 2}
    assert weights_of([TALK[0], first, TALK[2], last]) == [
        ("Four, of course.<|im_end|>", 0.5),
        ("Six.\n\nIs that all?<|im_end|>", 2),
    ]
    parts = [{"type": "text", "text": "one ", "weight": 3}, {"type": "text", "text": "two "},
             {"type": "text", "text": "three", "weight": 0}]  # fmt: skip
    answer = {"role": "assistant", "content": parts, "weight": 0.5}
    # The turn's end belongs to no part and weighs what the answer weighs.
    assert weights_of([USER, answer]) == [("one", 1.5), (" two", 0.5), ("<|im_end|>", 0.5)]


def test_a_token_of_two_parts_has_the_smaller_weight() -> None:
    parts = [{"type": "text", "text": "wea", "weight": 4}, {"type": "text", "text": "ther"}]
    answer = {"role": "assistant", "content": parts}
    tokens = chat_of("chatml").tokenizer
    assert len(tokens.encode("weather")) < len(tokens.encode("wea")) + len(tokens.encode("ther"))
    (heavy, four), (rest, one) = weights_of([USER, answer])
    assert "wea".startswith(heavy) and heavy != "wea" and (four, one) == (4, 1)
    assert heavy + rest == "weather<|im_end|>"


def data(folder: Path, tokenizer: Path, rows: list[dict[str, Any]]) -> InstructionDataModule:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = InstructionDataModule(
        str(file), tokenizer=str(tokenizer), cache_dir=str(folder / "cache"), seq_len=64,
        micro_batch_size=2, global_batch_tokens=128, validation_fraction=0.1, min_steps=0,
    )  # fmt: skip
    made.prepare_data()
    made.setup("fit")
    return made


def rows(**own: Any) -> list[dict[str, Any]]:
    questions = [{"role": "user", "content": f"Is {i} {'odd ' * i}?"} for i in range(8)]
    return [{"messages": [question, {**ANSWER, **own}]} for question in questions]


def test_batches_and_step_tokens_carry_weights(tmp_path: Path, tokenizer_folder: Path) -> None:
    given = rows(weight=0.5)
    given[3]["weight"], given[4]["weight"], given[5]["weight"] = 4, 0, "0.25"
    given += [{"text": "Nobody asks.", "weight": 3, "split": "train"}]
    made = data(tmp_path, tokenizer_folder, given)
    card = json.loads(made.datacard_file.read_text())
    assert card["rows_of_weight_0"] == 1
    assert sum(split["weighted"] for split in card["splits"].values()) == 8
    assert sum(split["examples"] for split in card["splits"].values()) == 8
    weights: set[float] = set()
    for step, batch in enumerate(made.train_dataloader()):
        labels, own = batch["labels"], batch["label_weights"]
        assert own.shape == labels.shape and (own[labels == IGNORE] == 0).all()
        assert batch["step_tokens"] == made.supervised_tokens[step] == float(own.double().sum())
        weights |= set(own[labels != IGNORE].tolist())
    assert {0.5, 3} < weights <= {0.5, 2, 0.125, 3}
    assert "label_weights" in next(iter(made.val_dataloader()))


def test_weights_of_0_and_1_take_no_room(tmp_path: Path, tokenizer_folder: Path) -> None:
    plain = data(tmp_path, tokenizer_folder, rows())
    given = rows(weight=1)
    given[0]["weight"] = 1.0
    given[1]["messages"] += [{"role": "user", "content": "Sure?"}, {**ANSWER, "weight": 0}]
    marked = data(tmp_path, tokenizer_folder, given)
    for made in (plain, marked):
        assert not list(made.datacard_file.parent.glob("*.weights.npy"))
        batch = next(iter(made.train_dataloader()))
        assert "label_weights" not in batch and isinstance(batch["step_tokens"], int)
    weighted = data(tmp_path, tokenizer_folder, rows(weight=2))
    assert {file.name for file in weighted.datacard_file.parent.glob("*.weights.npy")} == {
        "train.weights.npy", "validation.weights.npy",
    }  # fmt: skip
    assert weighted.resume_invariants() != plain.resume_invariants()
    np.testing.assert_array_equal(
        weighted.examples("train").weight_sums, 2 * plain.examples("train").supervised
    )


@pytest.mark.parametrize("weight", [-1, "heavy", float("inf"), [1], 1e-7])
def test_what_is_no_weight(tmp_path: Path, tokenizer_folder: Path, weight: Any) -> None:
    given = rows()
    given[2]["weight"] = weight
    with pytest.raises(
        UserError, match=r"rows.jsonl:3: the row has 'weight' .*a number from 1e-06 to"
    ):
        data(tmp_path, tokenizer_folder, given)
