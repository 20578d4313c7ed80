"""Somebody who has an account, a narrow token or nothing at all, and tries what they should not be able to do."""

from __future__ import annotations

import sqlite3
import time

import httpx2
from tests.e2e.conftest import KEYS, World

MISPLACED = "sk-proj-kbtest-misplaced-0123456789abcdefghijklmn"


def problem(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_nobody_without_an_account_makes_the_server_decode_much(world: World) -> None:
    """Half a gigabyte of lists was made of 16 MB before anybody asked who sent them, and all streams stood still."""
    body = b'{"a":[' + b"[]," * 300_000 + b"[]]}"
    answer = httpx2.post(f"{world.server.url}/api/v1/secrets", content=body, headers={"content-type": "application/json"})
    assert problem(answer) == (413, "too_large")


def test_a_token_reads_no_log_and_no_usage_without_their_scopes(world: World) -> None:
    (secret, *_) = world.admin.call("GET", "/secrets")["items"]
    headers = {"authorization": f"Bearer {world.admin.token('narrow', ('secrets:use',))}"}
    secret_path = f"{world.server.url}/api/v1/secrets/{secret['id']}"
    assert httpx2.get(secret_path, headers=headers).status_code == 200
    for part in ("access-log", "usage"):
        assert problem(httpx2.get(f"{secret_path}/{part}", headers=headers)) == (403, "scope_missing")


def test_a_key_in_place_of_a_name_is_not_recorded(world: World) -> None:
    for method, path, status in (
        ("PUT", f"/providers/{MISPLACED}", 404),
        ("DELETE", f"/providers/{MISPLACED}", 404),
        ("DELETE", f"/providers/models/{MISPLACED}", 422),
    ):
        answer = world.admin.http.request(method, f"/api/v1{path}", json={"display_name": "x"} if method == "PUT" else None)
        assert (answer.status_code, "kbtest-misplaced" in answer.text) == (status, False)
    log = world.admin.http.get("/api/v1/audit")
    assert "provider.update" in log.text
    assert "kbtest-misplaced" not in log.text


def test_no_key_goes_in_a_header_that_frames_the_request(world: World) -> None:
    for header in ("Host", "transfer-encoding", "Content-Length", "connection", "X-HTTP-Method-Override"):
        new = {"name": "odd", "base_url": "https://llm.example", "auth_style": "header", "auth_header": header}
        answer = world.admin.http.post("/api/v1/providers", json=new)
        assert problem(answer) == (422, "invalid"), header
        assert answer.json()["fields"][0]["field"] == "auth_header"


def test_a_frozen_deployment_sends_no_key_to_be_tested_either(world: World) -> None:
    (secret,) = (secret for secret in world.admin.call("GET", "/secrets")["items"] if secret["provider"] == "openai")
    freeze(world, "2026-01-01T00:00:00.000000+00:00")
    try:
        world.provider.forget()
        for path, body in (
            (f"/secrets/{secret['id']}/test", None),
            ("/providers/openai/test", None),
            ("/secrets/test", {"provider": "openai", "value": KEYS["openai"]}),
        ):
            assert problem(world.admin.http.post(f"/api/v1{path}", json=body)) == (503, "frozen"), path
        assert world.provider.requests() == []
    finally:
        freeze(world, None)


def freeze(world: World, at: str | None) -> None:
    """As an operator would, and wait until every cache has heard of it."""
    with sqlite3.connect(world.server.data_dir / "keybearer.db") as database:
        database.execute("UPDATE deployment SET frozen_at = ?", (at,))
        now = "2026-01-01T00:00:00.000000+00:00"
        database.execute("INSERT INTO change (subject, subject_id, user_id, at) VALUES ('deployment', '', NULL, ?)", (now,))
    database.close()
    time.sleep(1)
