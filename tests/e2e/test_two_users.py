"""Two users, two workers, PostgreSQL: neither sees, uses, guesses or infers the other's secret."""

from __future__ import annotations

import math
import random
import re
import statistics
import string
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
TELLING_S = 0.0005
"""A difference in time that would tell."""
MOST_PAIRS = 600
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
    ("POST", "/rotate", {"value": "sk-kbtest-rotated-0123456789"}),
    ("POST", "/rollback", {"version": 1}),
    ("POST", "/restore", None),
    ("POST", "/purge", None),
    ("POST", "/reveal", None),
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


def test_foreign_providers_and_sessions_are_as_unknown_ones(workers: World, bob: Person) -> None:
    draft = {
        "name": "hers",
        "display_name": "Hers",
        "base_url": "https://llm.example.com/v1",
        "models": ["her-model"],
        "api_key": HERS,
        "save_anyway": True,
    }
    hers = workers.admin.call("POST", "/providers", json=draft)
    asked = [("GET", "", None), ("PUT", "", {"display_name": "Mine"}), ("DELETE", "", None), ("GET", "/models", None)]
    asked += [("POST", "/models", {"name": "more"}), ("POST", "/test", None)]
    for method, path, body in asked:
        for foreign, unknown in ((hers["id"], str(uuid4())), ("hers", "nobodys")):
            answer = bob.http.request(method, f"/api/v1/providers/{foreign}{path}", json=body)
            expected = bob.http.request(method, f"/api/v1/providers/{unknown}{path}", json=body)
            assert masked(answer) == masked(expected), (method, path, foreign)
            assert answer.status_code == 404
    assert "hers" not in bob.http.get("/api/v1/providers").text
    token = bob.token("bob-foreign")
    told = []
    for model in ("hers/her-model", "nobodys/her-model"):
        headers = {"authorization": f"Bearer {token}"}
        answer = httpx2.post(f"{workers.server.url}/v1/chat/completions", json={"model": model, **CHAT}, headers=headers)
        told.append((answer.status_code, masked(answer)[1].replace(model.partition("/")[0], "…")))
    assert told[0] == told[1]
    session = workers.admin.call("GET", "/me/sessions")["items"][0]["id"]
    for method in ("GET", "DELETE"):
        answer = bob.http.request(method, f"/api/v1/me/sessions/{session}")
        assert masked(answer) == masked(bob.http.request(method, f"/api/v1/me/sessions/{uuid4()}"))
    assert workers.admin.call("GET", f"/providers/{hers['id']}")["display_name"] == "Hers"
    workers.admin.call("DELETE", f"/providers/{hers['id']}")


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


def timed(person: Person, path: str) -> float:
    """Seconds until a path was answered with 404."""
    began = time.perf_counter()
    answer = person.http.get(f"/api/v1{path}")
    took = time.perf_counter() - began
    assert answer.status_code == 404
    return took


def difference(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The median of the differences of the quickest quarter of pairs, and half of its 99 % confidence interval.

    By order statistics: no distribution is assumed. Chosen by their sums, which favours neither: a pair that something else slowed
    down says nothing of the server.
    """
    quickest = sorted(pairs, key=sum)[: len(pairs) // 4]
    ordered = sorted(of_foreign - of_unknown for of_foreign, of_unknown in quickest)
    reach = math.ceil(2.58 * math.sqrt(len(ordered)) / 2)
    half = len(ordered) // 2
    return statistics.median(ordered), (ordered[half + reach] - ordered[half - reach]) / 2


@pytest.mark.parametrize("what", ["secrets", "tokens"])
def test_timing_does_not_tell_foreign_from_unknown(workers: World, bob: Person, what: str) -> None:
    """Pairs of requests on one connection, so to one worker, in random order, until chance moves the result by little.

    Fails where a difference is beyond doubt. A leak of one millisecond, either way, is: it moves every pair's difference as much.
    """
    hers = workers.admin.call("GET", "/secrets?limit=1")["items"][0]["id"] if what == "secrets" else workers.token.split("_")[1]
    pairs: list[tuple[float, float]] = []
    off_by = math.inf
    while off_by > TELLING_S / 2 and len(pairs) < MOST_PAIRS:
        for _ in range(100):
            unknown = str(uuid4()) if what == "secrets" else "".join(random.choices(string.ascii_letters, k=12))
            if random.random() < 0.5:
                of_foreign, of_unknown = timed(bob, f"/{what}/{hers}"), timed(bob, f"/{what}/{unknown}")
            else:
                of_unknown, of_foreign = timed(bob, f"/{what}/{unknown}"), timed(bob, f"/{what}/{hers}")
            pairs.append((of_foreign, of_unknown))
        median, off_by = difference(pairs)
    assert abs(median) - off_by < TELLING_S / 2, f"{median * 1000:.2f} ms ± {off_by * 1000:.2f} after {len(pairs)} pairs"


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
