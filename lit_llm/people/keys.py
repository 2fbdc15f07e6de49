"""Keys of the API: made, listed, limited, rotated, revoked, and checked.

A key is shown once. The store keeps its first characters, by which it is found, and its SHA-256. A
slow hash as for passwords is not needed: 32 random bytes cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from lit_llm.errors import UserError
from lit_llm.people.limits import Limits
from lit_llm.people.store.database import Store
from lit_llm.people.store.tables import keys

SCOPES = ("infer", "admin")
_START = "sk-lit-"
_PREFIX = len(_START) + 8


@dataclass(frozen=True)
class Key:
    """A key without its secret.

    Attributes:
        id: names it in records.
        name: that its maker gave.
        prefix: first characters of the secret.
        scopes: "infer" for the models, "admin" for metrics and the documentation of the API.
        models: names of the models that it may use; None for all.
        created, expires, revoked: seconds since 1970; None: never.
        limits: of its use.
    """

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    created: float
    expires: float | None
    revoked: float | None
    limits: Limits

    def allows(self, model: str) -> bool:
        """Whether the key may use a model."""
        return self.models is None or model in self.models

    def is_valid(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Keys:
    """The keys of a store."""

    def __init__(self, store: Store):
        self._store = store
        self._there = False

    def exist(self) -> bool:
        """Whether a key was ever made; the API then wants one."""
        if not self._there:
            with self._store.read() as connection:
                self._there = connection.execute(sa.select(keys.c.id).limit(1)).first() is not None
        return self._there

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] = ("infer",),
        models: Sequence[str] | None = None,
        days: float | None = None,
        limits: Limits = Limits(),  # noqa: B008 -- frozen
    ) -> tuple[Key, str]:
        """Make a key; returns it and its secret, which cannot be read again.

        Args:
            name: for people; no two keys share one.
            scopes: of `SCOPES`.
            models: that it may use; None for all.
            days: until it expires; None: never.
            limits: of its use.

        Raises:
            UserError: the name is taken.
        """
        secret, now = _new_secret(), time.time()
        row = {
            "id": f"key_{secrets.token_hex(8)}",
            "name": name,
            "scopes": " ".join(scopes),
            "models": None if models is None else json.dumps(list(models)),
            "created": now,
            "expires": None if days is None else now + days * 86_400,
            **_of_secret(secret),
            **vars(limits),
        }
        try:
            with self._store.write() as connection:
                connection.execute(keys.insert().values(row))
        except IntegrityError:
            raise UserError(f"there is a key named {name!r}; choose another name") from None
        return self.get(name), secret

    def list(self) -> list[Key]:
        """All keys, the oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(sa.select(keys).order_by(keys.c.created))
            return [_key(row) for row in rows.mappings()]

    def get(self, name: str) -> Key:
        """The key of a name or an id.

        Raises:
            UserError: there is none.
        """
        with self._store.read() as connection:
            wanted = sa.select(keys).where((keys.c.name == name) | (keys.c.id == name))
            row = connection.execute(wanted).mappings().first()
        if row is None:
            raise UserError(f"there is no key {name!r}; lit_llm serve keys list shows them")
        return _key(row)

    def limit(self, name: str, limits: Limits) -> Key:
        """Give a key other limits."""
        return self._change(name, vars(limits))

    def rotate(self, name: str) -> tuple[Key, str]:
        """Give a key another secret; the old one is refused from now on."""
        secret = _new_secret()
        return self._change(name, _of_secret(secret)), secret

    def revoke(self, name: str) -> Key:
        """Refuse a key from now on."""
        return self._change(name, {"revoked": time.time()})

    def find(self, secret: str) -> Key | None:
        """The valid key with this secret, or None."""
        with self._store.read() as connection:
            wanted = sa.select(keys).where(keys.c.prefix == secret[:_PREFIX])
            rows = connection.execute(wanted).mappings().all()
        digest = hashlib.sha256(secret.encode()).hexdigest()
        for row in rows:
            # Compared in constant time: the time tells nothing of the digest.
            if hmac.compare_digest(row["digest"], digest):
                key = _key(row)
                return key if key.is_valid(time.time()) else None
        return None

    def _change(self, name: str, values: dict[str, Any]) -> Key:
        key = self.get(name)
        with self._store.write() as connection:
            connection.execute(keys.update().where(keys.c.id == key.id).values(values))
        return self.get(key.id)


def _new_secret() -> str:
    return _START + secrets.token_urlsafe(32)


def _of_secret(secret: str) -> dict[str, str]:
    """What the store keeps of a secret."""
    return {
        "prefix": secret[:_PREFIX],
        "digest": hashlib.sha256(secret.encode()).hexdigest(),
    }


def _key(row: Any) -> Key:
    return Key(
        id=row["id"],
        name=row["name"],
        prefix=row["prefix"],
        scopes=tuple(row["scopes"].split()),
        models=None if row["models"] is None else tuple(json.loads(row["models"])),
        created=row["created"],
        expires=row["expires"],
        revoked=row["revoked"],
        limits=Limits(**{field.name: row[field.name] for field in fields(Limits)}),
    )
