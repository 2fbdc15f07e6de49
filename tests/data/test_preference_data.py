"""PreferenceDataModule: trees of answers, packed rows, what is counted, and what KTO rotates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_llm import PreferenceDataModule, UserError
from lit_llm.data.answer_rows import AnswerRows, stack_answers
from lit_llm.data.conversations import Conversations
from lit_llm.data.mismatched import MismatchedAnswers
from lit_llm.data.packing import pack
from lit_llm.data.trees import TREE_ARRAYS, TokenPath, Tree, answers_of, answers_tree
from lit_llm.models.forest import Forest

ids = st.lists(st.integers(3, 9), min_size=1, max_size=6)


def path(tokens: list[int]) -> TokenPath:
    return TokenPath(np.array(tokens, np.int32), np.ones(len(tokens), bool))


def whole(trees: list[Tree]) -> Conversations:
    arrays = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in TREE_ARRAYS}
    return Conversations(**arrays, offsets=np.cumsum([0, *map(len, trees)]).astype(np.int64))


@given(ids, st.lists(ids, min_size=1, max_size=3))
def test_a_tree_holds_its_prompt_once_and_gives_it_back(
    prompt: list[int], answers: list[list[int]]
) -> None:
    tree = answers_tree(np.array(prompt, np.int32), [path(answer) for answer in answers])
    assert len(tree) == len(prompt) - 1 + sum(len(answer) + 1 for answer in answers)
    again, found = answers_of(tree)
    assert again.tolist() == prompt
    assert [one.ids.tolist() for one in found] == answers
    assert all(one.learnt.all() for one in found)
    # Every token sees exactly the prompt and its own answer up to itself.
    forest = Forest(*(torch.tensor(value)[None] for value in (tree.until, tree.position)))
    seen = forest.visible()[0, 0]
    begin = len(prompt) - 1
    for answer in answers:
        for place in range(begin, begin + len(answer) + 1):
            text = tree.input_ids[seen[place].numpy()].tolist()
            assert text == (prompt + answer)[: len(prompt) + place - begin]
        begin += len(answer) + 1


@given(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=8), st.integers(0, 3))
def test_a_batch_numbers_every_answer_once(
    pairs: list[tuple[list[int], list[int], list[int]]], seed: int
) -> None:
    trees = [answers_tree(np.array(p, np.int32), [path(a), path(b)]) for p, a, b in pairs]
    examples = whole(trees)
    order = np.random.default_rng(seed).permutation(len(trees))
    rows = [*pack(examples.lengths, order, 32), []]
    facts = {"margin": np.arange(len(trees), dtype=np.float32)}
    dataset = AnswerRows(examples, rows, 32, 0, facts, first_id=100)
    batch = stack_answers([dataset[index] for index in range(len(dataset))])
    assert sorted(batch["example_ids"].tolist()) == list(range(100, 100 + len(trees)))
    assert batch["margin"].tolist() == [index - 100 for index in batch["example_ids"].tolist()]
    for number, example in enumerate(batch["example_ids"].tolist()):
        _, chosen, rejected = pairs[example - 100]
        for answer, place in ((chosen, 2 * number), (rejected, 2 * number + 1)):
            here = batch["answer_ids"] == place
            labels = batch["labels"][here]
            assert labels[labels != -100].tolist() == answer
            row, end = batch["answer_rows"][place], batch["answer_ends"][place]
            assert batch["input_ids"][row, end] == answer[-1] and here[row, end]


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=9), st.integers(1, 3))
def test_the_answers_of_a_step_are_rotated_once(
    judged: list[tuple[list[int], list[int]]], ranks: int
) -> None:
    trees = [answers_tree(np.array(p, np.int32), [path(a)]) for p, a in judged]
    steps = [list(range(len(trees)))[:4], list(range(len(trees)))[4:]]
    steps = [step for step in steps if step]
    made = MismatchedAnswers(whole(trees), steps, 16, 0)
    found: dict[int, tuple[list[int], list[int]]] = {}
    for step in range(len(steps)):
        parts = [made.batches(step, 2, rank, ranks) for rank in range(ranks)]
        assert len({sum(len(b["input_ids"]) for b in part) for part in parts}) == 1
        for batch in (batch for part in parts for batch in part):
            for number, example in enumerate(batch["example_ids"].tolist()):
                labels = batch["labels"][batch["answer_ids"] == number]
                assert example not in found
                found[example] = labels[labels != -100].tolist()
    assert len(made) == len(found) == len(trees)
    place = 0
    for step in steps:
        for number, example in enumerate(step):
            prompt, before = judged[example][0], judged[step[number - 1]][1]
            assert found[place] == before[: 16 - len(prompt)]
            place += 1


# ---- from files ----------------------------------------------------------------------------------


def module(
    tmp_path: Path, tokenizer: Path, rows: list[dict[str, Any]], **settings: Any
) -> PreferenceDataModule:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    defaults = {"seq_len": 128, "micro_batch_size": 2, "min_steps": 0, "validation_fraction": 0.2}
    return PreferenceDataModule(
        str(file), tokenizer=str(tokenizer), cache_dir=str(tmp_path / "cache"),
        **{**defaults, **settings},
    )  # fmt: skip


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Is {i} so?", "chosen": "yes " * (2 + i % 3), "rejected": "no " * (1 + i % 2)}
        for i in range(count)
    ]


def test_the_card_counts_ties_equal_texts_and_length(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    scored = {"prompt": "Which?", "responses": ["a", "b", "c", "b"], "scores": [1, 3, 1, 2.5]}
    data = module(tmp_path, tokenizer_folder, [*pairs(20), scored])
    card = json.loads(data.datacard_file.read_text())
    assert card["undecided"] == {"ties": 1, "equal_texts": 1}
    assert sum(split["examples"] for split in card["splits"].values()) == 24
    assert 0.5 < card["chosen_longer"] <= 1 and card["length_bias"] > 0.3
    single = module(tmp_path, tokenizer_folder, [*pairs(20), scored], pairs="best-worst")
    card = json.loads(single.datacard_file.read_text())
    assert sum(split["examples"] for split in card["splits"].values()) == 21


def test_the_first_words_and_the_end_of_both_answers_are_learnt_once(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    data = module(tmp_path, tokenizer_folder, pairs(8))
    chat = data.chat
    row = pairs(8)[0]
    for number, tree in enumerate(data.examples("train")):
        prompt, answers = answers_of(tree)
        text = data.tokenizer.decode(prompt.tolist())
        question = text.partition("user\n")[2].partition("<")[0]
        row = next(one for one in pairs(8) if one["prompt"] == question)
        asked = chat.prompt_ids([{"role": "user", "content": question}])
        assert prompt.tolist() == asked, number
        for answer, said in zip(answers, (row["chosen"], row["rejected"]), strict=True):
            ends = [int(token) for token in answer.ids if token in chat.stop_ids]
            assert len(ends) == 1 and answer.ids[-1] in chat.stop_ids
            assert data.tokenizer.decode(answer.ids[:-1].tolist()) == said
            assert answer.learnt.all()


def test_pairs_as_judged_answers(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = module(tmp_path, tokenizer_folder, pairs(12), unpaired=True)
    good = data.facts("train")["good"]
    assert good.mean() == 0.5 and len(good) == len(data.examples("train"))
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert ["mismatched" in batch for batch in batches] == [
        number % data.accumulation == 0 for number in range(len(batches))
    ]
    assert sum(len(batch["good"]) for batch in batches) == len(good)


def test_steps_of_so_many_pairs(tmp_path: Path, tokenizer_folder: Path) -> None:
    data = module(tmp_path, tokenizer_folder, pairs(60), pairs_per_step=12, seq_len=64)
    data.prepare_data()
    data.setup("fit")
    sizes: dict[int, int] = {}
    for number, batch in enumerate(data.train_dataloader()):
        step = number // data.accumulation
        sizes[step] = sizes.get(step, 0) + len(batch["example_ids"])
        assert batch["step_tokens"] == data.supervised_tokens[step]
    assert list(sizes.values()) == data.supervised_tokens.tolist()
    assert np.mean(list(sizes.values())[:-1]) == pytest.approx(12, abs=3)


def test_a_subclass_reads_rows_of_its_own(tmp_path: Path, tokenizer_folder: Path) -> None:
    from lit_llm.data.rows.preferences import Preference

    class Own(PreferenceDataModule):
        def format_example(self, row: dict[str, Any]) -> list[Preference]:  # type: ignore[override]
            asked, good, bad = row["text"].split("|")
            said = [[{"role": "assistant", "content": one}] for one in (good, bad)]
            return [Preference([{"role": "user", "content": asked}], *said)]

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"q{i}|a|b"}) + "\n" for i in range(6)))
    data = Own(str(file), tokenizer=str(tokenizer_folder), cache_dir=str(tmp_path / "cache"),
               validation_fraction=0.2)  # fmt: skip
    assert len(data.examples("train")) + len(data.examples("validation")) == 6


def test_no_example_is_left(tmp_path: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match=r"0 rows can be used; 3 are longer than data\.seq_len=8"):
        module(tmp_path, tokenizer_folder, pairs(3), seq_len=8).prepare_data()
