"""Bad input through the API: a clear problem with a code and a hint, nothing lost, nothing repeated."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.support import server as servers
from tests.support.server import PASSWORD, Person

from keybearer.vault.secrets import TESTS

KEY = "sk-proj-kbtest-0123456789abcdefghijklmnopqrstuv"


@pytest.fixture(scope="module")
def ada(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with servers.running(tmp_path_factory.mktemp("api") / "data") as server:
        yield servers.set_up(server)


DRAFT = {"provider": "openai", "name": "kept", "value": KEY}
BAD_SECRETS: list[tuple[dict[str, Any], int, str]] = [
    ({"value": KEY + "\n" + KEY}, 422, "key_refused"),
    ({"value": KEY + "\x00"}, 422, "key_refused"),
    ({"value": "sk-admin-kbtest-0123456789abcdefghij"}, 422, "key_refused"),
    ({"value": "kbtest-not-the-usual-format"}, 422, "key_doubtful"),
    ({"value": ""}, 422, "invalid"),
    ({"value": "k" * 70_000}, 422, "invalid"),
    ({"name": "n" * 10_000}, 422, "invalid"),
    ({"name": ""}, 422, "invalid"),
    ({"name": "tab\there"}, 422, "invalid"),
    ({"name": "right\u202eleft"}, 422, "invalid"),
    ({"provider": "nobody"}, 404, "provider_unknown"),
    ({"provider": "../../etc"}, 404, "provider_unknown"),
    ({"secret_type": "mystery"}, 422, "invalid"),
    ({"expires_at": "2020-01-01T00:00:00Z"}, 422, "invalid"),
    ({"expires_at": "tomorrow"}, 422, "invalid"),
    ({"priority": -1}, 422, "invalid"),
    ({"expires": "2030-01-01T00:00:00Z"}, 422, "invalid"),
    ({"tags": ["t"] * 1000}, 422, "invalid"),
]


@pytest.mark.parametrize(("wrong", "status", "code"), BAD_SECRETS)
def test_a_wrong_secret_is_refused_with_a_hint(ada: Person, wrong: dict[str, Any], status: int, code: str) -> None:
    answer = ada.http.post("/api/v1/secrets", json=DRAFT | wrong)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["hint"]
    assert "kbtest" not in answer.text
    assert ada.call("GET", "/secrets")["items"] == []


def test_lone_surrogates_are_a_field_error(ada: Person) -> None:
    for field in ("name", "value", "description"):
        body = json.dumps(DRAFT | {"name": "surrogate", field: "a\ud800b"})  # escaped: Python's own decoder lets it pass
        answer = ada.http.post("/api/v1/secrets", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in {400, 422}, answer.text
        assert answer.json()["hint"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"provider": 1e999}'])
def test_what_is_no_object_is_a_problem(ada: Person, body: bytes) -> None:
    answer = ada.http.post("/api/v1/secrets", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["code"] in {"invalid", "invalid_json", "invalid_request"}
    assert answer.json()["hint"]


@pytest.mark.parametrize("name", ["Ångström", "ключ", "鍵", "🔑", "a" * 200, "İstanbul", "é" * 100])
def test_unicode_names_are_kept(ada: Person, name: str) -> None:
    made = ada.add_key("openai", KEY, name=name)
    assert ada.call("GET", f"/secrets/{made['id']}")["name"] == name
    answer = ada.http.post("/api/v1/secrets", json=DRAFT | {"name": name})
    assert answer.json()["code"] == "conflict"
    ada.call("DELETE", f"/secrets/{made['id']}")


def test_blank_keeps_and_masked_is_refused(ada: Person) -> None:
    made = ada.add_key("openai", KEY, name="masked")
    kept = ada.call("PATCH", f"/secrets/{made['id']}", json={"value": "", "description": "same key"})
    assert (kept["version"], kept["preview"]) == (made["version"], made["preview"])
    for masked in (made["preview"], "sk-p••••••••stuv", "****************"):
        answer = ada.http.patch(f"/api/v1/secrets/{made['id']}", json={"value": masked, "save_anyway": True})
        assert answer.status_code == 422, masked
    assert ada.call("GET", f"/secrets/{made['id']}")["version"] == made["version"]
    ada.call("DELETE", f"/secrets/{made['id']}")


@pytest.mark.parametrize("path", ["/nowhere", "/secrets/not-an-id", "/assets/nothing.css", "/%00", "/.env"])
@pytest.mark.parametrize("signed_in", [True, False])
def test_unknown_pages_are_pages(ada: Person, *, path: str, signed_in: bool) -> None:
    answer = ada.http.get(path) if signed_in else httpx2.get(f"{ada.server.url}{path}")
    if path.startswith("/secrets/") and not signed_in:
        assert answer.headers["location"] == "/sign-in", "whether there is such a secret is told to nobody else"
        return
    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "There is no such page." in answer.text
    assert 'href="/"' in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"


def test_a_page_called_by_a_wrong_method_says_so(ada: Person) -> None:
    answer = ada.http.get("/sign-out")
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_wrong_methods_and_paths_are_problems(ada: Person) -> None:
    for method, path, status in (("DELETE", "/secrets", 405), ("GET", "/nowhere", 404), ("PUT", "/tokens", 405)):
        answer = ada.http.request(method, f"/api/v1{path}")
        assert answer.status_code == status
        assert answer.json()["hint"]
    assert ada.http.get("/api/v1/secrets/not-a-uuid").status_code == 422
    assert ada.http.get("/api/v1/secrets?limit=0").status_code == 422
    assert ada.http.get("/api/v1/secrets?cursor=nonsense").status_code == 422


def test_two_credentials_are_refused(ada: Person) -> None:
    answer = ada.http.get("/api/v1/secrets", headers={"authorization": "Bearer kb_one", "x-api-key": "kb_two"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "credentials_conflict"


@pytest.mark.parametrize("origin", ["http://[", "http://[::::]:1", "null", "", "://", "http://", "\x80", "http://evil.example"])
def test_an_origin_that_is_not_ours_is_refused_whatever_it_holds(ada: Person, origin: str) -> None:
    headers = {b"origin": origin.encode("latin-1"), b"sec-fetch-site": b"same-origin"}
    answer = ada.http.post("/api/v1/auth/sign-in", json={"email": "ada@example.com", "password": "x"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf_failed")


def test_connections_are_tested_at_a_persons_pace_whatever_is_tested(ada: Person) -> None:
    """A stolen session or token tries no list of keys or hosts; another person's tests are not held up."""
    person = ada.call("POST", "/users", json={"email": "quick@example.com", "password": PASSWORD, "name": "Quick"})
    ada.call("POST", "/users", json={"email": "calm@example.com", "password": PASSWORD, "name": "Calm"})
    quick, calm = (servers.sign_in(ada.server, f"{name}@example.com") for name in ("quick", "calm"))
    mine = quick.call("POST", "/providers", json={"name": "mine", "base_url": "https://quick.invalid/v1", "api_key": KEY})
    (key,) = quick.call("GET", "/secrets?provider=mine")["items"]
    model = quick.call("POST", "/models", json={"provider": "mine", "name": "big"})
    program = servers.program(ada.server, quick.token("tries", ("secrets:use", "secrets:write", "models:write")))
    ways: list[tuple[str, Any]] = [
        ("/secrets/test", {"provider": "mine", "value": KEY}),
        (f"/secrets/{key['id']}/test", None),
        (f"/providers/{mine['id']}/test", None),
        ("/models/test", {"provider": "mine", "name": "other", "api_key": KEY}),
        (f"/models/{model['id']}/test", None),
    ]
    for number in range(TESTS.rate.burst):
        path, body = ways[number % len(ways)]
        assert (program if number % 2 else quick).call("POST", path, json=body)["status"] == "dns"
    for path, body in ways:
        answers = (
            quick.http.post(f"/api/v1{path}", json=body) for _ in range(3)
        )  # one may have become free: all this takes its time
        answer = next(answer for answer in answers if answer.status_code == 429)
        assert answer.json()["code"] == "rate_limited", path
        assert 0 < int(answer.headers["retry-after"]) <= TESTS.rate.seconds
    assert calm.call("POST", "/secrets/test", json={"provider": "mock", "value": KEY}, status=404)["code"] == "provider_unknown"
    refused = ada.call("GET", f"/audit?user_id={person['id']}&outcome=rate_limited")["items"]
    assert [row["action"] for row in refused] == ["secret.test"], "of many refusals the first"


def test_a_token_may_do_what_its_scopes_say_and_no_more(ada: Person) -> None:
    bare = servers.program(ada.server, ada.token("bare", ("gateway:use",)))
    tries = [
        ("GET", "/secrets", None), ("POST", "/secrets", DRAFT), ("POST", "/tokens", {"name": "more"}), ("GET", "/audit", None),
        ("GET", "/usage", None), ("POST", "/providers", {"name": "mine", "base_url": "https://api.example.com/v1"}),
        ("GET", "/users", None), ("POST", "/secrets/test", {"provider": "openai", "value": KEY}),
        ("POST", "/me/password", {"current_password": "x", "new_password": "kbtest-another-password"}),
    ]  # fmt: skip
    for method, path, body in tries:
        answer = bare.http.request(method, f"/api/v1{path}", json=body)
        assert answer.status_code == 403, f"{method} {path}: {answer.status_code}"
    minting = servers.program(ada.server, ada.token("minting", ("tokens:write", "secrets:use")))
    answer = minting.http.post("/api/v1/tokens", json={"name": "more", "scopes": ["secrets:write"]})
    assert answer.status_code == 403


def test_a_token_that_is_limited_to_models_gets_no_value_at_any_door(ada: Person) -> None:
    mine = ada.add_key("openai", KEY, name="fetchable", fetchable=True)
    token = ada.token("models", ("secrets:read",), allowed_models=["openai/gpt-5"])
    limited = servers.program(ada.server, token)
    for path, body in (
        ("/secrets/resolve", {"id": mine["id"]}),
        (f"/secrets/{mine['id']}/reveal", None),
        ("/export", {"format": "json"}),
    ):
        answer = limited.http.post(f"/api/v1{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "model_not_allowed"), path
        assert KEY not in answer.text
    ada.call("DELETE", f"/secrets/{mine['id']}")


def test_a_connection_test_is_a_use_and_keeps_to_the_tokens_and_the_secrets_limits(ada: Person) -> None:
    mine = ada.add_key("openai", KEY, name="limited", allowed_tokens=["aaaaaaaaaaaa"])
    scopes = ("secrets:use", "secrets:write")
    elsewhere = servers.program(ada.server, ada.token("elsewhere", scopes, allowed_providers=["anthropic"]))
    anywhere = servers.program(ada.server, ada.token("anywhere", scopes))
    for person, path, body, code in (
        (elsewhere, f"/secrets/{mine['id']}/test", None, "provider_not_allowed"),
        (elsewhere, "/secrets/test", {"provider": "openai", "value": KEY}, "provider_not_allowed"),
        (elsewhere, "/providers/openai/test", None, "provider_not_allowed"),
        (anywhere, f"/secrets/{mine['id']}/test", None, "forbidden"),
    ):
        answer = person.http.post(f"/api/v1{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, code), path
    ada.call("DELETE", f"/secrets/{mine['id']}")


def test_a_row_edited_by_other_hands_is_shown_beside_the_others(ada: Person) -> None:
    """SQLite lets anything into any column; what is shown of it must fit the answer, or nobody's list is one."""
    bad, good = (ada.add_key("openai", KEY, name=name)["id"] for name in ("bad", "good"))
    held = (
        "priority = 1.5",
        "version = 'x'",
        "secret_type = 'riddle'",
        "owner_kind = 'king'",
        "rotation_period = -3",
        "tags = '[1]'",
        "description = CAST(x'6b62ff' AS TEXT)",
        "preview = CAST(x'6b62ff' AS TEXT)",
        "state_reason = CAST(x'6b62ff' AS TEXT)",
    )
    for edit in (*held, "check_every = 99999", "usage_count = 'many'", "created_at = 'once'", "oauth = '{\"a\": 1}'"):
        with sqlite3.connect(ada.server.data_dir / "keybearer.db") as database:
            database.execute(f"UPDATE secret SET {edit} WHERE name = 'bad'")  # from the table above
        assert {each["id"] for each in ada.call("GET", "/secrets")["items"]} == {bad, good}, edit
        for page in ("/", f"/secrets/{bad}", f"/secrets/{good}"):
            assert ada.http.get(page).status_code == 200, (edit, page)
    assert ada.call("GET", f"/secrets/{bad}")["state"] == "unreadable"
    for made in (bad, good):
        ada.call("DELETE", f"/secrets/{made}")
