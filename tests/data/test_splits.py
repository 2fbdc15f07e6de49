"""Held-out examples: no group and no cluster of near-duplicates on both sides."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_instructions import lines_of, module, write

from lit_llm import UserError
from lit_llm.corpus.block import texts
from lit_llm.corpus.kernels.minhash import sketches
from lit_llm.data.rows.splits import THRESHOLD, clusters, held_out

WORDS = [f"word{i}" for i in range(400)]


def prompt(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def edited(text: str, at: int) -> str:
    words = text.split()
    words[at] = "changed"
    return " ".join(words)


def test_clusters_are_chains_of_near_duplicates() -> None:
    one, other = prompt(1), prompt(2)
    chain = [one]
    for at in range(0, 40, 8):  # each is near the one before; the last is not near the first
        chain.append(edited(chain[-1], at))
    given = [other, *chain, one.upper(), "short", "short", "", "12", ""]
    found = clusters(given).tolist()
    assert found[1:8] == [1] * 7 and found[0] == 0
    assert found[8:] == [8, 8, 10, 11, 10]
    ends = sketches(texts([chain[0], chain[-1]]), 5, 112)
    assert (ends[0] == ends[1]).mean() < THRESHOLD
    assert clusters([]).tolist() == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 39), st.integers(0, 39)), max_size=30))
def test_clusters_are_those_of_all_pairs(drawn: list[tuple[int, int, int]]) -> None:
    """Against the components of the graph of all pairs whose sketches are alike."""
    given_texts = [edited(edited(prompt(seed), a), b) for seed, a, b in drawn]
    sketch = sketches(texts(given_texts), 5, 112) if drawn else np.zeros((0, 112))
    expected = list(range(len(drawn)))
    for i in range(len(drawn)):
        for j in range(i):
            bands = (sketch[i] == sketch[j]).reshape(28, 4).all(1).any()
            if bands and (sketch[i] == sketch[j]).sum() >= round(THRESHOLD * 112):
                low, high = sorted((expected[i], expected[j]))
                expected = [low if root == high else root for root in expected]
    assert clusters(given_texts).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(st.integers(0, 9), st.none() | st.integers(0, 4), st.integers(0, 39)),
        min_size=1, max_size=40,
    ),
    fraction=st.sampled_from([0.02, 0.1, 0.5]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_no_unit_is_on_both_sides_in_any_order(drawn: list, fraction: float, seed: int) -> None:
    groups = [None if group is None else f"g{group}" for _, group, _ in drawn]
    prompts = [edited(prompt(topic), at) for topic, _, at in drawn]
    positions = [random.Random(text).random() for text in prompts]
    mask = held_out(groups, prompts, positions, fraction)
    assert mask.any()
    units: dict[object, set[bool]] = {}
    for n, (topic, group, _) in enumerate(drawn):
        unit = ("group", group) if group is not None else ("topic", clusters(prompts)[n])
        if group is not None or topic is not None:
            units.setdefault(unit, set()).add(bool(mask[n]))
    of_groups = [sides for (kind, _), sides in units.items() if kind == "group"]
    assert all(len(sides) == 1 for sides in of_groups)
    alone = [n for n, group in enumerate(groups) if group is None]
    own = clusters([prompts[n] for n in alone])
    for leader in set(own.tolist()):
        assert len({bool(mask[n]) for n, one in zip(alone, own, strict=True) if one == leader}) == 1
    order = random.Random(seed).sample(range(len(drawn)), len(drawn))
    again = held_out(
        [groups[n] for n in order], [prompts[n] for n in order], [positions[n] for n in order],
        fraction,
    )  # fmt: skip
    assert again.tolist() == [mask[n] for n in order]


def test_a_large_cluster_stays_in_training() -> None:
    prompts = [edited(prompt(1), at) for at in range(40)] + [prompt(n) for n in range(2, 62)]
    # The cluster's members have the lowest positions.
    positions = [0.0] * 40 + [random.Random(n).random() for n in range(60)]
    mask = held_out([None] * 100, prompts, positions, 0.1)
    assert not mask[:40].any() and 1 <= mask.sum() <= 20
    # Its leader does not have the lowest position of many draws: large and small units alike.
    alike = held_out([None] * 40, prompts[:40], positions[:40], 0.1)
    assert alike.all()  # a single unit: the caller says that there is nothing to train on


def test_groups_and_clusters_in_a_run(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": edited(prompt(i // 4, 8), i % 4), "completion": f"a{i}", "id": i}
            for i in range(80)]  # fmt: skip
    grouped = [{**row, "group": row["id"] % 7} for row in rows]
    data = module(tmp_path, tokenizer_folder, write(tmp_path / "a.jsonl", grouped), seq_len=256)
    sides: dict[int, set[str]] = {}
    for line in lines_of(data):
        sides.setdefault(line["id"] % 7, set()).add(line["split"])
    assert all(len(found) == 1 for found in sides.values()) and len(sides) == 7
    long = [{**row, "prompt": edited(prompt(row["id"] // 4), row["id"] % 4)} for row in rows]
    data = module(tmp_path, tokenizer_folder, write(tmp_path / "b.jsonl", long), seq_len=1024)
    sides = {}
    for line in lines_of(data):
        sides.setdefault(line["id"] // 4, set()).add(line["split"])
    assert all(len(found) == 1 for found in sides.values()) and len(sides) == 20
    card = json.loads(data.datacard_file.read_text())
    assert 4 <= card["splits"]["validation"]["examples"] <= 32


def test_a_long_system_message_makes_no_cluster(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": f"question {i}", "completion": "a", "system": prompt(1)} for i in range(30)]
    data = module(tmp_path, tokenizer_folder, write(tmp_path / "a.jsonl", rows), seq_len=1024)
    assert {line["split"] for line in lines_of(data)} == {"train", "validation"}


def test_a_set_of_one_cluster_or_group_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": edited(prompt(1), i), "completion": "a"} for i in range(9)]
    with pytest.raises(UserError, match="near-duplicates and rows of one group count as one"):
        module(tmp_path, tokenizer_folder, write(tmp_path / "a.jsonl", rows), seq_len=1024)
    rows = [{"prompt": f"q{i}", "completion": "a", "group": ["x"]} for i in range(9)]
    with pytest.raises(UserError, match=r"a\.jsonl:1: the row has the group .*text or a number"):
        module(tmp_path, tokenizer_folder, write(tmp_path / "a.jsonl", rows))
