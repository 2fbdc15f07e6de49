"""Store: the database, SQLite in a file or PostgreSQL by URL, with its schema kept up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import ArgumentError, DBAPIError

from lit_llm.errors import UserError, told_of_a_path
from lit_llm.people.extra import serve_extra

_BUSY_SECONDS = 30
_MIGRATIONS = Path(__file__).with_name("migrations")
# Any number; processes that start at the same time wait for one another under it.
_MIGRATION_LOCK = 4_803_115


class Store:
    """A database with the tables of `tables`.

    SQLite runs in WAL mode with ``synchronous=FULL``: what a transaction has committed is on disk.

    Args:
        place: path of a SQLite file, which is made if it is missing, or a URL of PostgreSQL
            ("postgresql://user@host/name").

    Raises:
        UserError: the database cannot be opened, or a newer lit_llm has written it.
    """

    def __init__(self, place: str | Path):
        url = _url(str(place))
        with serve_extra():
            self.engine = sa.create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite")
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            try:
                Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                said = told_of_a_path(error) or error.strerror
                raise UserError(f"--store {url.database}: {said}") from None
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)
        try:
            self.upgrade()
        except DBAPIError as error:
            said = " ".join(str(error.orig).split())
            raise UserError(f"--store {_shown(url)}: {said}") from None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes; other writers wait for it (SQLite) or for its rows."""
        with (
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def upgrade(self, revision: str = "head") -> None:
        """Bring the schema to a revision, by default the newest."""
        self._migrate(command.upgrade, revision)

    def downgrade(self, revision: str) -> None:
        """Bring the schema back to an earlier revision ("base": no tables)."""
        self._migrate(command.downgrade, revision)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _migrate(self, act: Any, revision: str) -> None:
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            try:
                act(config, revision)
            except CommandError as error:
                raise UserError(
                    f"--store {_shown(self.engine.url)}: another version of lit_llm has written it "
                    f"({error}); use that version"
                ) from None


def _url(place: str) -> sa.URL:
    if "://" not in place:
        return sa.URL.create("sqlite", database=str(Path(place).expanduser()))
    try:
        url = sa.make_url(place)
    except ArgumentError:
        raise UserError(
            "--store: not a database's URL; give postgresql://user@host/name or a file"
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise UserError(
        f"--store {_shown(url)}: {url.drivername} is not supported; give a SQLite file or "
        "postgresql://user@host/name"
    )


def _shown(url: sa.URL) -> str:
    """The URL without its password, for messages."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # Transactions begin where SQLAlchemy says, not where the driver guesses.
    connection.isolation_level = None
    for setting in (
        f"busy_timeout={_BUSY_SECONDS * 1000}",
        "journal_mode=WAL",
        "synchronous=FULL",
    ):
        connection.execute(f"PRAGMA {setting}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and locks later can fail at the lock.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
