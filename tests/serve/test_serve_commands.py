"""``lit_llm serve``: mistakes of its options, and the commands for keys and records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_llm.cli import main
from lit_llm.errors import UserError
from lit_llm.people.keys import Keys
from lit_llm.people.store.database import Store
from lit_llm.people.store.records import Records
from lit_llm.serve.loading import model_name, named_adapters
from tests.people.test_store import record, unsettled


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "made" / "serve.sqlite")


def run(place: str, *args: str) -> int:
    return main(["serve", *args, "--store", place])


def test_keys(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "keys", "create", "team", "--tokens_per_day", "500", "--model", "a",
               "--scope", "admin", "--scope", "infer", "--days", "9") == 0  # fmt: skip
    secret = capsys.readouterr().out.strip()
    keys = Keys(Store(place))
    found = keys.find(secret)
    assert found is not None and found.limits.tokens_per_day == 500
    assert (found.scopes, found.models) == (("admin", "infer"), ("a",))
    assert run(place, "keys", "limit", "team", "--requests_at_once", "3") == 0
    limited = keys.get("team").limits
    assert (limited.requests_at_once, limited.tokens_per_day) == (3, None)
    assert "requests_at_once=3" in capsys.readouterr().out
    assert run(place, "keys", "rotate", "team") == 0
    second = capsys.readouterr().out.strip()
    assert keys.find(secret) is None and keys.find(second) is not None
    assert run(place, "keys", "revoke", "team") == 0
    assert run(place, "keys", "list") == 0
    shown = capsys.readouterr().out
    assert "team" in shown and "revoked" in shown and second not in shown
    assert run(place, "keys", "list", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["name"] == "team" and row["limits"]["requests_at_once"] == 3
    assert "digest" not in row
    with Store(place).read() as connection:
        acts = connection.exec_driver_sql("SELECT act, details FROM audit").all()
    assert [act for act, _ in acts] == [
        "keys create", "keys limit", "keys rotate", "keys revoke",
    ]  # fmt: skip
    assert secret not in str(acts) and second not in str(acts)


def test_usage_and_erase(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(place)
    key, _ = Keys(store).create("team")
    records = Records(store)
    records.finish(record(1, key=key.id, user="ann"), unsettled)
    records.finish(record(2, key=key.id), unsettled)
    records.finish(record(3, key=""), unsettled)
    assert run(place, "usage") == 0
    assert "team" in capsys.readouterr().out
    assert run(place, "usage", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["key"]: row["requests"] for row in rows} == {"team": 2, "(no key)": 1}
    assert run(place, "erase", "--user", "ann") == 0
    assert "deleted 1 requests" in capsys.readouterr().out
    assert run(place, "erase", "--key", "team") == 0
    assert "deleted 1 requests" in capsys.readouterr().out
    with store.read() as connection:
        assert "ann" not in str(connection.exec_driver_sql("SELECT details FROM audit").all())
    store.close()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("keys", None),
        ("keys make", "no command 'make'; commands: create, list"),
        ("keys revoke nobody", "there is no key 'nobody'"),
        ("keys create a --tokens_per_day 0", "--tokens_per_day: 0 must be from 1"),
        ("keys create a --scope all", "--scope: invalid choice: 'all'"),
        ("erase", "give --key NAME or --user NAME"),
        ("erase --key a --user b", "give --key NAME or --user NAME"),
        ("erase --key a", "there is no key 'a'"),
        ("absent", "absent: no such file or folder"),
        ("absent --host 0.0.0.0", "there is no key: make one with lit_llm serve keys create"),
        ("absent --host 0.0.0.0 --no_keys", "absent: no such file or folder"),
        ("absent --port 70000", "--port: 70,000 must be from 0 to 65,535"),
        ("", "give a checkpoint, or --backend NAME=URL"),
        ("--check", "give a checkpoint"),
        ("--backend here", "--backend: 'here' is not NAME=URL"),
        ("--backend a=http://b/v1 --backend a=http://c/v1", "there is another model of this name"),
    ],
)
def test_mistakes(
    place: str, args: str, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if said is None:
        assert main(["serve", *args.split()]) == 0
        assert "lit_llm serve keys create NAME" in capsys.readouterr().out
        return
    assert run(place, *args.split()) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1, error


def test_the_default_store_is_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["serve", "keys", "create", "team"]) == 0
    assert (tmp_path / "lit_llm" / "serve.sqlite").is_file()


def test_a_missing_extra_is_named(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert run("postgresql://nobody@nowhere/x", "keys", "list") == 2
    assert "pip install 'lit_llm[postgres]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ckpt", "name"),
    [
        ("models/Qwen3-0.6B", "Qwen3-0.6B"),
        ("runs/mine/final", "mine"),
        ("package:smol/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("runs/mine/checkpoints/step-5.ckpt", "step-5"),
    ],
)
def test_the_name_of_a_model(ckpt: str, name: str) -> None:
    assert model_name(ckpt) == name


def test_the_names_of_adapters(tmp_path: Path) -> None:
    """A path may hold the sign between a name and a path; the adapter of a run has its name."""
    folder = f"{tmp_path}/lr=2e-4/adapter"
    assert named_adapters([folder, f"b={folder}", "runs/x"], "base") == {
        "lr=2e-4": folder, "b": folder, "x": "runs/x",
    }  # fmt: skip
    for word in ("base=a", "base"):
        with pytest.raises(UserError, match="there is another model named base; give NAME=DIR"):
            named_adapters([word], "base")
