"""Keys are rotated while a server serves: through the API and the command line, on both databases."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD

CHAT = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
PHRASE = "kbtest correct horse battery staple"


class Callers:
    """Somebody who calls the gateway all the time, and notes what was not answered."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failed: list[str] = []

    def _run(self) -> None:
        with httpx2.Client(headers={"authorization": f"Bearer {self._world.token}"}, timeout=20) as http:
            while not self._over.is_set():
                answer = http.post(f"{self._world.server.url}/v1/chat/completions", json=CHAT)
                self.answered += 1
                if answer.status_code != 200:
                    self.failed.append(answer.text)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self.answered
        assert self.failed == []


def finished(world: World) -> dict[str, Any]:
    """The state of the keys once no rotation is under way."""
    deadline = time.monotonic() + 60
    while True:
        status: dict[str, Any] = world.admin.call("GET", "/admin/keys")
        if status["rotation"]["state"] == "finished":
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def test_an_administrator_rotates_by_the_api(provider: Provider, database: dict[str, str], data_dir: Path) -> None:
    with servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        world = settle(server, provider)
        before = world.admin.call("GET", "/admin/keys")
        assert [(root["state"], root["provider"]) for root in before["root_keys"]] == [("active", "file")]
        assert before["rotation"] is None
        assert len(before["processes"]) == 1
        with Callers(world):
            begun = world.admin.call("POST", "/admin/keys/rotate", status=202, json={"kind": "root"})
            assert begun["state"] == "running"
            after = finished(world)
            assert [root["state"] for root in after["root_keys"]] == ["active", "retired"]
            assert after["root_keys"][1]["owner_keys"] == 0
            assert after["processes"][0]["root_key_id"] == after["root_keys"][0]["id"] == begun_root(after)
            world.admin.call("POST", "/admin/keys/rotate", status=202, json={"kind": "owners"})
            after = finished(world)
            assert after["rotation"]["done"] == after["rotation"]["total"] == 3
            me = world.admin.call("GET", "/me")["user"]["id"]
            world.admin.call("POST", "/admin/keys/rotate", status=202, json={"kind": "owner", "owner_id": me})
            after = finished(world)
            rows = {(row["version"], row["state"]): row["rows"] for row in after["owner_keys"]}
            assert rows[3, "active"] == 3
            assert rows[1, "retired"] == rows[2, "retired"] == 0
        for action in ("root_key.stage", "root_key.promote", "root_key.empty", "owner_key.turn", "rotation.finish"):
            assert world.admin.call("GET", "/audit", params={"action": action})["items"], action
        began = world.admin.call("GET", "/audit", params={"action": "rotation.begin"})["items"][-1]
        assert began["detail"] == {"kind": "root", "of": "file"}
        assert began["user_id"] == me
        token = world.token
    with servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        answer = httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200


def begun_root(status: dict[str, Any]) -> object:
    return status["rotation"]["root_key_id"]


def test_what_is_refused(provider: Provider, data_dir: Path) -> None:
    with servers.running(data_dir, egress_allow="127.0.0.1") as server:
        world = settle(server, provider)
        refused = [
            ({"kind": "root", "to": "aws-kms"}, 422, "KEYBEARER_AWS_KMS_KEY"),
            ({"kind": "root", "to": "kbtest"}, 422, "no root key provider"),
            ({"kind": "owners", "to": "env"}, 422, "does not go with"),
            ({"kind": "owner"}, 422, "is missing"),
            ({"kind": "root", "owner_id": "00000000-0000-0000-0000-000000000000"}, 422, "does not go with"),
            ({"kind": "owner", "owner_id": "00000000-0000-0000-0000-00000000000a"}, 404, "no key"),
            ({"kind": "everything"}, 422, ""),
            ({}, 422, ""),
        ]
        for body, status, said in refused:
            assert said in str(world.admin.call("POST", "/admin/keys/rotate", status=status, json=body))
        assert world.admin.call("GET", "/admin/keys")["rotation"] is None
        world.admin.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD})
        bob = servers.sign_in(server, "bob@example.com")
        bob.call("GET", "/admin/keys", status=403)
        bob.call("POST", "/admin/keys/rotate", status=403, json={"kind": "root"})
        servers.program(server, world.token).call("GET", "/admin/keys", status=403)
        recorded = world.admin.call("GET", "/audit", params={"limit": 200})["items"]
        assert any((record["action"], record["outcome"]) == ("root_key.rotate", "forbidden") for record in recorded)


@pytest.mark.timeout(300)  # a dozen commands, each a process, beside a server under load
def test_the_operator_moves_to_another_provider(provider: Provider, database: dict[str, str], data_dir: Path) -> None:
    settings = {"egress_allow": "127.0.0.1", "root_key_passphrase": PHRASE} | database
    with servers.running(data_dir, **settings) as server:
        world = settle(server, provider)
        with Callers(world):
            done = server.cli("key", "rotate", "--to", "passphrase")
            assert "KEYBEARER_ROOT_KEY_PROVIDER=passphrase" in done.stdout
            assert "Traceback" not in done.stderr
            assert PHRASE not in done.stdout + done.stderr
            assert servers.json_of(server.cli("key", "rotate", "--owner", "ada@example.com", "--json"))["done"] == 3
            assert servers.json_of(server.cli("key", "rotate", "--owner", "system", "--json"))["state"] == "finished"
            assert servers.json_of(server.cli("key", "rotate", "--all-owners", "--json"))["done"] == 3
        status = servers.json_of(server.cli("key", "status", "--json"))
        assert [(root["provider"], root["state"]) for root in status["root_keys"]] == [
            ("passphrase", "active"),
            ("file", "retired"),
        ]
        shown = server.cli("key", "status").stdout
        assert "passphrase" in shown
        assert "retired" in shown
        assert "hint" in server.cli("key", "rotate", "--resume", check=False).stderr
        assert server.cli("key", "rotate", "--to", "env", check=False).returncode == 1
        assert server.cli("key", "rotate", "--to", "env", "--all-owners", check=False).returncode == 1
        assert server.cli("key", "rotate", "--owner", "nobody@example.com", check=False).returncode == 1
        assert server.cli("audit", "verify").returncode == 0
        token = world.token
    (data_dir / "root.key").unlink()
    with servers.running(data_dir, **settings | {"root_key_provider": "passphrase"}) as server:
        answer = httpx2.post(f"{server.url}/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert not (data_dir / "root.key").exists()


def test_a_server_goes_on_with_what_a_killed_command_began(provider: Provider, database: dict[str, str], data_dir: Path) -> None:
    with servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        world = settle(server, provider)
        command = servers.cli_process(server, "key", "rotate")
        time.sleep(1.5)
        command.kill()
        command.wait(10)
        if world.admin.call("GET", "/admin/keys")["rotation"] is None:
            world.admin.call("POST", "/admin/keys/rotate", status=202, json={"kind": "root"})
        assert [root["state"] for root in finished(world)["root_keys"]] == ["active", "retired"]


def test_a_deleted_person_is_gone_everywhere(provider: Provider, database: dict[str, str], data_dir: Path) -> None:
    with servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        world = settle(server, provider)
        made = {
            name: world.admin.call("POST", "/users", json={"email": name, "password": PASSWORD})
            for name in ("b@x.org", "c@x.org")
        }
        bob = servers.sign_in(server, "b@x.org")
        bob.add_key("openai", "sk-proj-kbtest-bob-0123456789abcdefghijklmnopqr")
        token = bob.token()
        ask: dict[str, Any] = {"json": CHAT, "headers": {"authorization": f"Bearer {token}"}}
        assert httpx2.post(f"{server.url}/v1/chat/completions", **ask).status_code == 200
        bob.call("DELETE", f"/users/{made['c@x.org']['id']}", status=403)
        world.admin.call("DELETE", f"/users/{world.admin.call('GET', '/me')['user']['id']}", status=403)
        world.admin.call("DELETE", f"/users/{made['b@x.org']['id']}", status=204)
        servers.until(lambda: httpx2.post(f"{server.url}/v1/chat/completions", **ask), lambda answer: answer.status_code == 401)
        bob.call("GET", "/me", status=401)
        world.admin.call("DELETE", f"/users/{made['b@x.org']['id']}", status=404)
        server.cli("user", "delete", "c@x.org", "--yes")
        assert [user["email"] for user in world.admin.call("GET", "/users")["items"]] == ["ada@example.com"]
        assert len(world.admin.call("GET", "/audit", params={"action": "user.delete"})["items"]) == 5
        assert world.admin.call("GET", "/audit", params={"user_id": made["b@x.org"]["id"]})["items"]
        assert server.cli("audit", "verify").returncode == 0
