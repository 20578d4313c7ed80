"""`keybearer doctor`: what is wrong is named with what to do, what is right is left alone, and nothing is made."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support import valkey as valkeys
from tests.support.server import environment

from keybearer import app, config
from keybearer.cli import commands
from keybearer.cli.diagnosis import Finding, _own_clock, diagnose
from keybearer.errors import SettingsInvalid
from keybearer.store.db import Database


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own."""
    for name in environment(tmp_path):
        if name.startswith(config.PREFIX):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


async def founded(path: Path) -> Path:
    """A data directory as the first start leaves it."""
    (await app.prepare(config.load(data_dir=path, port=0))).listener.close()
    return path


async def look(path: Path) -> dict[str, Finding]:
    return {finding.check: finding async for finding in diagnose(path)}


def told_by(data: Path) -> dict[str, object]:
    """All that a check could have made or mended, but for SQLite's files, which whoever opens them writes to."""
    files = [path for path in data.rglob("*") if path.is_file() and not path.name.startswith("keybearer.db")]
    return {".": data.stat().st_mode} | {str(path): (path.stat().st_mode, path.read_bytes()) for path in files}


def states(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in findings.items() if finding.state != "ok"}


async def test_before_the_first_start_nothing_is_wrong_and_nothing_is_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    found = await look(data)
    assert states(found) == {"data directory": "warning", "database": "warning", "root key": "warning", "migrations": "skipped"}
    assert not data.exists()  # a test's own loop


async def test_after_it_all_is_well(tmp_path: Path) -> None:
    found = await look(await founded(tmp_path / "data"))
    assert states(found) == {}
    assert list(found) == [
        "settings", "data directory", "egress", "database", "root key", "migrations", "root key opens", "limits", "clock", "processes",
    ]  # fmt: skip


def _sql(statement: str) -> Callable[[Path], None]:
    def run(data: Path) -> None:
        with sqlite3.connect(data / "keybearer.db") as connection:
            connection.execute(statement)

    return run


def _another_key(data: Path) -> None:
    (data / "root.key").write_text("a" * 43 + "=\n")
    (data / "root.key").chmod(0o600)


FUTURE = (datetime.now(UTC) + timedelta(days=400)).isoformat(timespec="microseconds")


@pytest.mark.parametrize(
    ("broken", "wrong", "hint"),
    [
        (lambda data: data.chmod(0o755), {"data directory": "warning"}, "chmod -R go="),
        (lambda data: (data / "root.key").rename(data / "away"), {"root key": "failed"}, "put the file back"),
        (lambda data: (data / "root.key").chmod(0o644), {"data directory": "warning", "root key": "failed"}, "chmod"),
        (_another_key, {"root key opens": "failed"}, ""),
        (
            lambda data: (data / "keybearer.db").write_bytes(b"kbtest " * 2000),
            {"database": "failed", "migrations": "skipped"},
            "",
        ),
        (_sql("UPDATE alembic_version SET version_num = '0001'"), {"migrations": "failed", "deployment": "skipped"}, "serve"),
        (_sql("UPDATE alembic_version SET version_num = '9999'"), {"migrations": "warning"}, "update"),
        (_sql("UPDATE deployment SET frozen_at = created_at"), {"emergency stop": "warning"}, "unfreeze"),
    ],
    ids=["open directory", "lost key", "open key", "another key", "no database", "old schema", "new schema", "frozen"],
)
async def test_what_is_wrong_is_named(tmp_path: Path, broken: Callable[[Path], Any], wrong: dict[str, str], hint: str) -> None:
    data = await founded(tmp_path / "data")
    broken(data)
    before = told_by(data)
    found = await look(data)
    assert {name: state for name, state in states(found).items() if name in wrong} == wrong
    assert any(hint in finding.hint for name, finding in found.items() if name in wrong)
    assert told_by(data) == before  # told, not mended


@pytest.mark.parametrize(
    ("name", "value", "check", "state", "said"),
    [
        ("EGRESS_ALLOW", "10.0.0.0/4", "settings", "ok", ""),
        ("EGRESS_ALLOW", "0.0.0.0/0", "egress", "warning", "0.0.0.0/0 in KEYBEARER_EGRESS_ALLOW"),
        ("EGRESS_ALLOW", "not a host", "egress", "failed", "KEYBEARER_EGRESS_ALLOW"),
        ("EGRESS_CA_FILE", "nowhere.pem", "settings", "failed", "KEYBEARER_EGRESS_CA_FILE"),
        ("CONNECTION_ALLOW", "0.0.0.0/0", "egress", "warning", "0.0.0.0/0 in KEYBEARER_CONNECTION_ALLOW"),
        ("CONNECTION_ALLOW", "not a host", "egress", "failed", "KEYBEARER_CONNECTION_ALLOW"),
        ("CONNECTION_ALLOW", "10.1.0.0/16,db.internal:5432", "egress", "ok", "db.internal:5432"),
        ("HOST", "0.0.0.0", "settings", "failed", "unencrypted"),
        ("WORKERS", "3", "settings", "failed", "PostgreSQL"),
        ("PORT", "many", "settings", "failed", "KEYBEARER_PORT"),
        ("PRICES", "openai/gpt-4o: cheap", "settings", "failed", "KEYBEARER_PRICES"),
        ("SMTP_URL", "http://mail.example", "settings", "failed", "KEYBEARER_SMTP_URL"),
        ("DATABASE_URL", "oracle://kbtest@db/x", "database", "failed", "not supported"),
        ("ROOT_KEY_PROVIDER", "env", "root key", "failed", "KEYBEARER_ROOT_KEY"),
    ],
)
async def test_settings_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str, state: str, said: str
) -> None:
    monkeypatch.setenv(config.PREFIX + name, value)
    found = (await look(tmp_path / "data"))[check]
    assert found.state == state
    assert said in found.message


async def test_a_file_that_a_server_removes_meanwhile_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = await founded(tmp_path / "data")
    monkeypatch.setattr(Path, "rglob", lambda path, _: iter([path / "keybearer.db", path / "journal" / "shipped.jsonl"]))
    assert states(await look(data)) == {}


async def test_a_root_key_that_another_provider_holds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = await founded(tmp_path / "data")
    monkeypatch.setenv("KEYBEARER_ROOT_KEY_PROVIDER", "env")
    found = await look(data)
    assert found["root key"].state == "warning"
    assert "held by file" in found["root key"].message


def test_a_clock_that_is_past_is_wrong() -> None:
    assert _own_clock(datetime(2001, 1, 1, tzinfo=UTC)).state == "failed"
    assert _own_clock(datetime(2030, 1, 1, tzinfo=UTC)).state == "ok"


async def test_a_record_of_a_day_to_come_is_told(tmp_path: Path) -> None:
    data = await founded(tmp_path / "data")
    _sql(f"UPDATE audit_record SET at = '{FUTURE}'")(data)
    found = await look(data)
    assert found["clock"].state == "warning"
    assert "still to come" in found["clock"].message


async def test_postgresql_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emptied_postgresql: tuple[str, str]) -> None:
    url, direct_url = emptied_postgresql
    monkeypatch.setenv("KEYBEARER_DATABASE_URL", url)
    assert (await look(tmp_path / "data"))["database"].state == "warning"  # empty
    monkeypatch.setenv("KEYBEARER_DATABASE_DIRECT_URL", direct_url)
    assert states(await look(await founded(tmp_path / "data"))) == {}
    monkeypatch.setenv("KEYBEARER_DATABASE_URL", direct_url)  # a login that owns the tables could step around the wall
    found = (await look(tmp_path / "data"))["migrations"]
    assert found.state == "failed"
    assert "owner" in found.message or "superuser" in found.message
    unreachable = "postgresql+psycopg://kbtest:kbtest-password@127.0.0.1:1/none"
    monkeypatch.setenv("KEYBEARER_DATABASE_URL", unreachable)
    everything = await look(tmp_path / "data")
    assert everything["database"].state == "failed"
    assert "kbtest-password" not in repr(everything)


async def test_valkey_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = await founded(tmp_path / "data")
    with valkeys.running() as valkey:
        monkeypatch.setenv("KEYBEARER_REDIS_URL", valkey.url)
        assert states(await look(data)) == {}
        valkey.kill()
        found = await look(data)
        assert states(found) == {"limits": "failed"}
        assert valkey.password not in repr(found)


async def test_a_database_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = await founded(tmp_path / "data")

    async def refused(*_: Any, **__: Any) -> Database:
        raise SettingsInvalid("Gone.")

    monkeypatch.setattr(Database, "open", refused)
    assert (await look(data))["deployment"].state == "failed"


def test_the_command_says_so_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor = commands(("doctor",))
    path = str(tmp_path / "data")
    assert doctor(["--data-dir", path], standalone_mode=False) == 0
    assert "Nothing is in the way of a start." in capsys.readouterr().out
    monkeypatch.setenv("KEYBEARER_HOST", "0.0.0.0")  # what the command is to find
    assert doctor(["--data-dir", path], standalone_mode=False) == 1
    said = capsys.readouterr().out
    assert "failed   settings" in said
    assert "hint: Set KEYBEARER_TLS_CERTIFICATE" in said
    assert doctor(["--data-dir", path, "--json"], standalone_mode=False) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["findings"][0]["check"] == "settings"
    assert {"check", "state", "message", "hint"} == set(told["findings"][0])
