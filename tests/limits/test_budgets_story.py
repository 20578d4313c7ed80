"""Budgets and limits through the gateway: who is at one is refused and the provider hears nothing; the remainder is right."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from tests.limits.conftest import SCOPES, World, early_in_a_minute, settled
from tests.support import server as servers
from tests.support.server import Person, heard

SLOW = "anthropic/claude-sonnet-4-5-mock-slow-2s"


def limit(person: Person, kind: str, amount: float, **more: Any) -> dict[str, Any]:
    """Set a limit for the person themselves, and wait until it holds everywhere."""
    made: dict[str, Any] = person.call("POST", "/budgets", json={"subject": "user", "kind": kind, "amount": amount, **more})
    heard(person)
    return made


def test_who_is_at_a_limit_is_refused_and_the_provider_hears_nothing(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    assert world.ask(token).status_code == 200
    early_in_a_minute()
    made = limit(ada, "requests_minute", 3)
    before = made["used"]
    for _ in range(3 - int(before)):
        assert world.ask(token).status_code == 200
    before = world.heard()
    answer = world.ask(token)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "limit_reached"
    assert answer.json()["error"]["hint"]
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert world.heard() == before
    shown = settled(ada, made)
    assert (shown["used"], shown["remaining"], shown["is_exceeded"]) == (3, 0, False)
    assert shown["resets_at"].endswith(("Z", "+00:00"))
    native = httpx2.post(
        f"{world.server.url}/v1/messages",
        json={"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]},
        headers={"x-api-key": token, "anthropic-version": "2023-06-01"},
    )
    assert native.status_code == 429
    assert native.json()["type"] == "error"
    assert native.json()["error"]["type"] == "rate_limit_error"
    # Lifted, it holds no more; set again, what was used still counts.
    ada.call("DELETE", f"/budgets/{made['id']}")
    heard(ada)
    assert world.ask(token).status_code == 200
    again = limit(ada, "requests_minute", 3)
    assert again["used"] == 4
    assert again["is_exceeded"]


def test_dollars_are_settled_by_what_was_used(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    made = limit(ada, "usd_day", 0.01)
    for model, more in (
        ("openai/gpt-4o-mini", {}),
        ("openai/gpt-4o-mini", {"stream": True}),
        ("anthropic/claude-sonnet-4-5", {}),
    ):
        answer = world.ask(token, model, **more)
        assert answer.status_code == 200, answer.text
    shown = settled(ada, made)
    deadline = time.monotonic() + 10
    while len(rows := [row for row in ada.call("GET", "/usage")["items"] if row["outcome"] == "ok"]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    spent = sum(row["cost_usd"] for row in rows)
    assert spent > 0
    assert shown["used"] == pytest.approx(spent, abs=1e-9)
    assert shown["remaining"] == pytest.approx(0.01 - spent, abs=1e-9)
    # One call that alone may cost more is refused, and says what helps.
    answer = world.ask(token, "anthropic/claude-sonnet-4-5", max_tokens=100_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "limit_exceeded")
    assert "max_tokens" in answer.json()["error"]["hint"]


def test_hard_budgets_refuse_what_has_no_price_or_no_bound(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    made = limit(ada, "usd_month", 100)
    before = world.heard()
    tools = [{"type": "web_search_20250305", "name": "web_search"}]
    assert world.ask(token, "openai/mock").json()["error"]["code"] in {"price_unknown", "call_unbounded"}
    assert world.ask(token, "openai/gpt-4o-mini", web_search_options={"a": 1}).json()["error"]["code"] == "call_unbounded"
    assert world.ask(token, "anthropic/claude-sonnet-4-5", tools=tools).json()["error"]["code"] == "call_unbounded"
    assert world.ask(token, "openai/gpt-4o-mini", service_tier="priority").json()["error"]["code"] == "price_unknown"
    passed = httpx2.post(f"{world.server.url}/p/openai/v1/images", json={"a": 1}, headers={"authorization": f"Bearer {token}"})
    assert passed.status_code in {403, 404}, passed.text
    assert world.heard() == before
    # A soft one lets them pass, and shows what is known.
    ada.call("PATCH", f"/budgets/{made['id']}", json={"is_hard": False, "amount": 0})
    heard(ada)
    assert world.ask(token, "openai/mock").status_code == 200
    assert world.ask(token).status_code == 200
    shown = settled(ada, made)
    assert shown["is_exceeded"]
    assert shown["used"] > 0


def test_what_breaks_off_counts_in_full_and_what_failed_does_not(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    made = limit(ada, "usd_day", 10)
    assert world.ask(token, "anthropic/claude-sonnet-4-5-mock-429").status_code == 429
    assert settled(ada, made)["used"] == 0
    # A client that leaves in mid-stream has had what it had: the reservation counts.
    host, _, port = world.server.url.removeprefix("http://").partition(":")
    body = (
        b'{"model":"anthropic/claude-sonnet-4-5-mock-chunks-200-pace-20ms","stream":true,"max_tokens":1000,'
        b'"messages":[{"role":"user","content":"Hello"}]}'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer %b\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (token.encode(), len(body), body)
        )
        assert b"200" in connection.recv(200)
        held = ada.call("GET", f"/budgets/{made['id']}")
        assert held["reserved"] > 0
    shown = settled(ada, made)
    assert shown["used"] == pytest.approx(held["reserved"])


def test_an_answer_that_is_under_way_holds_its_most(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    made = limit(ada, "tokens_minute", 20_000)
    with ThreadPoolExecutor() as pool:
        early_in_a_minute(8)
        before = world.heard()
        calling = pool.submit(world.ask, token, SLOW, max_tokens=500)
        world.until_heard(before + 1)
        held = ada.call("GET", f"/budgets/{made['id']}")
        assert 500 < held["reserved"] < 1000
        assert held["remaining"] == 20_000 - held["reserved"] - held["used"]
        assert calling.result().status_code == 200
    shown = settled(ada, made)
    assert 0 < shown["used"] < 500


def test_a_thousand_at_once_take_what_there_is_and_nothing_more(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    made = limit(ada, "usd_day", 5)
    assert world.ask(token, SLOW, max_tokens=1000).status_code == 200
    with ThreadPoolExecutor() as pool:
        before = world.heard()
        calling = pool.submit(world.ask, token, SLOW, max_tokens=1000)
        world.until_heard(before + 1)
        each = ada.call("GET", f"/budgets/{made['id']}")["reserved"]
        calling.result()
    used = settled(ada, made)["used"]
    ada.call("PATCH", f"/budgets/{made['id']}", json={"amount": round(used + 100.5 * each, 6)})
    heard(ada)
    before = world.heard()

    async def call_all() -> Counter[int]:
        limits = httpx2.Limits(max_connections=1000)
        body = {"model": SLOW.replace("2s", "20s"), "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000}
        headers = {"authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=world.server.url, headers=headers, limits=limits, timeout=60) as client:
            answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(1000)))
        return Counter(answer.status_code for answer in answers)

    assert asyncio.run(call_all()) == {200: 100, 429: 900}
    assert world.heard() == before + 100


def test_all_limits_hold_and_an_administrators_is_not_loosened(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    me = ada.call("GET", "/me")["user"]["id"]
    early_in_a_minute()
    hers = limit(ada, "requests_minute", 1000)
    draft = {"subject": "user", "subject_id": me, "kind": "requests_minute", "amount": 1}
    theirs = world.admin.call("POST", "/budgets", json=draft)
    assert theirs["by_admin"]
    heard(ada)
    assert world.ask(token).status_code == 200
    assert world.ask(token).status_code == 429
    for method, body in (("PATCH", {"amount": 1000}), ("PATCH", {"is_hard": False}), ("DELETE", None)):
        answer = ada.call(method, f"/budgets/{theirs['id']}", json=body, status=403)
        assert answer["code"] == "forbidden"
    assert {row["id"] for row in ada.call("GET", "/budgets")["items"]} == {hers["id"], theirs["id"]}
    world.admin.call("DELETE", f"/budgets/{theirs['id']}")
    heard(ada)
    assert world.ask(token).status_code == 200


def test_limits_are_set_by_who_may(world: World) -> None:
    ada, bob = world.person(), world.person()
    token = ada.token(scopes=SCOPES)
    token_id = token[3:15]
    secret = ada.add_key("openai", "sk-proj-kbtest-openai-other-0123456789abcdef", name="other")
    team = ada.call("POST", "/teams", json={"name": "Research"})["id"]
    kind = {"kind": "requests_minute", "amount": 100}
    subjects = [("token", token_id), ("secret", secret["id"]), ("team", team)]
    for subject, subject_id in subjects:
        draft = {"subject": subject, "subject_id": subject_id, **kind}
        assert bob.call("POST", "/budgets", json=draft, status=404)["hint"]
        made = ada.call("POST", "/budgets", json=draft)
        assert ada.call("POST", "/budgets", json=draft, status=409)["code"] == "conflict"
        assert bob.call("GET", f"/budgets/{made['id']}", status=404)
        assert bob.call("PATCH", f"/budgets/{made['id']}", json={"amount": 1}, status=404)
        assert bob.call("DELETE", f"/budgets/{made['id']}", status=404)
        assert world.admin.call("GET", f"/budgets/{made['id']}")["subject_id"] == subject_id
    me = ada.call("GET", "/me")["user"]["id"]
    bob.call("POST", "/budgets", json={"subject": "user", "subject_id": me, **kind}, status=403)
    for draft in ({"subject": "deployment", **kind}, {"subject": "provider", "subject_id": "openai", **kind}):
        ada.call("POST", "/budgets", json=draft, status=403)
        made = world.admin.call("POST", "/budgets", json=draft)
        ada.call("GET", f"/budgets/{made['id']}", status=404)
        world.admin.call("DELETE", f"/budgets/{made['id']}")
    # A token that may not set limits does not.
    program = servers.program(world.server, ada.token(scopes=("gateway:use", "usage:read")))
    assert program.call("POST", "/budgets", json={"subject": "user", **kind}, status=403)["code"] == "scope_missing"
    assert len(program.call("GET", "/budgets")["items"]) == 3
    # What is limited takes its limits along.
    ada.call("DELETE", f"/tokens/{token_id}")
    assert len(ada.call("GET", "/budgets")["items"]) == 2


def test_every_subject_counts(world: World) -> None:
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    secret = next(row for row in ada.call("GET", "/secrets")["items"] if row["provider"] == "openai")
    early_in_a_minute(40)
    for person, subject, subject_id in (
        (ada, "token", token[3:15]),
        (ada, "secret", secret["id"]),
        (world.admin, "provider", "openai"),
        (world.admin, "deployment", ""),
    ):
        draft = {"subject": subject, "subject_id": subject_id, "kind": "requests_minute", "amount": 0}
        made = person.call("POST", "/budgets", json=draft)
        heard(ada)
        answer = world.ask(token)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "limit_exceeded"), subject
        person.call("DELETE", f"/budgets/{made['id']}")
        heard(ada)
        assert world.ask(token).status_code == 200


def test_a_key_at_its_limit_leaves_calls_to_others(world: World) -> None:
    """To the next of one's own; past all of them to a team's, where each of them says so; and to nobody where one does not."""
    ada = world.person()
    token = ada.token(scopes=SCOPES)
    team = ada.call("POST", "/teams", json={"name": "Spare"})["id"]
    teams = ada.add_key("openai", "sk-proj-kbtest-openai-spare-0123456789abcdefgh", team_id=team)
    first = next(row for row in ada.call("GET", "/secrets")["items"] if row["provider"] == "openai")
    second = ada.add_key("openai", "sk-proj-kbtest-openai-second-0123456789abcdefg", name="second", priority=200)
    heard(ada)

    def served_by() -> str:
        answer = world.ask(token)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-keybearer-secret-id"])

    def hold(secret: dict[str, Any]) -> None:
        draft = {"subject": "secret", "subject_id": secret["id"], "kind": "requests_minute", "amount": 1}
        ada.call("POST", "/budgets", json=draft)
        heard(ada)

    def refused(path: str = "chat/completions") -> None:
        before = world.heard()
        body = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "input": "Hello"}
        answer = httpx2.post(f"{world.server.url}/v1/{path}", json=body, headers={"authorization": f"Bearer {token}"}, timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "limit_reached"), answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert world.heard() == before

    early_in_a_minute(25)
    hold(first)
    assert [served_by() for _ in range(3)] == [first["id"], second["id"], second["id"]]
    refused("responses")  # what a provider stores stays in the account where it is looked for
    hold(second)
    refused()
    ada.call("PATCH", f"/secrets/{first['id']}", json={"fallback_allowed": True})
    heard(ada)
    refused()
    ada.call("PATCH", f"/secrets/{second['id']}", json={"fallback_allowed": True})
    heard(ada)
    assert [served_by() for _ in range(3)] == [teams["id"]] * 3
    hold(teams)
    refused()
    for secret in (first, teams):
        found = next(row for row in ada.call("GET", "/budgets")["items"] if row["subject_id"] == secret["id"])
        ada.call("DELETE", f"/budgets/{found['id']}")
    heard(ada)
    assert served_by() == first["id"]


def test_a_teams_limit_counts_what_is_called_with_its_keys(world: World) -> None:
    """Whoever of its members calls; its leaders see the sum, in the API and on the page, and others do not."""
    ada, bob = world.person(), world.person()
    team = ada.call("POST", "/teams", json={"name": "Research"})["id"]
    email = bob.call("GET", "/me")["user"]["email"]
    ada.call("POST", f"/teams/{team}/members", json={"email": email})
    bob.call("POST", f"/teams/{team}/accept")
    own = next(row for row in bob.call("GET", "/secrets")["items"] if row["provider"] == "openai")
    bob.call("DELETE", f"/secrets/{own['id']}")
    ada.add_key("openai", "sk-proj-kbtest-openai-teams-0123456789abcdefgh", team_id=team)
    heard(ada)
    token, adas = bob.token(scopes=SCOPES), ada.token(scopes=SCOPES)
    early_in_a_minute()
    draft = {"subject": "team", "subject_id": team, "kind": "requests_minute", "amount": 1}
    made = ada.call("POST", "/budgets", json=draft)
    heard(ada)
    served = world.ask(token)
    assert (served.status_code, served.headers["x-keybearer-key-source"]) == (200, "team")
    refused = world.ask(token)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "limit_reached")
    assert "team" in refused.json()["error"]["message"]
    assert world.ask(adas).status_code == 200, "with a key of one's own the team's limit has nothing to do"
    settled(ada, made)

    def sums(person: Person) -> dict[str, int]:
        return {row["key"]: row["requests"] for row in person.call("GET", "/usage/summary?by=team")["items"]}

    deadline = time.monotonic() + 10
    while sums(ada).get(team) != 1:
        assert time.monotonic() < deadline, sums(ada)
        time.sleep(0.1)
    assert sums(world.admin)[team] == sums(bob)[team] == 1
    assert team not in sums(world.person())
    assert "By team" in (page := ada.http.get("/usage").text)
    assert f'/teams/{team}">Research<' in page
    assert {row["key"] for row in bob.call("GET", "/usage/summary?by=node")["items"]} == {""}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "usd_week"},
        {"subject": "everybody"},
        {"amount": -1},
        {"amount": "NaN"},
        {"amount": 1e16},
        {"amount": 0.0000001},
        {"kind": "requests_minute", "amount": 1.5},
        {"amount": None},
        {"amount": "much"},
        {"subject": "secret", "subject_id": "kbtest"},
        {"subject": "token", "subject_id": "../../../"},
        {"subject": "secret", "subject_id": str(uuid4())},
        {"subject": "team", "subject_id": str(uuid4())},
        {"subject_id": "x" * 65},
        {"is_hard": "perhaps"},
        {"by_admin": True},
        {"subject": "provider", "subject_id": "kbtest-none"},
        {"subject": "deployment", "subject_id": "all"},
    ],
)
def test_bad_input_is_a_problem(world: World, wrong: dict[str, Any]) -> None:
    draft = {"subject": "user", "kind": "usd_day", "amount": 1, **wrong}
    answer = world.admin.http.post("/api/v1/budgets", json=draft)
    assert answer.status_code in {404, 422}, answer.text
    assert answer.json()["hint"]


def test_the_command_line_and_the_console_do_the_same(world: World) -> None:
    ada = world.person()
    world.server.environment |= {"KEYBEARER_URL": world.server.url, "KEYBEARER_TOKEN": ada.token(scopes=SCOPES)}
    made = servers.json_of(world.server.cli("budget", "set", "usd_month", "12.50", "--json"))
    assert (made["amount"], made["subject"], made["is_hard"]) == (12.5, "user", True)
    world.server.cli("budget", "change", made["id"], "--amount", "20", "--soft")
    (row,) = servers.json_of(world.server.cli("budget", "list", "--json"))
    assert (row["amount"], row["is_hard"], row["remaining"]) == (20, False, 20)
    page = ada.http.get("/budgets").text
    assert "20 dollars a month" in page
    form = {"subject": "user", "kind": "tokens_minute", "amount": "1000", "is_hard": "1"}
    assert ada.http.post("/budgets", data=form).status_code == 303
    wrong = ada.http.post("/budgets", data=form | {"amount": "<b>"})
    assert wrong.status_code == 422
    assert "&lt;b&gt;" in wrong.text
    assert "1000 tokens a minute" in ada.http.get("/budgets").text
    assert ada.http.post(f"/budgets/{made['id']}/delete").status_code == 303
    assert world.server.cli("budget", "delete", str(uuid4()), check=False).returncode == 1
    assert len(ada.call("GET", "/budgets")["items"]) == 1
