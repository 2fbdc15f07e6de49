"""Token trees: each text is found in a tree with its context, and each label is learnt once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.blocks import IGNORE
from lit_llm.data.trees import TokenPath, Tree, trees_of

# Few different tokens, so that texts share beginnings.
TEXTS = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0, 0, 1, 1, 0.5, 3])), min_size=2, max_size=12
    ),
    min_size=1,
    max_size=8,
)


def path(ids: Sequence[int], weights: Sequence[float]) -> TokenPath:
    return TokenPath.weighted(ids, weights)


def context(tree: Tree, place: int) -> tuple[int, ...]:
    """The tokens that the token at ``place`` sees, itself included."""
    return tuple(int(tree.input_ids[j]) for j in range(place + 1) if tree.until[j] > place)


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, spare=st.integers(0, 40))
def test_every_learnt_token_has_its_context_once(
    texts: list[list[tuple[int, float]]], spare: int
) -> None:
    paths = [path(*zip(*text, strict=True)) for text in texts]
    capacity = max(len(text) for text in texts) - 1 + spare
    trees = trees_of(paths, capacity)
    expected: dict[tuple, float] = {}
    for one in paths:
        for i in np.flatnonzero(one.learnt[1:]) + 1:
            key = tuple(one.ids[:i].tolist()), int(one.ids[i])
            expected[key] = max(expected.get(key, 0), float(one.all_weights[i]))
    found = [
        ((context(tree, place), int(tree.labels[place])), float(tree.all_weights[place]))
        for tree in trees for place in range(len(tree)) if tree.labels[place] != IGNORE
    ]  # fmt: skip
    assert sorted(found) == sorted(expected.items())  # a list: no label occurs twice
    for tree in trees:
        assert (tree.all_weights[tree.labels == IGNORE] == 0).all()
        assert tree.weights is not None or set(expected.values()) <= {1}
    for tree in trees:
        assert 0 < len(tree) <= capacity
        for place in range(len(tree)):
            assert len(context(tree, place)) == tree.position[place] + 1
            assert place < tree.until[place] <= len(tree)
        for array in (tree.input_ids, tree.labels, tree.until, tree.position):
            assert array.dtype == np.int32 and len(array) == len(tree)
    if spare == 40 and len(trees) == 1:  # nothing is stored twice but the tokens where texts part
        inner = {tuple(one.ids[:i].tolist()) for one in paths for i in range(1, len(one.ids))}
        assert len(trees[0]) <= len(inner) + len(paths) - 1


def test_one_text_is_a_row_as_before() -> None:
    (tree,) = trees_of([path([5, 6, 7, 8], [False, False, True, True])], 10)
    assert tree.input_ids.tolist() == [5, 6, 7]
    assert tree.labels.tolist() == [IGNORE, 7, 8]
    assert tree.until.tolist() == [3, 3, 3] and tree.position.tolist() == [0, 1, 2]


def test_the_last_common_token_is_the_head_of_both_branches() -> None:
    (tree,) = trees_of([path([1, 2, 3, 4], [0, 0, 1, 1]), path([1, 2, 5, 6], [0, 0, 1, 1])], 10)
    assert tree.input_ids.tolist() == [1, 2, 3, 2, 5]
    assert tree.labels.tolist() == [IGNORE, 3, 4, 5, 6]
    assert tree.position.tolist() == [0, 1, 2, 1, 2]
    assert tree.until.tolist() == [5, 3, 3, 5, 5]


def test_what_does_not_fit_repeats_its_context() -> None:
    first, second = trees_of(
        [path([1, 2, 3, 4], [0, 1, 1, 1]), path([1, 2, 5, 6], [0, 1, 1, 1])], 4
    )
    assert first.labels.tolist() == [2, 3, 4]
    assert second.input_ids.tolist() == [1, 2, 5] and second.labels.tolist() == [IGNORE, 5, 6]
