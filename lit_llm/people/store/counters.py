"""StoreCounters: the counts of the limits in the database, for several processes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import sqlalchemy as sa

from lit_llm.people.limits import WINDOW, Limits, Reservation, Standing, check_limits, day_of
from lit_llm.people.store.database import Store
from lit_llm.people.store.tables import keys, reservations, usage

_LONGEST_REQUEST = 3600.0
"""Seconds after which a request counts as lost with the process that ran it."""


class StoreCounters:
    """Counts that several processes share; their clocks must agree to a second.

    Every process locks the key's row before it counts, so that two never count the same free room.

    Args:
        store: the database.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time):
        self._store, self._clock = store, clock

    def reserve(self, key: str, limits: Limits, tokens: int) -> Reservation:
        """See `limits.Counters`."""
        with self._store.write() as connection:
            connection.execute(sa.select(keys.c.id).where(keys.c.id == key).with_for_update())
            now = self._clock()
            self._forget(connection, key, now)
            check_limits(limits, self._standing(connection, key, now), tokens, now)
            reservation = Reservation(secrets.token_hex(12), key, now, tokens)
            connection.execute(
                reservations.insert().values(
                    id=reservation.id, key=key, at=now, tokens=tokens, running=True
                )
            )
        return reservation

    def settle(self, reservation: Reservation, used: int, connection: sa.Connection) -> None:
        """See `limits.Counters`."""
        connection.execute(
            reservations.update()
            .where(reservations.c.id == reservation.id, reservations.c.running)
            .values(tokens=used, running=False)
        )

    def standing(self, key: str) -> Standing:
        """See `limits.Counters`."""
        with self._store.read() as connection:
            return self._standing(connection, key, self._clock())

    @staticmethod
    def _forget(connection: sa.Connection, key: str, now: float) -> None:
        """Delete what no limit counts any more."""
        of_key = reservations.c.key == key
        ended = sa.not_(reservations.c.running) & (reservations.c.at <= now - WINDOW)
        lost = reservations.c.at <= now - _LONGEST_REQUEST
        connection.execute(reservations.delete().where(of_key & (ended | lost)))

    @staticmethod
    def _standing(connection: sa.Connection, key: str, now: float) -> Standing:
        rows = connection.execute(
            sa.select(reservations.c.at, reservations.c.tokens, reservations.c.running)
            .where(reservations.c.key == key, reservations.c.at > now - _LONGEST_REQUEST)
            .order_by(reservations.c.at)
        ).all()
        of_day = (usage.c.key == key) & (usage.c.day == day_of(now))
        settled = connection.execute(
            sa.select(usage.c.prompt_tokens + usage.c.completion_tokens).where(of_day)
        ).scalar()
        running = [row for row in rows if row.running]
        return Standing(
            [(row.at, row.tokens) for row in rows if row.at > now - WINDOW],
            int(settled or 0) + sum(row.tokens for row in running),
            len(running),
        )
