"""The tables. Times are seconds since 1970, days are "YYYY-MM-DD" in UTC."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    # The secret itself is not kept: its first characters find the row, the SHA-256 proves it.
    Column("prefix", String(20), nullable=False, index=True),
    Column("digest", String(64), nullable=False),
    Column("scopes", String(200), nullable=False),
    Column("models", Text),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("tokens_per_day", BigInteger),
    Column("requests_at_once", BigInteger),
)

usage = Table(
    "usage",
    metadata,
    Column("key", String(40), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("key", String(40), nullable=False),
    Column("at", Float, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("running", Boolean, nullable=False),
    Index("reservations_by_key", "key", "at"),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("key", String(40), nullable=False),
    Column("user", String(512)),
    Column("route", String(100), nullable=False),
    Column("model", String(200), nullable=False),
    Column("weights", String(64), nullable=False),
    Column("sampling", Text, nullable=False),
    Column("started", Float, nullable=False, index=True),
    Column("first_token", Float),
    Column("ended", Float, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("reason", String(20), nullable=False),
    Column("error", Text),
    Column("prompt_digest", String(64), nullable=False),
    Column("prompt_text", Text),
    Column("answer_text", Text),
    Index("requests_by_key", "key"),
    Index("requests_by_user", "user"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("act", String(100), nullable=False),
    Column("details", Text, nullable=False),
)
