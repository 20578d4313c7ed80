"""Several keys of one scope: which serves, when the next is asked, and what is on record of it. Real sockets throughout."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from tests.plane.conftest import CHAT, KEY, PROMPT, STREAM, House, credential
from tests.plane.wire import Answer, Received, Script, fixed, until

from keybearer.catalog import Registry
from keybearer.catalog.provider import Place
from keybearer.domain import Credential
from keybearer.gateway.ready import now

FIRST, SECOND, THIRD = KEY, f"{KEY}2", f"{KEY}3"
OK = fixed(b"200 OK", CHAT, b"content-type: application/json")
LIMITED = fixed(b"429 Too Many Requests", b'{"error":{"message":"slow down"}}', b"retry-after: 30")
REFUSED = fixed(b"401 Unauthorized", b'{"error":{"message":"no"}}')


def broken(sent: bytes) -> Script:
    """A provider that says this much and hangs up."""

    async def run(request: Received) -> None:
        request.writer.write(sent)
        await request.writer.drain()
        request.writer.close()

    return run


def by_key(scripts: Mapping[str, Script]) -> Script:
    """A provider that answers each key in its own way; those not named are served."""

    async def run(request: Received) -> None:
        sent = str(request["authorization"] or request["x-api-key"]).removeprefix("Bearer ")
        await scripts.get(sent, OK)(request)

    return run


def give(house: House, *keys: str, priorities: tuple[int, ...] = (), provider: str = "openai") -> list[Credential]:
    """Let these be the person's keys, by default each behind the one before."""
    found = house.vault.providers.get(provider)
    order = priorities or tuple(range(len(keys)))
    made = [credential(found, key, priority=number) for key, number in zip(keys, order, strict=True)]
    house.vault.keys[provider], house.vault.further[provider] = made[0], tuple(made[1:])
    return made


def asked(house: House) -> list[str]:
    """The keys that the provider got, in order."""
    return [str(request["authorization"]).removeprefix("Bearer ") for request in house.provider.received]


def attempts(house: House) -> list[tuple[str, int, str]]:
    """Of each use on record: whose key, the status and the outcome."""
    lines = house.sent()
    outcomes = {line["request_id"]: line for line in lines if line["kind"] == "outcome"}
    uses = [line for line in lines if line["kind"] == "use"]
    assert len({use["request_id"] for use in uses}) == len(uses) == len(outcomes)
    found = []
    for use in uses:
        outcome = outcomes[use["request_id"]]
        assert lines.index(use) < lines.index(outcome)
        found.append((use["secret_id"], outcome["status"], outcome["outcome"]))
    return found


def code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds to add to the caches' clock."""
    ahead = [0.0]
    for name in ("credentials", "exchange", "ready"):
        monkeypatch.setattr(f"keybearer.gateway.{name}.now", lambda: now() + ahead[0])
    return ahead


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (REFUSED, 401),
        (fixed(b"403 Forbidden", b"{}"), 403),
        (fixed(b"402 Payment Required", b"{}"), 402),
        (LIMITED, 429),
        (fixed(b"500 Internal Server Error", b"{}"), 500),
        (fixed(b"529 ", b"x" * 200_000), 529),
        (broken(b""), 502),
        (broken(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 500\r\n\r\nhalf of"), 503),
    ],
    ids=["401", "403", "402", "429", "500", "529 and a long body", "cut before an answer", "an error that is cut off"],
)
@pytest.mark.parametrize("body", [PROMPT, STREAM], ids=["whole", "streamed"])
async def test_where_one_key_fails_the_next_serves(house: House, fault: Script, status: int, body: bytes) -> None:
    first, second = give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: fault})
    answer = await house.ask(house.request(body))
    assert (answer.status, answer.body) == (200, CHAT)
    assert asked(house) == [FIRST, SECOND]
    assert house.provider.received[0].body == house.provider.received[1].body
    assert answer["x-keybearer-secret-id"] == str(second.secret_id)
    await until(lambda: len(house.sent()) == 4)
    assert attempts(house) == [(str(first.secret_id), status, "upstream_error"), (str(second.secret_id), 200, "ok")]
    assert answer["x-keybearer-request-id"] == house.sent()[2]["request_id"]
    assert house.plane.budget.held == 0


async def test_where_one_key_cannot_be_sent_the_next_serves(house: House) -> None:
    """Its host refuses connections; the other key's is another."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{unused.getsockname()[1]}"
    there = house.vault.providers.get("openai")
    house.vault.providers = Registry([replace(there, places=(Place(re.compile(re.escape(FIRST)), gone),))])
    first, second = give(house, FIRST, SECOND)
    assert first.egress == (gone,)
    answer = await house.ask(house.request())
    assert (answer.status, answer["x-keybearer-secret-id"]) == (200, str(second.secret_id))
    await until(lambda: len(house.sent()) == 4)
    assert attempts(house) == [(str(first.secret_id), 502, "upstream_error"), (str(second.secret_id), 200, "ok")]
    house.vault.further["openai"] = ()
    house.credentials.forget()
    answer = await house.ask(house.request())
    assert (answer.status, code(answer)) == (502, "upstream_unreachable")


@pytest.mark.parametrize(
    "sent",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", b"garbage\r\n\r\n"],
)
async def test_what_has_begun_to_be_answered_is_not_sent_again(house: House, sent: bytes) -> None:
    give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: broken(sent)})
    connection = await house.connect()
    await connection.send(house.request(PROMPT, "Connection: close"))
    await connection.reader.all(may_be_cut=True)
    assert asked(house) == [FIRST]


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"409 Conflict", b"422 Unprocessable Entity"])
async def test_an_error_of_the_callers_is_not_the_keys(house: House, status: bytes) -> None:
    give(house, FIRST, SECOND)
    house.provider.script = fixed(status, b'{"error":{"message":"wrong"}}')
    answer = await house.ask(house.request())
    assert (answer.status, asked(house)) == (int(status[:3]), [FIRST])


async def test_what_leaves_something_behind_is_not_sent_twice(house: House) -> None:
    """A response is stored at the provider: if it hangs up without an answer, nobody knows whether one was made."""
    give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: broken(b"")})
    answer = await house.ask(house.request(b'{"model":"gpt-4o-mini","input":"x"}', path="/v1/responses"))
    assert (answer.status, asked(house)) == (502, [FIRST])


async def test_what_is_stored_is_looked_for_in_the_account_where_it_is(house: House) -> None:
    give(house, FIRST, SECOND, THIRD, priorities=(1, 1, 1))
    house.provider.script = by_key({})
    for _ in range(5):
        await house.ask(house.request(b"", path="/v1/files/file-1", method="GET"))
        await house.ask(house.request(b'{"model":"gpt-4o-mini","input":"x"}', path="/v1/responses"))
    assert asked(house) == [FIRST] * 10
    house.provider.script = by_key({FIRST: LIMITED})
    answer = await house.ask(house.request(b'{"model":"gpt-4o-mini","input":"x"}', path="/v1/responses"))
    assert (answer.status, asked(house)[10:]) == (200, [FIRST, SECOND])


RETRY_AFTER: list[tuple[tuple[bytes, ...], float, float]] = [
    ((b"retry-after: 30",), 29, 30),
    ((b"retry-after: 2.5",), 1.5, 2.5),
    ((b"retry-after: " + format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True).encode(),), 3599, 3600),
    ((b"date: Sat, 21 Nov 2020 10:00:00 GMT", b"retry-after: Sat, 21 Nov 2020 10:00:40 GMT"), 39, 40),
    ((b"retry-after-ms: 4500", b"retry-after: 60"), 3.5, 4.5),
    ((), 0.01, 1),
    ((b"retry-after: soon",), 0.01, 1),
    ((b"retry-after: -5",), 0.01, 1),
    ((b"retry-after: 99999999",), 3599, 3600),
]


@pytest.mark.parametrize(
    ("headers", "least", "most"), RETRY_AFTER, ids=[f"retry-after-{place}" for place in range(len(RETRY_AFTER))]
)
async def test_a_key_rests_as_long_as_its_provider_says(
    house: House, clock: list[float], headers: tuple[bytes, ...], least: float, most: float
) -> None:
    first, second = give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: fixed(b"429 Too Many Requests", b"{}", *headers)})
    connection = await house.connect()
    for _ in range(3):
        await connection.send(house.request())
        assert (await connection.answer())["x-keybearer-secret-id"] == str(second.secret_id)
    assert asked(house) == [FIRST, SECOND, SECOND, SECOND]
    health = house.credentials.healths.of(first.secret_id, 1)
    assert least <= health.rests_for("gpt-4o-mini", now()) <= most
    report = house.credentials.healths.report(first.secret_id, 1, now())
    assert (report.state, report.last_status) == ("cooling", 429)
    assert report.reason == "The provider answered 429 (asked too often) for the model gpt-4o-mini."
    other = b'{"model":"gpt-4o","messages":[]}'
    house.provider.script = OK
    await connection.send(house.request(other))  # limits go by model
    assert (await connection.answer())["x-keybearer-secret-id"] == str(first.secret_id)
    clock[0] = most + 0.1
    await connection.send(house.request())
    assert (await connection.answer())["x-keybearer-secret-id"] == str(first.secret_id)
    assert house.credentials.healths.report(first.secret_id, 1, now()).state == "ok"


async def test_after_its_rest_one_call_tries_a_key_and_the_others_keep_to_the_next(house: House, clock: list[float]) -> None:
    give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: LIMITED})
    await house.ask(house.request())
    clock[0] = 31
    go_on = asyncio.Event()

    async def hesitate(request: Received) -> None:
        await go_on.wait()
        await LIMITED(request)

    house.provider.script = by_key({FIRST: hesitate})
    house.provider.received.clear()
    trying = asyncio.create_task(house.ask(house.request()))
    await until(lambda: asked(house) == [FIRST])
    for _ in range(3):
        assert (await house.ask(house.request())).status == 200
    assert asked(house) == [FIRST, SECOND, SECOND, SECOND]
    go_on.set()
    assert (await trying).status == 200  # by the second, as the first is refused again
    house.provider.script = OK
    await house.ask(house.request())
    assert asked(house)[4:] == [SECOND, SECOND]
    clock[0] = 62
    await house.ask(house.request())
    await house.ask(house.request())
    assert asked(house)[6:] == [FIRST, FIRST]


async def test_all_keys_rest(house: House) -> None:
    give(house, FIRST, SECOND)
    house.provider.script = by_key(
        {FIRST: LIMITED, SECOND: fixed(b"429 Too Many Requests", b'{"error":{"message":"slow"}}', b"retry-after: 9")}
    )
    for sent in (2, 2):
        answer = await house.ask(house.request())
        assert (answer.status, code(answer), answer["retry-after"]) == (429, "rate_limited", "9")
        assert len(asked(house)) == sent
    await until(lambda: len(house.sent()) == 4)
    assert [(status, outcome) for _, status, outcome in attempts(house)] == [(429, "upstream_error")] * 2


async def test_all_keys_rest_in_anthropics_shape(house: House) -> None:
    give(house, FIRST, SECOND, provider="anthropic")
    house.provider.script = LIMITED
    body = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[]}'
    answer = await house.ask(house.request(body, path="/v1/messages"))
    found = json.loads(answer.body)
    assert (answer.status, found["type"], found["error"]["type"]) == (429, "error", "rate_limit_error")
    assert [request["x-api-key"] for request in house.provider.received] == [FIRST, SECOND]


async def test_all_keys_are_refused_and_the_last_answer_is_the_clients(house: House) -> None:
    first, second = give(house, FIRST, SECOND)
    told: list[Any] = []
    house.credentials.on_key_refused = lambda key, status: told.append((key.secret_id, status))
    house.provider.script = REFUSED
    for expected in (2, 4):  # a key that was refused is asked where there is no other
        answer = await house.ask(house.request())
        assert (answer.status, answer.body) == (401, b'{"error":{"message":"no"}}')
        assert answer["x-keybearer-secret-id"] == str(second.secret_id)
        assert len(asked(house)) == expected
    assert told[:2] == [(first.secret_id, 401), (second.secret_id, 401)]
    report = house.credentials.healths.report(first.secret_id, 1, now())
    assert (report.state, report.last_status, report.reason) == ("refused", 401, "The provider answered 401 (refused).")


async def test_a_refused_key_is_passed_over_at_once_for_every_model(house: House, clock: list[float]) -> None:
    give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: REFUSED})
    await house.ask(house.request())
    house.provider.script = OK
    await house.ask(house.request())
    await house.ask(house.request(b'{"model":"gpt-4o","messages":[]}'))
    assert asked(house) == [FIRST, SECOND, SECOND, SECOND]
    clock[0] = 61
    await house.ask(house.request())
    await house.ask(house.request())
    assert asked(house)[4:] == [FIRST, FIRST]


async def test_a_refused_key_is_no_way_out_while_others_rest(house: House) -> None:
    give(house, FIRST, SECOND)
    house.provider.script = by_key({FIRST: REFUSED, SECOND: LIMITED})
    assert (await house.ask(house.request())).status == 429
    answer = await house.ask(house.request())
    assert (answer.status, code(answer), asked(house)) == (429, "rate_limited", [FIRST, SECOND])


@pytest.mark.parametrize("keeps", [True, False], ids=["one connection", "many connections"])
async def test_keys_of_one_priority_take_turns(house: House, keeps: bool) -> None:  # noqa: FBT001
    give(house, FIRST, SECOND, THIRD, f"{KEY}4", priorities=(1, 1, 1, 2))
    house.provider.script = by_key({})
    connection = await house.connect()
    for _ in range(30):
        if keeps:
            await connection.send(house.request())
            await connection.answer()
        else:
            await house.ask(house.request())
    sent = asked(house)
    assert all(sent.count(key) == 10 for key in (FIRST, SECOND, THIRD))
    assert all(before != after for before, after in pairwise(sent))
    await until(lambda: len(house.sent()) == 60)
    assert {outcome for _, _, outcome in attempts(house)} == {"ok"}
    house.provider.script = by_key({FIRST: LIMITED, SECOND: LIMITED})
    for _ in range(6):
        await house.ask(house.request())
    assert set(asked(house)[-4:]) == {THIRD}  # the next group waits until none of this one is left


async def test_the_value_before_a_rotation_serves_only_while_the_new_one_is_refused(house: House) -> None:
    new, other, _ = give(house, FIRST, SECOND, THIRD, priorities=(1, 2, 1))
    old = credential(
        house.vault.providers.get("openai"), THIRD, secret_id=new.secret_id, secret_version=0, priority=1, is_fallback=True
    )
    house.vault.further["openai"] = (old, other)
    house.provider.script = by_key({FIRST: fixed(b"500 Oops", b"{}")})
    await house.ask(house.request())
    assert asked(house) == [FIRST, SECOND]
    house.provider.script = by_key({FIRST: REFUSED})
    await house.ask(house.request())
    await house.ask(house.request())
    assert asked(house)[2:] == [FIRST, THIRD, THIRD]


async def test_a_client_that_leaves_takes_no_further_key_along(house: House) -> None:
    give(house, FIRST, SECOND, THIRD)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: Received) -> None:
        reached.set()
        await go_on.wait()
        await LIMITED(request)

    house.provider.script = by_key({FIRST: LIMITED, SECOND: hold})
    connection = await house.connect()
    await connection.send(house.request())
    await asyncio.wait_for(reached.wait(), 5)
    await connection.close()
    await until(lambda: len(house.sent()) == 4)
    go_on.set()
    assert [(status, outcome) for _, status, outcome in attempts(house)] == [(429, "upstream_error"), (499, "aborted")]
    assert asked(house) == [FIRST, SECOND]
    assert house.plane.budget.held == 0


async def test_a_token_revoked_meanwhile_gets_no_further_key(house: House) -> None:
    give(house, FIRST, SECOND)
    go_on = asyncio.Event()

    async def hold(request: Received) -> None:
        await go_on.wait()
        await REFUSED(request)

    house.provider.script = by_key({FIRST: hold})
    asking = asyncio.create_task(house.ask(house.request()))
    await until(lambda: asked(house) == [FIRST])
    house.vault.grants.clear()
    await house.note("token", house.grant.token_id)
    go_on.set()
    assert (await asking).status == 401
    assert asked(house) == [FIRST]


async def test_nothing_is_left_over_after_many(house: House) -> None:
    give(house, FIRST, SECOND, THIRD)
    faults = [REFUSED, LIMITED, fixed(b"500 Oops", b"y" * 100), broken(b""), broken(b"HTTP/1.1 502 Bad\r\n\r\n"), OK]
    served = 0
    for turn in range(60):
        house.credentials.healths._known.clear()
        house.credentials.forget()
        scripts = {FIRST: faults[turn % 6], SECOND: faults[turn // 6 % 6]}
        house.provider.script = by_key(scripts)
        answers = await asyncio.gather(*(house.ask(house.request()) for _ in range(4)))
        served += sum(answer.status == 200 for answer in answers)
    assert served == 240
    await until(lambda: not house.plane._tasks and not house.plane.upstream._dialing)
    assert house.plane.budget.held == 0
    assert house.plane.upstream.open_connections == house.plane.upstream.idle_connections <= 16
    await until(lambda: len([1 for line in house.sent() if line["kind"] == "use"]) == len(house.provider.received))
    attempts(house)
