"""Gate: who may ask, how much, and what is written of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lit_llm.people.keys import Key, Keys
from lit_llm.people.limits import Counters, MemoryCounters, Reservation, Standing
from lit_llm.people.store.counters import StoreCounters
from lit_llm.people.store.database import Store
from lit_llm.people.store.records import Records, RequestRecord

Result = TypeVar("Result")


class KeyRefused(Exception):
    """There is no key with the request, or it is not valid."""


class Gate:
    """Keys, limits and records of a server.

    Everything that waits for the database runs in threads: one for writing, so that transactions
    follow one another, and others for reading.

    Args:
        store: the database. With PostgreSQL the counts of the limits are in it, so that several
            processes share them; with SQLite they are in this process.
        no_keys: nobody needs a key, even if there are some.
    """

    def __init__(self, store: Store, no_keys: bool = False):
        self._store, self.keys, self.records = store, Keys(store), Records(store)
        self._counters: Counters = (
            MemoryCounters(self.records.used_today) if store.is_sqlite else StoreCounters(store)
        )
        self._in_memory = store.is_sqlite
        self._no_keys = no_keys
        self._writer = ThreadPoolExecutor(1, "store")

    async def identify(self, secret: str | None) -> Key | None:
        """The key of a request; None if nobody needs one.

        Raises:
            KeyRefused: there is none, or it is unknown, expired or revoked.
        """
        if self._no_keys or not await asyncio.to_thread(self.keys.exist):
            return None
        if not secret:
            raise KeyRefused("a key is needed: Authorization: Bearer KEY, or x-api-key: KEY")
        key = await asyncio.to_thread(self.keys.find, secret)
        if key is None:
            raise KeyRefused("the key is unknown, expired or revoked")
        return key

    async def admit(self, key: Key | None, tokens: int) -> Reservation | None:
        """Reserve the tokens of a request.

        Raises:
            limits.LimitReached: a limit would be passed.
        """
        if key is None:
            return None
        if self._in_memory:
            await self._first_use(key)
            return self._counters.reserve(key.id, key.limits, tokens)
        return await self._write(lambda: self._counters.reserve(key.id, key.limits, tokens))

    async def release(self, reservation: Reservation | None) -> None:
        """Give a reservation back whose request was never begun; it leaves no record.

        A flood of refused requests must not wait for the disk.
        """
        if reservation is None:
            return
        if self._in_memory:
            self._counters.settle(reservation, 0, None)
        else:
            await self._write(lambda: self._release(reservation))

    def _release(self, reservation: Reservation) -> None:
        with self._store.write() as connection:
            self._counters.settle(reservation, 0, connection)

    async def finish(self, record: RequestRecord, reservation: Reservation | None) -> None:
        """Write a request that has ended, and settle what it has reserved.

        What this call has written is on disk when it returns.
        """
        used = record.prompt_tokens + record.completion_tokens

        def write() -> None:
            self.records.finish(
                record,
                lambda connection: (
                    None
                    if reservation is None
                    else self._counters.settle(reservation, used, connection)
                ),
            )

        await self._write(write)

    async def standing(self, key: Key) -> Standing:
        """What a key has used."""
        return await asyncio.to_thread(self._counters.standing, key.id)

    async def forget(self, days: float) -> None:
        """Delete the requests that are older."""
        await self._write(lambda: self.records.forget(days))

    async def _first_use(self, key: Key) -> None:
        # The first count of a day reads the records.
        await asyncio.to_thread(self._counters.standing, key.id)

    async def _write(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)
