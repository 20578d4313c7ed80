"""`KEYBEARER_FALLBACK=system`: the deployment's key serves who has none, if both allow it, and the receipt says who paid."""

from __future__ import annotations

from pathlib import Path

import httpx2
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person

SYSTEM_KEY = "sk-proj-kbtest-system-0123456789abcdefghijklmn"
CHAT = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


def new_member(world: World) -> tuple[Person, str]:
    world.admin.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD})
    bob = servers.sign_in(world.server, "bob@example.com")
    return bob, bob.token("bob", ("gateway:use",))


def chat(world: World, token: str) -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.post(f"{world.server.url}/v1/chat/completions", json=CHAT, headers=headers)


def test_the_systems_key_serves_only_where_both_allow_it(provider: Provider, data_dir: Path) -> None:
    with servers.running(data_dir, egress_allow="127.0.0.1", fallback="system") as server:
        world = settle(server, provider)
        bob, token = new_member(world)
        assert chat(world, token).json()["error"]["code"] == "key_missing"

        world.admin.add_key("openai", SYSTEM_KEY, system=True)
        provider.forget()
        answer = servers.until(lambda: chat(world, token), lambda answer: answer.status_code == 200)
        assert answer.headers["x-keybearer-key-source"] == "system"
        assert provider.requests()[-1]["headers"]["authorization"] == f"Bearer {SYSTEM_KEY}"
        assert bob.call("GET", "/secrets")["items"] == []
        assert SYSTEM_KEY[-4:] not in str(bob.call("GET", "/providers"))

        bob.call("PATCH", "/me", json={"fallback_allowed": False})
        answer = servers.until(lambda: chat(world, token), lambda answer: answer.status_code != 200)
        assert answer.json()["error"]["code"] == "key_missing"

        bob.call("PATCH", "/me", json={"fallback_allowed": True})
        mine = bob.add_key("openai", "sk-proj-kbtest-bobs-0123456789abcdefghijklmno")
        answer = servers.until(lambda: chat(world, token), lambda answer: answer.status_code == 200)
        assert answer.headers["x-keybearer-key-source"] == "user"
        bob.call("PATCH", f"/secrets/{mine['id']}", json={"is_active": False})
        answer = servers.until(lambda: chat(world, token), lambda answer: answer.status_code != 200)
        assert answer.json()["error"]["code"] == "key_inactive", "an own key that is off stops; nobody else pays"


def test_without_the_setting_the_systems_key_serves_nobody(world: World) -> None:
    world.admin.add_key("openai", SYSTEM_KEY, system=True)
    _, token = new_member(world)
    answer = chat(world, token)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "key_missing"
