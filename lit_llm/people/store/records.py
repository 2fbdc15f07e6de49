"""Records of requests, usage by key and day, acts of administrators, and their deletion."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from lit_llm.people.limits import day_of
from lit_llm.people.store.database import Store
from lit_llm.people.store.tables import audit, requests, usage

NOBODY = ""
"""The key of requests that need none."""


@dataclass
class RequestRecord:
    """A request that has ended. Times are seconds since 1970.

    Attributes:
        id: of the answer.
        key: id of the key, or `NOBODY`.
        user: the client's name for its user.
        route: path of the API.
        model: name of the model.
        weights: digest of its weights.
        sampling: the settings, as JSON.
        started, first_token, ended: times.
        prompt_tokens, cached_tokens, completion_tokens: of all choices together.
        reason: of the end: "stop", "length", "tool_calls", "cancelled" or "error".
        error: what went wrong.
        prompt_digest: SHA-256 (hex) of the prompt's ids.
        prompt_text, answer_text: only where texts are kept.
    """

    id: str
    key: str
    user: str | None
    route: str
    model: str
    weights: str
    sampling: str
    started: float
    first_token: float | None
    ended: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reason: str
    error: str | None
    prompt_digest: str
    prompt_text: str | None = None
    answer_text: str | None = None


class Records:
    """Reads and writes the records of a store."""

    def __init__(self, store: Store):
        self._store = store

    def finish(self, record: RequestRecord, settle: Callable[[sa.Connection], None]) -> None:
        """Write a request, add it to the usage of its key, and settle, all in one transaction."""
        insert = sqlite.insert if self._store.is_sqlite else postgresql.insert
        added = {
            "requests": 1,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
        }
        counted: Any = insert(usage).values(key=record.key, day=day_of(record.started), **added)
        counted = counted.on_conflict_do_update(
            index_elements=["key", "day"],
            set_={name: usage.c[name] + value for name, value in added.items()},
        )
        row = {
            name: value.replace("\0", "\ufffd") if isinstance(value, str) else value
            for name, value in asdict(record).items()
        }
        with self._store.write() as connection:
            connection.execute(counted)
            connection.execute(requests.insert().values(row))
            settle(connection)

    def used_today(self, key: str) -> int:
        """Tokens of a key on this date."""
        of_day = (usage.c.key == key) & (usage.c.day == day_of(time.time()))
        total = sa.select(usage.c.prompt_tokens + usage.c.completion_tokens).where(of_day)
        with self._store.read() as connection:
            return int(connection.execute(total).scalar() or 0)

    def usage(self) -> list[dict[str, Any]]:
        """Requests and tokens of each key and day."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(usage).order_by(usage.c.day, usage.c.key))
            return [dict(row) for row in rows.mappings()]

    def erase(self, *, key: str | None = None, user: str | None = None) -> int:
        """Delete the requests of a key or of a client's user; returns their number.

        The numbers of the usage stay, which name no person.
        """
        column, value = (requests.c.key, key) if user is None else (requests.c.user, user)
        with self._store.write() as connection:
            return connection.execute(requests.delete().where(column == value)).rowcount

    def forget(self, days: float) -> int:
        """Delete requests that are older; returns their number."""
        old = requests.c.started < time.time() - days * 86_400
        with self._store.write() as connection:
            return connection.execute(requests.delete().where(old)).rowcount

    def note(self, actor: str, act: str, **details: Any) -> None:
        """Write an act of an administrator."""
        with self._store.write() as connection:
            connection.execute(
                audit.insert().values(
                    at=time.time(), actor=actor, act=act, details=json.dumps(details)
                )
            )
