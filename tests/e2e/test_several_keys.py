"""Several keys for one provider, as a person sees them: who serves, who rests and why, in API, console and command line."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD

OTHER = "sk-proj-kbtest-other-0123456789abcdefghijklmnopq"
HELLO = [{"role": "user", "content": "Hello"}]


def chat(world: World, model: str) -> httpx2.Response:
    with httpx2.Client(base_url=world.server.url, headers={"authorization": f"Bearer {world.token}"}, timeout=30) as http:
        return http.post("/v1/chat/completions", json={"model": model, "messages": HELLO})


def test_keys_that_rest_are_shown_with_the_reason(world: World) -> None:
    ada = world.admin
    first = next(row for row in ada.call("GET", "/secrets")["items"] if row["provider"] == "openai")
    second = ada.add_key("openai", OTHER, name="other", priority=first["priority"] + 1)
    assert second["health"] == {"state": "ok", "until": None, "reason": "", "last_status": None}
    assert chat(world, "openai/gpt-4o-mini").headers["x-keybearer-secret-id"] == first["id"]
    limited = chat(world, "openai/mock-429-retry-90s-seconds")
    assert (limited.status_code, limited.json()["error"]["code"]) == (429, "rate_limited")
    assert 85 <= int(limited.headers["retry-after"]) <= 90
    for secret in (first, second):
        health = ada.call("GET", f"/secrets/{secret['id']}")["health"]
        assert (health["state"], health["last_status"]) == ("cooling", 429)
        assert health["reason"] == "The provider answered 429 (asked too often) for the model mock-429-retry-90s-seconds."
        assert 80 <= (datetime.fromisoformat(health["until"]) - datetime.now(UTC)).total_seconds() <= 91
        page = ada.http.get(f"/secrets/{secret['id']}").text
        assert "cooling down" in page
        assert "mock-429-retry-90s-seconds" in page
    assert ada.http.get("/").text.count("cooling down") == 2
    assert chat(world, "openai/gpt-4o-mini").status_code == 200  # a provider's limits go by model
    listed = on_the_command_line(world, "list", "--provider", "openai")
    assert listed.count("cooling until 20") == 2
    assert json.loads(on_the_command_line(world, "show", second["id"]))["health"]["state"] == "cooling"
    rotated = ada.call("POST", f"/secrets/{first['id']}/rotate", json={"value": f"{OTHER}r", "save_anyway": True})
    assert rotated["health"]["state"] == "ok"  # another value is another key


def on_the_command_line(world: World, *arguments: str) -> str:
    environment = servers.environment(
        world.server.data_dir, url=world.server.url, token=world.admin.token("shell", ("secrets:use",))
    )
    return subprocess.run(
        [sys.executable, "-m", "keybearer", "secret", *arguments],
        env=environment | {"COLUMNS": "400"}, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_the_systems_openrouter_key_serves_who_has_none(provider: Provider, data_dir: Path) -> None:
    with servers.running(data_dir, egress_allow="127.0.0.1", fallback="openrouter") as server:
        world = settle(server, provider)
        world.admin.add_key("openrouter", "sk-or-v1-kbtest-0123456789abcdef", system=True)
        world.admin.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD, "name": "Bob"})
        bob = servers.sign_in(server, "bob@example.com")
        assert chat(world, "openai/gpt-4o-mini").headers["x-keybearer-key-source"] == "user"
        world.token = bob.token()
        answer = chat(world, "openai/gpt-4o-mini")
        assert (answer.status_code, answer.headers["x-keybearer-key-source"]) == (200, "openrouter")
        assert chat(world, "openai/gpt-3.5-turbo").json()["error"]["code"] == "key_missing"  # not listed
        bob.call("PATCH", "/me", json={"fallback_allowed": False})
        stopped = servers.until(lambda: chat(world, "openai/gpt-4o-mini"), lambda found: found.status_code != 200)
        assert stopped.json()["error"]["code"] == "key_missing"
