from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.corpus.config import MixtureSettings
from lit_llm.corpus.output.mixture import shares
from lit_llm.errors import UserError

EQUAL = {"a": 1.0, "b": 1.0}


def test_sizes_decide_where_weights_do_not() -> None:
    assert shares({"a": 30, "b": 10}, EQUAL, MixtureSettings()) == {"a": 0.75, "b": 0.25}
    assert shares({"a": 30, "b": 10}, {"a": 1.0, "b": 4.0}, MixtureSettings()) == {
        "a": 0.2,
        "b": 0.8,
    }
    assert shares({"a": 90, "b": 10}, EQUAL, MixtureSettings(temperature=2)) == pytest.approx(
        {"a": 0.75, "b": 0.25}
    )


def test_what_a_source_may_not_take_goes_to_the_others() -> None:
    sizes, weights = {"a": 10, "b": 100, "c": 100}, {"a": 2.0, "b": 1.0, "c": 1.0}
    found = shares(sizes, weights, MixtureSettings(max_epochs=4, tokens=200))
    assert found == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.4})


def test_mistakes_are_named() -> None:
    with pytest.raises(
        UserError, match=r"mixture.tokens: 1,000 are more than the 160 that mixture.max_epochs=4"
    ):
        shares({"a": 30, "b": 10}, EQUAL, MixtureSettings(tokens=1000))
    with pytest.raises(UserError, match="every source that has text has weight 0"):
        shares({"a": 30, "b": 0}, {"a": 0.0, "b": 1.0}, MixtureSettings())
    with pytest.raises(UserError, match="must be above 0"):
        MixtureSettings(temperature=0)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0.1, 10)), min_size=1, max_size=6),
    st.floats(0.2, 5),
    st.floats(0.05, 1),
)
@settings(deadline=None)
def test_shares_sum_to_one_and_keep_the_limit(
    rows: list[tuple[int, float]], temperature: float, part: float
) -> None:
    sizes = {str(i): size for i, (size, _) in enumerate(rows)}
    weights = {str(i): weight for i, (_, weight) in enumerate(rows)}
    tokens = 3 * sum(sizes.values()) * part
    found = shares(
        sizes, weights, MixtureSettings(temperature=temperature, max_epochs=3, tokens=tokens)
    )
    assert sum(found.values()) == pytest.approx(1)
    free = [name for name in sizes if found[name] * tokens < 3 * sizes[name] * 0.9999]
    assert all(found[name] * tokens <= 3 * sizes[name] * 1.0001 for name in sizes)
    relative = weights if len(set(weights.values())) > 1 else sizes
    ratios = [found[name] / relative[name] ** (1 / temperature) for name in free]
    assert all(ratio == pytest.approx(ratios[0]) for ratio in ratios)
