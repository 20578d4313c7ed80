"""Two users, two workers, PostgreSQL: neither sees, uses, guesses or infers the other's secret."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from uuid import uuid4

import httpx2
import pytest
from tests.e2e.conftest import World, settle
from tests.support import server as servers
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
HERS = "sk-proj-kbtest-hers-0123456789abcdefghijklmno"


@pytest.fixture(scope="module")
def workers(provider: Provider, tmp_path_factory: pytest.TempPathFactory, postgresql_urls: tuple[str, str]) -> Iterator[World]:
    url, direct = postgresql_urls
    data_dir = tmp_path_factory.mktemp("workers") / "data"
    with servers.running(
        data_dir, "--workers", "2", egress_allow="127.0.0.1", database_url=url, database_direct_url=direct
    ) as server:
        yield settle(server, provider)


@pytest.fixture(scope="module")
def bob(workers: World) -> Person:
    workers.admin.call("POST", "/users", json={"email": "bob@example.com", "password": PASSWORD, "name": "Bob"})
    return servers.sign_in(workers.server, "bob@example.com")


def masked(answer: httpx2.Response) -> tuple[int, str]:
    """An answer without what differs between any two requests."""
    return answer.status_code, re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|req_\w+", "…", answer.text)


METHODS = [
    ("GET", "", None),
    ("PATCH", "", {"name": "mine"}),
    ("PATCH", "", {"value": "sk-kbtest-overwritten-0123456789"}),
    ("DELETE", "", None),
    ("POST", "/test", None),
    ("GET", "/access-log", None),
    ("GET", "/usage", None),
    ("GET", "/versions", None),
]


def test_foreign_ids_answer_as_unknown_ones(workers: World, bob: Person) -> None:
    hers = workers.admin.add_key("openai", HERS, name="hers")
    for method, path, body in METHODS:
        foreign = bob.http.request(method, f"/api/v1/secrets/{hers['id']}{path}", json=body)
        unknown = bob.http.request(method, f"/api/v1/secrets/{uuid4()}{path}", json=body)
        assert masked(foreign) == masked(unknown)
        assert foreign.status_code in {404, 405}
    assert bob.call("GET", "/secrets")["items"] == []
    assert workers.admin.call("GET", f"/secrets/{hers['id']}")["name"] == "hers"


def test_foreign_tokens_and_records_do_not_exist(workers: World, bob: Person) -> None:
    token_id = workers.token.split("_")[1]
    for method, body in (("GET", None), ("PATCH", {"is_active": False}), ("DELETE", None)):
        answer = bob.http.request(method, f"/api/v1/tokens/{token_id}", json=body)
        unknown = bob.http.request(method, "/api/v1/tokens/aaaaaaaaaaaa", json=body)
        assert masked(answer) == masked(unknown)
        assert answer.status_code == 404
    assert bob.call("GET", "/tokens")["items"] == []
    assert bob.call("GET", "/usage")["items"] == []
    ada = workers.admin.call("GET", "/me")["user"]["id"]
    by_ada = [row["action"] for row in bob.call("GET", "/audit?limit=200")["items"] if row["user_id"] == ada]
    assert by_ada == ["user.create"], "what was done to bob's own account, and nothing else of hers"
    assert workers.admin.http.get("/api/v1/users").status_code == 200
    assert bob.http.get("/api/v1/users").status_code == 403


def test_nobody_spends_anothers_key(workers: World, bob: Person) -> None:
    token = bob.token("bob")
    workers.provider.forget()
    for attempt in range(20):  # both workers
        headers = {"authorization": f"Bearer {token}", "x-keybearer-secret-id": "anything"}
        answer = httpx2.post(
            f"{workers.server.url}/v1/chat/completions", json={"model": "openai/gpt-4o-mini", **CHAT}, headers=headers
        )
        assert answer.status_code == 404, f"attempt {attempt}: {answer.text}"
        assert answer.json()["error"]["code"] == "key_missing"
        assert "x-keybearer-secret-id" not in answer.headers
    assert workers.provider.requests() == []


def test_bobs_own_key_serves_bob_alone(workers: World, bob: Person) -> None:
    bob.add_key("openai", "sk-proj-kbtest-bobs-0123456789abcdefghijklmno")
    token = bob.token("bob-own")
    workers.provider.forget()
    for _ in range(10):
        for who, expected in ((token, "kbtest-bobs"), (workers.token, "kbtest-")):
            answer = httpx2.post(
                f"{workers.server.url}/v1/chat/completions",
                json={"model": "openai/gpt-4o-mini", **CHAT},
                headers={"authorization": f"Bearer {who}"},
            )
            assert answer.status_code == 200
            seen = workers.provider.requests()[-1]["headers"]["authorization"]
            assert expected in seen
            assert ("kbtest-bobs" in seen) == (who == token)


def test_timing_does_not_tell_foreign_from_unknown(workers: World, bob: Person) -> None:
    hers = workers.admin.call("GET", "/secrets?limit=1")["items"][0]["id"]
    foreign: list[float] = []
    unknown: list[float] = []
    for _ in range(60):
        for target, times in ((hers, foreign), (str(uuid4()), unknown)):
            began = time.perf_counter()
            assert bob.http.get(f"/api/v1/secrets/{target}").status_code == 404
            times.append(time.perf_counter() - began)
    # Not a timed test: the medians of one code path differ by noise only; a second query would double one of them.
    assert 0.4 < statistics.median(foreign) / statistics.median(unknown) < 2.5


def test_revocation_reaches_both_workers_within_a_second(workers: World, bob: Person) -> None:
    token = bob.token("short-lived")
    secret = bob.call("GET", "/secrets?provider=openai")["items"][0]["id"]

    def calls(count: int) -> list[int]:
        return [
            httpx2.post(
                f"{workers.server.url}/v1/chat/completions",
                json={"model": "openai/gpt-4o-mini", **CHAT},
                headers={"authorization": f"Bearer {token}"},
            ).status_code
            for _ in range(count)
        ]

    assert set(calls(20)) == {200}
    bob.call("PATCH", f"/secrets/{secret}", json={"is_active": False})
    time.sleep(1.0)
    assert set(calls(20)) == {403}
    bob.call("PATCH", f"/secrets/{secret}", json={"is_active": True})
    time.sleep(1.0)
    assert set(calls(20)) == {200}
    bob.call("PATCH", f"/tokens/{token.split('_')[1]}", json={"is_active": False})
    time.sleep(1.0)
    assert set(calls(20)) == {401}


def test_a_disabled_account_stops_everywhere(workers: World, bob: Person) -> None:
    token = bob.token("disabled")
    me = bob.call("GET", "/me")["user"]["id"]
    workers.admin.call("PATCH", f"/users/{me}", json={"is_active": False})
    time.sleep(1.0)
    for _ in range(10):
        answer = httpx2.post(
            f"{workers.server.url}/v1/chat/completions",
            json={"model": "openai/gpt-4o-mini", **CHAT},
            headers={"authorization": f"Bearer {token}"},
        )
        assert answer.status_code == 401
        assert bob.http.get("/api/v1/secrets").status_code == 401
