"""Limits of a key: requests and tokens in a time, and how they are counted.

Admission reserves the most that a request can use, prompt and longest answer, in one step with the
check. When the answer ends, the rest is given back. The sum of what was admitted can therefore
never pass a limit, with any number of clients at once.

The minute is a sliding window of 60 seconds; the day is the date in UTC.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

WINDOW = 60.0
"""Length of the sliding window in seconds."""


@dataclass(frozen=True)
class Limits:
    """Limits of a key; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    requests_at_once: int | None = None

    @property
    def largest_request(self) -> int | None:
        """Tokens of the largest request that can ever be admitted; None without a limit."""
        return min(
            (most for most in (self.tokens_per_minute, self.tokens_per_day) if most is not None),
            default=None,
        )


class LimitReached(Exception):
    """A request would pass a limit now.

    Args:
        limit: name of the limit.
        most: its value.
        retry_after: seconds until the same request fits, if nothing else is admitted.
    """

    def __init__(self, limit: str, most: int, retry_after: float):
        super().__init__(f"{limit} is {most:,}")
        self.limit, self.most, self.retry_after = limit, most, retry_after


@dataclass(frozen=True)
class Reservation:
    """What an admitted request may use."""

    id: str
    key: str
    at: float
    tokens: int


@dataclass(frozen=True)
class Standing:
    """What a key has used.

    Attributes:
        window: (time, tokens) of each request in the last minute, oldest first.
        today: tokens of the date.
        running: requests at this moment.
    """

    window: list[tuple[float, int]]
    today: int
    running: int


class Counters(Protocol):
    """Where the counts are kept."""

    def reserve(self, key: str, limits: Limits, tokens: int) -> Reservation:
        """Check the limits and reserve, in one step.

        Raises:
            LimitReached: nothing is reserved.
        """

    def settle(self, reservation: Reservation, used: int, connection: Any) -> None:
        """Replace a reservation by what was used; a second call has no effect.

        Args:
            connection: the transaction that adds ``used`` to the key's usage. Counts in a database
                change in it too.
        """

    def standing(self, key: str) -> Standing:
        """What the key has used until now."""


def check_limits(limits: Limits, standing: Standing, tokens: int, now: float) -> None:
    """Raise LimitReached unless a request of so many tokens fits beside what is in use."""
    most = limits.requests_at_once
    if most is not None and standing.running >= most:
        raise LimitReached("requests_at_once", most, 1.0)
    most = limits.requests_per_minute
    if most is not None and len(standing.window) >= most:
        first = standing.window[len(standing.window) - most][0]
        raise LimitReached("requests_per_minute", most, first + WINDOW - now)
    most = limits.tokens_per_minute
    if most is not None:
        left = sum(used for _, used in standing.window) + tokens - most
        free_at = now
        for at, used in standing.window:
            if left <= 0:
                break
            left, free_at = left - used, at + WINDOW
        if free_at > now or left > 0:
            raise LimitReached("tokens_per_minute", most, max(free_at - now, 0.001))
    most = limits.tokens_per_day
    if most is not None and standing.today + tokens > most:
        raise LimitReached("tokens_per_day", most, seconds_to_midnight(now))


def day_of(moment: float) -> str:
    """The date in UTC of a time in seconds since 1970."""
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def seconds_to_midnight(moment: float) -> float:
    """Seconds until the next date in UTC."""
    return 86_400 - moment % 86_400


class _Account:
    """The counts of one key in memory."""

    def __init__(self) -> None:
        self.window: deque[list[float]] = deque()
        self.running: dict[str, list[float]] = {}
        self.day, self.today = "", 0

    def advance(self, now: float, used_today: Callable[[], int]) -> None:
        while self.window and self.window[0][0] <= now - WINDOW:
            self.window.popleft()
        if self.day != day_of(now):
            first = not self.day
            self.day, self.today = day_of(now), used_today() if first else 0


class MemoryCounters:
    """Counts of one process.

    Args:
        used_today: tokens that a key used on this date before this process, from the records.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        used_today: Callable[[str], int] = lambda key: 0,
        clock: Callable[[], float] = time.time,
    ):
        self._used_today, self._clock = used_today, clock
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()

    def reserve(self, key: str, limits: Limits, tokens: int) -> Reservation:
        """See `Counters`."""
        with self._lock:
            now, account = self._clock(), self._account(key)
            check_limits(limits, self._standing(account), tokens, now)
            reservation = Reservation(secrets.token_hex(12), key, now, tokens)
            entry = [now, tokens]
            account.window.append(entry)
            account.running[reservation.id] = entry
            account.today += tokens
            return reservation

    def settle(self, reservation: Reservation, used: int, connection: Any) -> None:
        """See `Counters`."""
        with self._lock:
            account = self._account(reservation.key)
            entry = account.running.pop(reservation.id, None)
            if entry is None:
                return
            entry[1] = used
            if account.day == day_of(reservation.at):
                account.today += used - reservation.tokens

    def standing(self, key: str) -> Standing:
        """See `Counters`."""
        with self._lock:
            return self._standing(self._account(key))

    def _account(self, key: str) -> _Account:
        account = self._accounts.setdefault(key, _Account())
        account.advance(self._clock(), lambda: self._used_today(key))
        return account

    @staticmethod
    def _standing(account: _Account) -> Standing:
        return Standing(_pairs(account.window), account.today, len(account.running))


def _pairs(entries: Iterable[list[float]]) -> list[tuple[float, int]]:
    return [(at, int(tokens)) for at, tokens in entries]
