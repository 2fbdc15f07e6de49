"""The database: its schema, its durability, what is deleted."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lit_llm.errors import UserError
from lit_llm.people.store.database import Store
from lit_llm.people.store.records import NOBODY, Records, RequestRecord
from lit_llm.people.store.tables import audit, metadata, requests


def record(number: int = 0, **changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "id": f"chatcmpl-{number}", "key": "key_a", "user": None, "route": "/v1/chat/completions",
        "model": "tiny", "weights": "", "sampling": "{}", "started": time.time(),
        "first_token": None, "ended": time.time(), "prompt_tokens": 10, "cached_tokens": 0,
        "completion_tokens": 5, "reason": "stop", "error": None, "prompt_digest": "",
    }  # fmt: skip
    return RequestRecord(**values | changes)


def unsettled(_: sa.Connection) -> None:
    """There is no reservation."""


def test_the_newest_revision_makes_the_tables(store: Store) -> None:
    with store.read() as connection:
        assert not compare_metadata(MigrationContext.configure(connection), metadata)


def test_migrations_go_back_and_forth(store: Store) -> None:
    store.downgrade("base")
    with store.read() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version"}
    store.upgrade()
    Records(store).finish(record(), unsettled)


def test_a_newer_database_is_refused(store: Store, place: str) -> None:
    with store.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'future'"))
    with pytest.raises(UserError, match="another version of lit_llm has written it"):
        Store(place)
    with store.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("mysql://a:secret@b/c", "mysql is not supported"),
        ("://", "not a database's URL"),
        ("/dev/null/x", "--store /dev/null/x: /dev/null: exists and is not a folder"),
    ],
)
def test_places_that_are_no_database(place: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Store(place)
    assert "secret" not in str(caught.value)


def test_usage_is_the_sum_by_key_and_day(store: Store) -> None:
    records = Records(store)
    for number in range(3):
        records.finish(record(number), unsettled)
    records.finish(record(3, key=NOBODY), unsettled)
    counts = {row["key"]: row for row in records.usage()}
    assert counts["key_a"]["requests"] == 3
    assert counts["key_a"]["prompt_tokens"] == 30
    assert counts["key_a"]["completion_tokens"] == 15
    assert counts[NOBODY]["requests"] == 1
    assert records.used_today("key_a") == 45


def test_a_record_and_its_usage_are_written_together_or_not_at_all(store: Store) -> None:
    records = Records(store)
    records.finish(record(1), unsettled)
    with pytest.raises(sa.exc.IntegrityError):
        records.finish(record(1), unsettled)
    assert records.used_today("key_a") == 15


def test_erase_and_retention(store: Store) -> None:
    records = Records(store)
    records.finish(record(1, user="ann\0", prompt_text="private"), unsettled)
    records.finish(record(2, user="bob"), unsettled)
    records.finish(record(3, key="key_b", started=time.time() - 10 * 86_400), unsettled)
    assert records.erase(user="bob") == 1
    assert records.erase(key="key_c") == 0
    records.note("admin", "erase", requests=1)
    assert records.forget(days=9) == 1
    with store.read() as connection:
        assert [row.id for row in connection.execute(sa.select(requests))] == ["chatcmpl-1"]
        assert connection.execute(sa.select(audit.c.act)).scalar() == "erase"
    assert records.used_today("key_a") == 30  # the sums stay


def test_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    with store.read() as connection:
        ask = connection.exec_driver_sql
        assert ask("PRAGMA journal_mode").scalar() == "wal"
        assert ask("PRAGMA synchronous").scalar() == 2  # FULL
        assert ask("PRAGMA busy_timeout").scalar() == 30_000
    store.close()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from lit_llm.people.store.database import Store
from lit_llm.people.store.records import Records
from tests.people.test_store import record, unsettled
records = Records(Store(sys.argv[1]))
for number in range(200):
    records.finish(record(number), unsettled)
    print(number, flush=True)
    if number == 50:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_acknowledged_survives_kill(store: Store, place: str) -> None:
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", KILLED, place, root], capture_output=True, text=True, check=False
    )
    told = len(run.stdout.split())
    assert run.returncode == -9 and told == 51, run.stderr
    counts = Records(store).usage()
    assert counts[0]["requests"] == told
    assert counts[0]["prompt_tokens"] == 10 * told
