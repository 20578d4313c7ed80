"""Whoever is turned away, at the gateway or the API, stands in the access log with what they were after."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.support.server import Person, Server, program, running, set_up, sign_in


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("refusals") / "data") as server:
        yield server


def logged(ada: Person, action: str, count: int) -> list[dict[str, Any]]:
    """Records of an action, the oldest first, once there are so many: they are written within a second or two."""
    deadline = time.monotonic() + 10
    while True:
        found: list[dict[str, Any]] = ada.call("GET", f"/audit?action={action}&limit=100")["items"]
        if len(found) >= count:
            return found[::-1]
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_refusals_are_on_record(server: Server, tmp_path: Path) -> None:
    ada = set_up(server)
    token = ada.token("plain")
    revoked = ada.token("revoked")
    ada.call("DELETE", f"/tokens/{revoked[3:15]}")
    body = {"model": "openai/gpt-5-mini", "messages": [{"role": "user", "content": "hi"}]}
    said = {"x-keybearer-workflow": "nightly", "x-keybearer-node": "sum", "user-agent": "kbtest"}
    other_service = "sk-proj-kbtest-a-key-of-another-service-0123456789"
    statuses = []
    for sent in (other_service, revoked, token):
        answer = program(server, sent).http.post("/v1/chat/completions", json=body, headers=said)
        statuses.append(answer.status_code)
    assert statuses == [401, 401, 404]
    stranger, dead, keyless = logged(ada, "gateway.refuse", 3)
    assert (stranger["outcome"], stranger["token_id"], stranger["user_id"]) == ("token_invalid", None, None)
    assert (stranger["ip"], stranger["user_agent"], stranger["workflow"]) == ("127.0.0.1", "kbtest", "nightly")
    assert (dead["outcome"], dead["token_id"]) == ("token_invalid", revoked[3:15])
    assert (keyless["outcome"], keyless["token_id"], keyless["model"]) == ("key_missing", token[3:15], "gpt-5-mini")
    assert keyless["provider"] == "openai"
    assert keyless["user_id"] == ada.call("GET", "/me")["user"]["id"]
    # At the API: a foreign secret, no scope, nobody at all.
    server.cli("user", "create", "--email", "ben@example.com", "--password-stdin", stdin="kbtest-password-correct-horse\n")
    ben = sign_in(server, "ben@example.com")
    secret = ada.add_key("openai", "sk-proj-kbtest-0123456789abcdefghijklmnopqrst")
    ben.call("GET", f"/secrets/{secret['id']}", status=404)
    ben.call("GET", f"/secrets/{uuid4()}", status=404)
    program(server, token).call("GET", "/secrets", status=403)
    program(server, other_service).call("GET", "/secrets", status=401)
    foreign, guessed = logged(ada, "secret.read", 2)[:2]
    assert (foreign["secret_id"], foreign["outcome"], foreign["user_id"]) == (secret["id"], "not_found", guessed["user_id"])
    assert foreign["user_id"] == ben.call("GET", "/me")["user"]["id"]
    found = {row["outcome"]: row for row in logged(ada, "api.refuse", 2)}
    assert found["scope_missing"]["token_id"] == token[3:15]
    assert found["scope_missing"]["detail"]["route"].startswith("GET /")
    assert found["token_invalid"]["user_id"] is None
    # Ben sees his own attempts and nobody else's; a value that was sent where a token belongs stands nowhere.
    assert {row["user_id"] for row in ben.call("GET", "/audit?limit=100")["items"]} <= {foreign["user_id"], None}
    # In the console too, by what is asked for.
    page = ada.http.get("/access-log?action=gateway.refuse&outcome=key_missing").text
    assert (page.count("key_missing</span>"), "token_invalid</span>" in page) == (1, False)
    assert "No record matches." in ada.http.get("/access-log?workflow=kbtest-none").text
    everything = ada.http.get("/api/v1/audit/export").text
    assert "gateway.refuse" in everything
    assert other_service not in everything
    assert other_service.encode() not in (server.data_dir / "keybearer.db").read_bytes()


def test_a_flood_of_refusals_is_counted(server: Server) -> None:
    with program(server, "kb_nothing").http as flood:
        for _ in range(200):
            assert flood.get("/v1/models").status_code == 401
    ada = sign_in(server, "ada@example.com")
    time.sleep(2.5)
    assert len(ada.call("GET", "/audit?action=gateway.refuse&limit=200")["items"]) <= 20
    server.stop()  # the count of the minute under way is told at the end
    rows = server.cli("audit", "export", "--format", "jsonl").stdout
    assert '"more":"1' in rows
