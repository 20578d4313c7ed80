"""A secret's life as an application sees it over HTTP, on both databases: rotated, refused, rolled back, deleted, restored, purged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person

GOOD = "sk-proj-kbtest-good-0123456789abcdefghijklmno"
NEWER = "sk-proj-kbtest-newer-zyxwvutsrqponmlkjihgfedc"
REVOKED = "sk-proj-kbtest_revoked_0123456789abcdefghijkl"
"""Of a form that the mock provider does not know."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = {"egress_allow": "127.0.0.1", "versions_kept": "3"}
    if request.param == "postgresql":
        url, direct = request.getfixturevalue("postgresql_urls")
        settings |= {"database_url": url, "database_direct_url": direct}
    with servers.running(tmp_path_factory.mktemp("life") / "data", **settings) as server:
        yield settle(server, provider)


@pytest.fixture(scope="module")
def bob(world: World) -> Person:
    """Somebody with no keys yet."""
    world.admin.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD, "name": "Bob"})
    return servers.sign_in(world.server, "bob@example.com")


@pytest.fixture
def program(world: World, bob: Person) -> Iterator[str]:
    """A token of Bob's; his secrets are gone afterwards."""
    yield bob.token("program")
    for query in ("", "?state=deleted"):
        for item in bob.call("GET", f"/secrets{query}")["items"]:
            bob.call("POST", f"/secrets/{item['id']}/purge")


def chat(world: World, token: str, model: str = "gpt-4o-mini") -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.post(f"{world.server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


def called_with(world: World, token: str) -> str:
    """The key that the provider was sent."""
    world.provider.forget()
    assert chat(world, token).status_code == 200
    return str(world.provider.requests()[-1]["headers"]["authorization"].removeprefix("Bearer "))


def until_called_with(world: World, token: str, key: str) -> None:
    deadline = time.monotonic() + 5
    while True:
        world.provider.forget()
        chat(world, token)
        sent = {request["headers"].get("authorization", "").removeprefix("Bearer ") for request in world.provider.requests()}
        if key in sent:
            return
        assert time.monotonic() < deadline, sent
        time.sleep(0.05)


def until_state(person: Person, secret: dict[str, Any], state: str) -> dict[str, Any]:
    answer = servers.until(
        lambda: person.http.get(f"/api/v1/secrets/{secret['id']}"), lambda answer: bool(answer.json()["state"] == state)
    )
    return dict(answer.json())


def log_of(person: Person, secret: dict[str, Any], action: str) -> list[dict[str, Any]]:
    items = person.call("GET", f"/secrets/{secret['id']}/access-log?limit=200")["items"]
    return [row for row in items if row["action"] == action]


def test_a_refused_key_is_tested_marked_and_mended(world: World, bob: Person, program: str) -> None:
    secret = bob.add_key("openai", REVOKED)
    assert chat(world, program).status_code == 401
    failed = until_state(bob, secret, "failed")
    assert "Refused in use (401)" in failed["state_reason"]
    assert REVOKED not in failed["state_reason"]
    stopped = servers.until(lambda: chat(world, program), lambda answer: answer.status_code == 403)
    assert stopped.json()["error"]["code"] == "key_failed"
    assert f"/secrets/{secret['id']}" in stopped.text
    assert [item["id"] for item in bob.call("GET", "/secrets?state=failed")["items"]] == [secret["id"]]
    assert len(log_of(bob, secret, "secret.test")) == 1
    # A new value is another key.
    mended = bob.call("PATCH", f"/secrets/{secret['id']}", json={"value": GOOD})
    assert (mended["state"], mended["state_reason"], mended["version"]) == ("active", "", 2)
    until_called_with(world, program, GOOD)


def test_a_refusal_that_is_not_about_the_key_marks_nothing(world: World, bob: Person, program: str) -> None:
    secret = bob.add_key("openai", GOOD)
    for model in ("openai/mock-401", "openai/mock-403", "openai/mock-401"):
        assert chat(world, program, model).status_code in {401, 403}
    deadline = time.monotonic() + 5
    while not log_of(bob, secret, "secret.test"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    assert bob.call("GET", f"/secrets/{secret['id']}")["state"] == "active"
    assert len(log_of(bob, secret, "secret.test")) == 1  # once a key and minute
    assert chat(world, program).status_code == 200


def test_a_rotation_falls_back_where_the_new_value_is_refused(world: World, bob: Person, program: str) -> None:
    secret = bob.add_key("openai", GOOD)
    assert called_with(world, program) == GOOD
    path = f"/secrets/{secret['id']}"
    rotated = bob.call("POST", f"{path}/rotate", json={"value": REVOKED, "overlap_seconds": 600, "save_anyway": True})
    assert (rotated["version"], rotated["fallback_version"], rotated["state"]) == (2, 1, "active")
    until_called_with(world, program, REVOKED)
    until_state(bob, secret, "failed")
    until_called_with(world, program, GOOD)
    assert chat(world, program).status_code == 200
    states = {version["version"]: version["state"] for version in bob.call("GET", f"{path}/versions")["items"]}
    assert states == {1: "fallback", 2: "current"}
    back = bob.call("POST", f"{path}/rollback")
    assert (back["version"], back["preview"], back["fallback_version"], back["state"]) == (3, secret["preview"], None, "active")
    until_called_with(world, program, GOOD)
    used = servers.until(lambda: bob.http.get(f"/api/v1{path}/usage"), lambda answer: bool(answer.json()["items"]))
    assert {row["secret_id"] for row in used.json()["items"]} == {secret["id"]}
    actions = {row["action"] for row in bob.call("GET", f"{path}/access-log")["items"]}
    assert {"secret.rotate", "secret.failed", "secret.rollback", "secret.use"} <= actions
    for version, status in ((3, 422), (77, 404), (0, 422), ("x", 422)):
        bob.call("POST", f"{path}/rollback", json={"version": version}, status=status)
    wrong: list[dict[str, Any]] = [
        {},
        {"value": ""},
        {"value": GOOD, "overlap_seconds": -1},
        {"value": GOOD, "overlap_seconds": 1e9},
    ]
    for body in wrong:
        bob.call("POST", f"{path}/rotate", json=body, status=422)


def test_deleting_restoring_and_purging(world: World, bob: Person, program: str) -> None:
    secret = bob.add_key("openai", GOOD, name="work", tags=["a"])
    path = f"/secrets/{secret['id']}"
    assert chat(world, program).status_code == 200
    bob.call("DELETE", path, status=204)
    gone = servers.until(lambda: chat(world, program), lambda answer: answer.status_code == 404)
    assert gone.json()["error"]["code"] == "key_missing"
    bob.call("GET", path, status=404)
    assert bob.call("GET", "/secrets")["items"] == []
    (item,) = bob.call("GET", "/secrets?state=deleted&name=work")["items"]
    assert (item["name"], item["state"]) == ("work", "deleted")
    deleted_at, purged_at = (datetime.fromisoformat(item[name]) for name in ("deleted_at", "purged_at"))
    assert purged_at - deleted_at == timedelta(days=7)
    other = bob.add_key("openai", NEWER, name="work")  # the name is free
    assert "under another name" in bob.call("POST", f"{path}/restore", status=409)["hint"]
    restored = bob.call("POST", f"{path}/restore", json={"name": "work again"})
    assert (restored["name"], restored["state"], restored["tags"], restored["deleted_at"]) == (
        "work again",
        "active",
        ["a"],
        None,
    )
    bob.call("POST", f"/secrets/{other['id']}/purge", status=204)
    until_called_with(world, program, GOOD)
    bob.call("DELETE", path)
    bob.call("POST", f"{path}/purge", status=204)
    for method, rest in (("POST", "/restore"), ("POST", "/purge"), ("GET", "")):
        bob.call(method, f"{path}{rest}", status=404)
    actions = [row["action"] for row in bob.call("GET", f"/audit?secret_id={secret['id']}&limit=200")["items"]]
    assert {"secret.create", "secret.delete", "secret.restore", "secret.purge"} <= set(actions)


def test_expiring_expired_and_never_again(world: World, bob: Person, program: str) -> None:
    now = datetime.now(UTC)
    secret = bob.add_key("openai", GOOD, expires_at=(now + timedelta(days=3)).isoformat())
    path = f"/secrets/{secret['id']}"
    assert secret["state"] == "expiring"
    assert bob.call("PATCH", path, json={"expires_at": None})["state"] == "active"
    aged = bob.call("PATCH", path, json={"rotation_period": 10})
    assert (aged["state"], aged["rotation_period"]) == ("expiring", 10)
    assert timedelta(days=9) < datetime.fromisoformat(aged["rotate_at"]) - now < timedelta(days=11)
    assert bob.call("PATCH", path, json={"rotation_period": 90})["state"] == "active"
    assert bob.call("PATCH", path, json={"rotation_period": None})["rotate_at"] is None
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    assert bob.call("PATCH", path, json={"expires_at": soon})["state"] == "expiring"
    until_state(bob, secret, "expired")
    assert chat(world, program).json()["error"]["code"] == "key_expired"
    off = bob.add_key("openai", NEWER, name="off", is_active=False)
    states = ("active", "inactive", "expiring", "expired", "failed", "unreadable", "deleted")
    found = {state: [item["id"] for item in bob.call("GET", f"/secrets?state={state}")["items"]] for state in states}
    assert {state: ids for state, ids in found.items() if ids} == {"expired": [secret["id"]], "inactive": [off["id"]]}
    bob.call("GET", "/secrets?state=ok", status=422)
    wrong: list[dict[str, Any]] = [{"expires_at": "2020-01-01T00:00:00Z"}, {"rotation_period": 0}, {"rotation_period": 4000}]
    for body in wrong:
        bob.call("PATCH", path, json=body, status=422)


def test_an_oauth_tokens_parts_are_sealed_kept_and_never_shown(world: World, bob: Person, program: str) -> None:
    parts = {
        "client_id": "kbtest-client-0123456789abcdef",
        "client_secret": "kbtest-client-secret-0123456789",
        "refresh_token": "kbtest-refresh-0123456789abcdef",
        "token_endpoint": "https://oauth.example.com/token?tenant=kbtest-tenant",
        "scopes": ["read", "https://www.example.com/auth/drive"],
    }
    secret = bob.add_key("calendar", "kbtest-access-0123456789abcdef", secret_type="oauth_token", oauth=parts)
    path = f"/secrets/{secret['id']}"
    assert secret["oauth"] == {
        "client_id": "kbte…cdef",
        "client_secret": "kbte…6789",
        "refresh_token": "kbte…cdef",
        "token_endpoint": "https://oauth.example.com",
        "scopes": "2",
    }
    kept = bob.call("PATCH", path, json={"oauth": {"client_id": "", "refresh_token": "kbtest-rotated-9876543210zyxw"}})
    assert (kept["version"], kept["oauth"]["client_id"], kept["oauth"]["refresh_token"]) == (2, "kbte…cdef", "kbte…zyxw")
    assert kept["preview"] == secret["preview"]
    fewer = bob.call("PATCH", path, json={"oauth": {"client_secret": None, "scopes": None}})
    assert set(fewer["oauth"]) == {"client_id", "refresh_token", "token_endpoint"}
    assert bob.call("POST", f"{path}/rotate", json={"value": "kbtest-access-9876543210zyxw"})["oauth"] == fewer["oauth"]
    assert bob.call("POST", f"{path}/rollback", json={"version": 2})["oauth"] == kept["oauth"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"refresh_token": kept["oauth"]["refresh_token"]}, "key_refused"),
        ({"client_secret": "••••••••"}, "key_refused"),
        ({"token_endpoint": "http://oauth.example.com/token"}, "invalid"),
        ({"token_endpoint": "https://user:kbtest@oauth.example.com/"}, "invalid"),
        ({"token_endpoint": "https://["}, "invalid"),
        ({"client_id": "a\x00b"}, "invalid"),
        ({"client_id": "k" * 20_000}, "invalid"),
        ({"scopes": ['a"b']}, "invalid"),
        ({"scopes": ["s"] * 101}, "invalid"),
        ({"password": "kbtest"}, "invalid"),
    ]
    for oauth, code in wrong:
        problem = bob.call("PATCH", path, json={"oauth": oauth}, status=422)
        assert problem["code"] == code, oauth
        assert "kbtest" not in str(problem)
    assert bob.call("GET", path)["version"] == 5
    key = bob.add_key("openai", GOOD)
    bob.call("PATCH", f"/secrets/{key['id']}", json={"oauth": {"client_id": "x"}}, status=422)


def test_a_value_is_revealed_only_where_its_owner_allows_it(world: World, bob: Person, program: str) -> None:
    secret = bob.add_key("openai", GOOD)
    path = f"/secrets/{secret['id']}"
    reader = servers.program(world.server, bob.token("reader", ("secrets:read",)))
    user = servers.program(world.server, bob.token("user", ("secrets:use", "secrets:write")))
    elsewhere = servers.program(world.server, bob.token("elsewhere", ("secrets:read",), allowed_providers=["anthropic"]))
    for person, code in ((bob, "not_fetchable"), (reader, "not_fetchable"), (user, "scope_missing")):
        assert person.call("POST", f"{path}/reveal", status=403)["code"] == code
    bob.call("PATCH", path, json={"fetchable": True})
    for person in (bob, reader):
        shown = person.call("POST", f"{path}/reveal")
        assert shown == {"id": secret["id"], "provider": "openai", "name": "default", "version": 1, "value": GOOD}
    assert elsewhere.call("POST", f"{path}/reveal", status=403)["code"] == "provider_not_allowed"
    assert world.admin.call("POST", f"{path}/reveal", status=404)["code"] == "not_found"
    bob.call("PATCH", path, json={"is_active": False})
    assert reader.call("POST", f"{path}/reveal", status=403)["code"] == "key_inactive"
    log = log_of(bob, secret, "secret.reveal")
    expected = ["not_fetchable", "not_fetchable", "scope_missing", "ok", "ok", "provider_not_allowed", "key_inactive"]
    assert sorted(row["outcome"] for row in log) == sorted(expected)
    assert all(GOOD not in str(row) for row in log)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://kb:kbtest%20p@db.example.com:5432/x?sslmode=require", "postgresql://db.example.com"),
        ("mysql://kb:kbtest'\"`$(x)@db.example.com/ü", "mysql://db.example.com"),
        ("postgresql://kb:kbtest@@/#?@db.example.com/x", "postgresql://…"),
        ("mongodb+srv://kb:kbtest@[2001:db8::1]/x", "mongodb+srv://[2001:db8::1]"),
        ("Server=tcp:db.example.com;Password=kbtest;", ""),
    ],
)
def test_connection_strings_with_odd_characters(world: World, bob: Person, program: str, text: str, shown: str) -> None:
    secret = bob.add_key("warehouse", text, name="dsn", secret_type="connection_string", fetchable=True)
    assert secret["preview"] == shown
    assert bob.call("POST", f"/secrets/{secret['id']}/reveal")["value"] == text
    if shown:
        bob.call("PATCH", f"/secrets/{secret['id']}", json={"value": shown}, status=422)
    for odd in ("\x00", "\n", "\u202e"):
        problem = bob.call("PATCH", f"/secrets/{secret['id']}", json={"value": f"{text}{odd}x"}, status=422)
        assert problem["code"] == "key_refused"


def test_pages_stay_right_while_rows_change(world: World, bob: Person, program: str) -> None:
    """What was there throughout is listed once, whatever is renamed, used, added or deleted meanwhile."""
    made = [bob.add_key("openai", f"{GOOD}{number}", name=f"key {number}") for number in range(9)]
    first = bob.call("GET", "/secrets?limit=3")
    seen = [item["id"] for item in first["items"]]
    bob.call("PATCH", f"/secrets/{made[0]['id']}", json={"name": "zzz"})
    bob.call("PATCH", f"/secrets/{made[7]['id']}", json={"name": "aaa", "priority": 0})
    bob.call("DELETE", f"/secrets/{seen[-1]}")  # where the page ended
    bob.call("DELETE", f"/secrets/{made[4]['id']}")
    late = bob.add_key("openai", NEWER, name="a late one")
    cursor = first["next_cursor"]
    while cursor:
        page = bob.call("GET", f"/secrets?limit=3&cursor={cursor}")
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [item["id"] for item in (*made[:4], *made[5:], late)]
