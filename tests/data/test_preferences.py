"""Rows of preferences: what is compared, in every shape of public datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_llm import InstructionDataModule, UserError
from lit_llm.data.rows.preferences import Judged, Preference, to_preferences

Q = {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}
EARLIER = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
PLAIN = Preference([Q], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, PLAIN),
        ({"question": "q", "chosen": "good", "rejected": "bad", "system": "s"},
         Preference([SYSTEM, Q], [GOOD], [BAD])),
        ({"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}, PLAIN),
        ({"prompt": json.dumps([Q]), "chosen": json.dumps([GOOD]), "rejected": "bad"}, PLAIN),
        ({"chosen": [Q, GOOD], "rejected": [Q, BAD]}, PLAIN),
        # UltraFeedback, binarised: the prompt as a text, and again in both conversations.
        ({"prompt": "q", "chosen": [Q, GOOD], "rejected": [Q, BAD], "score_chosen": 8.0}, PLAIN),
        ({"prompt": "q", "system": "s", "chosen": [Q, GOOD], "rejected": [Q, BAD]},
         Preference([SYSTEM, Q], [GOOD], [BAD])),
        ({"chosen": [SYSTEM, *EARLIER, Q, GOOD], "rejected": [SYSTEM, *EARLIER, Q, BAD]},
         Preference([SYSTEM, *EARLIER, Q], [GOOD], [BAD])),
        # They part in the middle: the rest of both conversations belongs to the answers.
        ({"chosen": [Q, GOOD, Q, GOOD], "rejected": [Q, GOOD, Q, BAD]},
         Preference([Q, GOOD, Q], [GOOD], [BAD])),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 2},
         Preference([Q], [GOOD], [BAD], 2.0)),
        ({"conversations": [{"from": "human", "value": "q"}],
          "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}},
         PLAIN),
        ({"prompt": "q", "history": [["q0", "a0"]], "chosen": "good", "rejected": "bad"},
         Preference([*EARLIER, Q], [GOOD], [BAD])),
        ({"prompt": "q", "completion": "good", "label": True}, Judged([Q], [GOOD], True)),
        ({"prompt": [Q], "completion": [BAD], "label": 0}, Judged([Q], [BAD], False)),
    ],
)  # fmt: skip
def test_what_is_compared(row: dict[str, Any], found: Preference | Judged) -> None:
    assert to_preferences(row) == [found]


def test_responses_with_scores() -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c", "b"], "scores": [1, 3, 1, 2.5]}

    def told(pairs: Any) -> list[tuple]:
        return [(p.chosen[0]["content"], p.rejected[0]["content"], p.margin)  # type: ignore[union-attr]
                for p in to_preferences(row, pairs)]  # fmt: skip

    # Equal scores make no pair, and neither do equal answers with different scores.
    assert told("all") == [("b", "a", 2), ("b", "c", 2), ("b", "a", 1.5), ("b", "c", 1.5)]
    assert told("best-worst") == [("b", "c", 2)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "completion": "a"}, "no preference in the row.* its keys are prompt"),
        ({}, "its keys are none"),
        ({"chosen": "good", "rejected": "bad"}, "no common beginning"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no common beginning"),
        ({"chosen": [Q, GOOD], "rejected": [Q, GOOD]}, "are equal"),
        ({"chosen": [Q, GOOD], "rejected": [Q]}, "'rejected' must begin with a message of the"),
        ({"chosen": [Q, GOOD], "rejected": [Q, GOOD, Q, BAD]}, "'chosen' must begin"),
        ({"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "bad"},
         "'chosen' must begin with a message of the assistant's"),
        ({"prompt": "q", "chosen": "", "rejected": "bad"}, "'chosen' must be a text .* not empty"),
        ({"prompt": "q", "chosen": [{"role": "assistant", "content": ""}], "rejected": "bad"},
         "'chosen' is empty"),
        ({"prompt": "q", "chosen": 3, "rejected": "bad"}, "'chosen' must be a text or a list"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "much"}, "'margin' must"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "margin": float("nan")}, "'margin'"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad", "images": ["x"]}, "'images'"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "2 'responses' and 1 'scores'"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "no two 'responses'"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, "'scores' must be numbers"),
        ({"prompt": "q", "responses": "a", "scores": [1]}, "that is not JSON"),
        ({"responses": ["a"], "scores": [1]}, "no 'prompt'"),
        ({"prompt": "q", "completion": "a", "label": 0.5}, "'label' is '0.5'"),
        ({"completion": "a", "label": True}, "no 'prompt'"),
        ({"prompt": "q", "system": "a", "system_prompt": "b", "chosen": "x", "rejected": "y"},
         "they differ"),
    ],
)  # fmt: skip
def test_what_is_no_comparison(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        to_preferences(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
    ],
)
def test_conversations_to_learn_are_no_preferences(
    tmp_path: Path, tokenizer_folder: Path, row: dict
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    given = {"tokenizer": str(tokenizer_folder), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"a\.jsonl:1: a preference row .* preference tuning"):
        InstructionDataModule(str(file), **given).prepare_data()


def test_the_chosen_answers_can_be_learnt(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": f"q{i} x", "chosen": f"good {i}", "rejected": "bad"} for i in range(9)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"tokenizer": str(tokenizer_folder), "cache_dir": str(tmp_path / "cache")}
    data = InstructionDataModule(str(file), columns={"completion": "chosen"}, **given)
    data.prepare_data()
    splits = json.loads(data.datacard_file.read_text())["splits"]
    assert sum(split["examples"] for split in splits.values()) == 9
