"""A backup of a server that serves, restored elsewhere, into the other kind of database, and used there through the gateway."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.e2e.conftest import KEYS, settle
from tests.support import server as servers
from tests.support.postgresql import Server as PostgreSQL
from tests.support.provider import Provider
from tests.support.server import PASSWORD

PHRASE = "kbtest-correct-horse-battery-staple"
SYSTEM = "sk-proj-kbtest-lent-0123456789abcdefghijklmno"


@pytest.fixture
def postgresql(postgresql_server: PostgreSQL) -> Iterator[dict[str, str]]:
    url, direct = postgresql_server.create("kbtest_backup_story")
    yield {"database_url": url, "database_direct_url": direct}
    postgresql_server.drop("kbtest_backup_story")


def keybearer(environment: dict[str, str], *arguments: str, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "keybearer", *arguments],
        env=environment, input=stdin, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def key_sent(server: servers.Server, provider: Provider, token: str, model: str = "gpt-4o-mini") -> str:
    provider.forget()
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {token}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    return str(provider.requests()[-1]["headers"]["authorization"].removeprefix("Bearer "))


@pytest.mark.timeout(300)  # three servers and six commands, on a machine that is busy with others
def test_from_sqlite_to_postgresql_and_back(provider: Provider, tmp_path: Path, postgresql: dict[str, str]) -> None:
    there, again = tmp_path / "there" / "data", tmp_path / "again" / "data"
    first, second = tmp_path / "first.kbb", tmp_path / "second.kbb"
    with servers.running(tmp_path / "here" / "data", egress_allow="127.0.0.1") as server:
        world = settle(server, provider)
        world.admin.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD, "name": "Bob"})
        bob = servers.sign_in(server, "bob@example.com")
        team = world.admin.call("POST", "/teams", json={"name": "Workshop"})
        world.admin.call("POST", f"/teams/{team['id']}/members", json={"email": "bob@example.com"})
        world.admin.add_key("openai", SYSTEM, name="lent", team_id=team["id"])
        bobs = bob.token("app")
        versioned = world.admin.call("GET", "/secrets?provider=openai")["items"][0]
        world.admin.call(
            "POST", f"/secrets/{versioned['id']}/rotate", json={"value": KEYS["openai"] + "new", "save_anyway": True}
        )
        assert key_sent(server, provider, bobs) == SYSTEM
        made = json.loads(server.cli("backup", str(first), "--passphrase-stdin", "--json", stdin=PHRASE).stdout)
        assert made["key_by"] == "passphrase"
        root_key = server.data_dir / "root.key"
        env = servers.environment(there, egress_allow="127.0.0.1", **postgresql)
        lost = keybearer(env, "restore", str(first), "--passphrase-stdin", stdin=PHRASE, code=1)
        assert "hint:" in lost.stderr
        assert not (there / "root.key").exists()
        there.mkdir(parents=True, exist_ok=True)
        shutil.copy(root_key, there / "root.key")
        done = json.loads(keybearer(env, "restore", str(first), "--passphrase-stdin", "--json", stdin=PHRASE).stdout)
        assert (done["rows"], done["audit"], done["unreadable"]) == (made["rows"], "ok", 0)
    with servers.running(there, egress_allow="127.0.0.1", **postgresql) as server:
        assert "/setup#" not in server.banner
        assert key_sent(server, provider, bobs) == SYSTEM
        assert key_sent(server, provider, world.token) == KEYS["openai"] + "new"
        admin = servers.sign_in(server, "ada@example.com")
        versions = admin.call("GET", f"/secrets/{versioned['id']}/versions")["items"]
        assert [each["version"] for each in versions] == [2, 1]
        admin.call("POST", f"/secrets/{versioned['id']}/rollback")
        admin.add_key("openai", KEYS["openai"] + "more", name="made there", priority=500)  # the other one serves
        said = server.cli("backup", str(second)).stdout
        assert "root keys must be there: file" in said
        assert json.loads(server.cli("audit", "verify", "--json").stdout)["ok"]
    env = servers.environment(again, egress_allow="127.0.0.1")
    again.mkdir(parents=True)
    shutil.copy(there / "root.key", again / "root.key")
    assert "Proved" in keybearer(env, "restore", str(second)).stdout
    with servers.running(again, egress_allow="127.0.0.1") as server:
        assert key_sent(server, provider, world.token) == KEYS["openai"]
        names = {item["name"] for item in servers.sign_in(server, "ada@example.com").call("GET", "/secrets")["items"]}
        assert "made there" in names
        actions = {row["action"] for row in servers.sign_in(server, "ada@example.com").call("GET", "/audit?limit=200")["items"]}
        assert "backup.restore" in actions
        assert json.loads(server.cli("audit", "verify", "--json").stdout)["ok"]
    for path in (first, second):
        assert b"kbtest" not in path.read_bytes()
