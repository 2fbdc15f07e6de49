"""Keys: shown once, found by their prefix, limited, rotated, revoked."""

from __future__ import annotations

import hashlib
import time

import pytest
import sqlalchemy as sa

from lit_llm.errors import UserError
from lit_llm.people.keys import Keys
from lit_llm.people.limits import Limits
from lit_llm.people.store.database import Store
from lit_llm.people.store.tables import keys as table


def test_a_key_is_found_by_its_secret(store: Store) -> None:
    keys = Keys(store)
    assert not keys.exist()
    key, secret = keys.create("team", models=["a"], limits=Limits(tokens_per_day=5))
    assert keys.exist()
    assert keys.find(secret) == key
    assert keys.find(secret[:-1] + "\u00e9") is None
    assert keys.find("") is None
    assert (key.allows("a"), key.allows("b"), key.limits.tokens_per_day) == (True, False, 5)
    assert len(secret) > 40


def test_the_store_has_no_secret(store: Store) -> None:
    _, secret = Keys(store).create("team")
    with store.read() as connection:
        row = connection.execute(sa.select(table)).mappings().one()
    assert row["digest"] == hashlib.sha256(secret.encode()).hexdigest()
    assert not any(secret in str(value) for value in row.values())


def test_two_secrets_of_one_prefix(store: Store) -> None:
    keys = Keys(store)
    _, first = keys.create("a")
    other, second = keys.create("b")
    with store.write() as connection:
        connection.execute(table.update().values(prefix=first[:15]))
    twin = first[:15] + second[15:]
    with store.write() as connection:
        digest = hashlib.sha256(twin.encode()).hexdigest()
        connection.execute(table.update().where(table.c.id == other.id).values(digest=digest))
    found = [keys.find(first), keys.find(twin)]
    assert [key.name for key in found if key] == ["a", "b"]


def test_rotate_revoke_limit_expire(store: Store) -> None:
    keys = Keys(store)
    key, old = keys.create("team")
    _, new = keys.rotate("team")
    assert keys.find(old) is None and keys.find(new) is not None
    assert keys.limit(key.id, Limits(requests_at_once=2)).limits == Limits(requests_at_once=2)
    keys.revoke("team")
    assert keys.find(new) is None
    assert keys.exist()  # a server with revoked keys alone is not open
    key, secret = keys.create("short", days=1e-9)
    assert not key.is_valid(time.time()) and keys.find(secret) is None
    assert [one.name for one in keys.list()] == ["team", "short"]


def test_names(store: Store) -> None:
    keys = Keys(store)
    keys.create("team")
    with pytest.raises(UserError, match="there is a key named 'team'"):
        keys.create("team")
    with pytest.raises(UserError, match="there is no key 'tem'"):
        keys.revoke("tem")
