"""Limits hold, whoever asks at the same time, and leave nothing unusable."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.people.keys import Keys
from lit_llm.people.limits import (
    WINDOW,
    Counters,
    LimitReached,
    Limits,
    MemoryCounters,
    Reservation,
    day_of,
)
from lit_llm.people.store.counters import StoreCounters
from lit_llm.people.store.database import Store
from lit_llm.people.store.records import Records
from tests.people.test_store import record


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Account:
    """A key with its counters and a clock that the test moves."""

    def __init__(self, store: Store, in_store: bool):
        self.store, self.clock = store, Clock()
        self.key = Keys(store).create("team")[0].id
        self.counters: Counters = (
            StoreCounters(store, self.clock) if in_store else MemoryCounters(clock=self.clock)
        )
        self.number = 0

    def reserve(self, tokens: int, **limits: int) -> Reservation:
        return self.counters.reserve(self.key, Limits(**limits), tokens)

    def settle(self, reservation: Reservation, used: int) -> None:
        self.number += 1
        row = record(self.number, key=self.key, started=self.clock.now, prompt_tokens=used,
                     completion_tokens=0)  # fmt: skip
        Records(self.store).finish(
            row, lambda connection: self.counters.settle(reservation, used, connection)
        )


@pytest.fixture(params=["memory", "store"])
def account(request: pytest.FixtureRequest, store: Store) -> Account:
    return Account(store, request.param == "store")


def refused(work: Callable[[], object]) -> LimitReached:
    with pytest.raises(LimitReached) as caught:
        work()
    return caught.value


def test_tokens_a_minute_are_a_sliding_window(account: Account) -> None:
    account.reserve(600, tokens_per_minute=1000)
    account.clock.now += 30
    account.reserve(400, tokens_per_minute=1000)
    account.clock.now += 29
    reached = refused(lambda: account.reserve(500, tokens_per_minute=1000))
    assert reached.limit == "tokens_per_minute"
    assert reached.retry_after == pytest.approx(1)
    assert refused(lambda: account.reserve(601, tokens_per_minute=1000)).retry_after > 30
    account.clock.now += 1
    account.reserve(600, tokens_per_minute=1000)


def test_what_was_not_used_is_given_back(account: Account) -> None:
    reservation = account.reserve(1000, tokens_per_minute=1000, tokens_per_day=1000)
    refused(lambda: account.reserve(1, tokens_per_minute=1000, tokens_per_day=1000))
    account.settle(reservation, 100)
    account.settle(reservation, 0)  # a second time has no effect on the window
    account.reserve(900, tokens_per_minute=1000)
    assert refused(lambda: account.reserve(1, tokens_per_minute=1000))


def test_requests_a_minute_and_at_once(account: Account) -> None:
    first = account.reserve(1, requests_per_minute=2, requests_at_once=1)
    assert refused(lambda: account.reserve(1, requests_at_once=1)).limit == "requests_at_once"
    account.settle(first, 1)
    account.clock.now += 10
    account.reserve(1, requests_per_minute=2, requests_at_once=1)
    reached = refused(lambda: account.reserve(1, requests_per_minute=2))
    assert reached.limit == "requests_per_minute"
    assert reached.retry_after == pytest.approx(50)


def test_tokens_a_day_end_at_midnight(account: Account) -> None:
    account.settle(account.reserve(500, tokens_per_day=1000), 400)
    account.clock.now += 2 * WINDOW
    account.reserve(600, tokens_per_day=1000)
    reached = refused(lambda: account.reserve(1, tokens_per_day=1000))
    account.clock.now += reached.retry_after
    assert day_of(account.clock.now - 1) != day_of(account.clock.now)
    account.counters.standing(account.key)


def test_a_refusal_reserves_nothing(account: Account) -> None:
    refused(lambda: account.reserve(1001, tokens_per_minute=1000))
    account.reserve(1000, tokens_per_minute=1000)


def test_ten_clients_at_once_never_pass_a_limit(account: Account) -> None:
    """With the counters in the store, every second client asks another process."""
    first: Counters = account.counters
    second = (
        first if isinstance(first, MemoryCounters) else StoreCounters(account.store, account.clock)
    )
    limits = Limits(tokens_per_minute=1000)
    admitted: list[int] = []  # appended to by all threads, which a list bears

    def ask(number: int) -> None:
        tokens = random.Random(number).randint(10, 60)
        with contextlib.suppress(LimitReached):
            (first, second)[number % 2].reserve(account.key, limits, tokens)
            admitted.append(tokens)

    with ThreadPoolExecutor(10) as clients:
        list(clients.map(ask, range(80)))
    assert 900 <= sum(admitted) <= 1000


def test_memory_begins_with_what_was_used_before() -> None:
    counters = MemoryCounters(lambda key: 990)
    refused(lambda: counters.reserve("a", Limits(tokens_per_day=1000), 11))
    counters.reserve("a", Limits(tokens_per_day=1000), 10)


def test_the_largest_request() -> None:
    assert Limits().largest_request is None
    assert Limits(tokens_per_minute=5, tokens_per_day=9).largest_request == 5
    assert set(asdict(Limits())) == {
        "requests_per_minute", "tokens_per_minute", "tokens_per_day", "requests_at_once",
    }  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.integers(1, 700), st.floats(0, 1), st.booleans()),
        max_size=40,
    )
)
def test_no_window_ever_holds_more_than_the_limit(
    acts: list[tuple[float, int, float, bool]],
) -> None:
    """Whatever is asked and settled, and a refused request fits after ``retry_after``."""
    clock = Clock()
    counters = MemoryCounters(clock=clock)
    limits = Limits(tokens_per_minute=1000)
    used: dict[str, tuple[float, int]] = {}
    for wait, tokens, share, early in acts:
        clock.now += wait
        try:
            reservation = counters.reserve("a", limits, tokens)
        except LimitReached as reached:
            clock.now += reached.retry_after + 1e-6
            reservation = counters.reserve("a", limits, tokens)
        spent = int(tokens * share)
        used[reservation.id] = (reservation.at, spent if early else tokens)
        if early:
            counters.settle(reservation, spent, None)
        inside = [n for at, n in used.values() if at > clock.now - WINDOW]
        assert sum(inside) <= 1000
