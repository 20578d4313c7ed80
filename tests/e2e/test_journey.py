"""The one thing the project exists for, from the first key to its revocation."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator

import httpx2
import pytest
from tests.e2e.conftest import KEYS, World
from tests.support import server as servers

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


def chat(world: World, token: str, **more: object) -> httpx2.Response:
    """One chat completion through the gateway."""
    headers = {"authorization": f"Bearer {token}"}
    return httpx2.post(f"{world.server.url}/v1/chat/completions", json={**CHAT, **more}, headers=headers, timeout=30)


def seconds_until_refused(world: World, token: str, code: str) -> float:
    """Call until the gateway refuses with `code`; the time of the last success since the change."""
    began = last = time.monotonic()
    while True:
        answer = chat(world, token)
        if answer.status_code != 200:
            assert code in answer.text
            return last - began
        last = time.monotonic()
        assert last - began < 10


def test_a_key_is_stored_borne_recorded_and_revoked(world: World) -> None:
    person = world.admin
    token = person.token("story")
    secret = next(row for row in person.call("GET", "/secrets?provider=openai")["items"])
    assert KEYS["openai"] not in str(secret)
    assert secret["has_api_key"]
    world.provider.forget()

    answer = chat(world, token)
    assert answer.status_code == 200
    assert answer.headers["x-keybearer-secret-id"] == secret["id"]
    (seen,) = world.provider.requests()
    assert seen["headers"]["authorization"] == f"Bearer {KEYS['openai']}"

    person.call("PATCH", f"/secrets/{secret['id']}", json={"is_active": False})
    assert seconds_until_refused(world, token, "key_inactive") < 1.0
    person.call("PATCH", f"/secrets/{secret['id']}", json={"is_active": True})
    wait_until_served(world, token)

    token_id = token.split("_")[1]
    person.call("DELETE", f"/tokens/{token_id}")
    assert seconds_until_refused(world, token, "token_invalid") < 1.0

    # Uses come into the log by way of the journal, after so many calls not at once.
    log = servers.until(
        lambda: person.http.get(f"/api/v1/secrets/{secret['id']}/access-log?limit=200"),
        lambda found: any(row["action"] == "secret.use" for row in found.json()["items"]),
        servers.SHIPPED_WITHIN,
    ).json()["items"]
    actions = {(row["action"], row["operation"]) for row in log}
    assert {("secret.use", "chat.completions"), ("secret.update", "")} <= actions
    assert all("kbtest" not in str(row) for row in log)


def wait_until_served(world: World, token: str) -> None:
    deadline = time.monotonic() + 5
    while chat(world, token).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_expired_key_is_not_used(world: World) -> None:
    person = world.admin
    token = person.token("expiry")
    secret = next(row for row in person.call("GET", "/secrets?provider=openai")["items"])
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    person.call("PATCH", f"/secrets/{secret['id']}", json={"expires_at": soon})
    wait_until_served(world, token)
    time.sleep(3.1)
    answer = chat(world, token)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "key_expired"
    person.call("PATCH", f"/secrets/{secret['id']}", json={"expires_at": None})
    wait_until_served(world, token)


def test_a_client_that_leaves_ends_the_upstream_call(world: World) -> None:
    headers = {"authorization": f"Bearer {world.token}"}
    body = {**CHAT, "model": "openai/mock-chunks-500-pace-20ms", "stream": True}
    with (
        httpx2.Client(base_url=world.server.url, timeout=30) as client,
        client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer,
    ):
        request_id = answer.headers["x-keybearer-request-id"]
        next(answer.iter_raw())
    deadline = time.monotonic() + servers.SHIPPED_WITHIN
    while time.monotonic() < deadline:
        rows = [row for row in world.admin.call("GET", "/usage?limit=50")["items"] if row["request_id"] == request_id]
        if rows and rows[0]["outcome"] != "unknown":
            assert rows[0]["outcome"] == "aborted"
            assert rows[0]["duration_ms"] < 5000
            return
        time.sleep(0.05)
    pytest.fail("the abandoned call did not end")


def test_a_providers_connection_test_is_a_use_on_record(world: World) -> None:
    person = world.admin
    secret = next(row for row in person.call("GET", "/secrets?provider=openai")["items"])
    assert person.call("POST", "/providers/openai/test")["status"] == "ok"
    newest = person.call("GET", f"/secrets/{secret['id']}/access-log?limit=1")["items"][0]
    assert (newest["action"], newest["subject"], newest["provider"]) == ("secret.test", secret["id"], "openai")


def test_the_audit_trail_verifies_and_tampering_is_found(world: World) -> None:
    request_id = chat(world, world.token).headers["x-keybearer-request-id"]
    deadline = time.monotonic() + servers.SHIPPED_WITHIN
    while not world.admin.call("GET", f"/audit?request_id={request_id}")["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert '"ok": true' in world.server.cli("audit", "verify", "--json").stdout
    for forged, readable in (("replace(line, 'gpt-4o-mini', 'gpt-4o')", True), ("substr(line, 2)", False)):
        with edited_line(world, request_id, forged):
            done = world.server.cli("audit", "verify", "--json", check=False)
            assert done.returncode == 1
            assert '"ok": false' in done.stdout
            assert "error: " in done.stderr
            (row,) = world.admin.call("GET", f"/audit?request_id={request_id}")["items"]
            assert (row["action"], bool(row["model"])) == ("secret.use", readable)
    assert '"ok": true' in world.server.cli("audit", "verify", "--json").stdout


@contextlib.contextmanager
def edited_line(world: World, request_id: str, expression: str) -> Iterator[None]:
    """The use's line as somebody with the database file changed it; put back afterwards."""
    chosen = "where request_id = ? and kind = 'use'"
    with contextlib.closing(sqlite3.connect(world.server.data_dir / "keybearer.db", timeout=10, isolation_level=None)) as db:
        ((kept,),) = db.execute(f"select line from audit_record {chosen}", (request_id,))
        db.execute(f"update audit_record set line = {expression} {chosen}", (request_id,))
        try:
            yield
        finally:
            db.execute(f"update audit_record set line = ? {chosen}", (kept, request_id))


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "code"),
    [
        ("/v1/chat/completions", {}, b"{", 400, "invalid_json"),
        ("/v1/chat/completions", {}, b'{"model": 7}', 400, "invalid"),
        ("/v1/chat/completions", {}, b'{"model": "gpt-4o-mini\\ud800"}', 400, "invalid"),
        ("/v1/chat/completions", {"content-type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ("/v1/chat/completions", {"x-api-key": "kb_other"}, b"{}", 400, "credentials_conflict"),
        ("/v1/nothing/here", {}, b"{}", 404, "route_unknown"),
    ],
)
def test_bad_input_is_told_in_the_dialects_shape(
    world: World, path: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    sent = {"authorization": f"Bearer {world.token}", "content-type": "application/json"} | headers
    answer = httpx2.post(f"{world.server.url}{path}", content=body, headers=sent)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"].startswith(code)
    assert error["message"]


def test_wrong_method(world: World) -> None:
    answer = httpx2.get(f"{world.server.url}/v1/chat/completions", headers={"authorization": f"Bearer {world.token}"})
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
