"""What a token allows, a key, and the address that a call comes from."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.plane.conftest import PROMPT, House, Opener, credential
from tests.plane.wire import code

from keybearer.access.tokens import generate
from keybearer.domain import KeySource, Scope
from keybearer.errors import KeyExpired


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


RESTRICTIONS: list[tuple[dict[str, Any], int, str]] = [
    ({"scopes": frozenset({Scope.USAGE_READ})}, 403, "scope_missing"),
    ({"allowed_providers": frozenset({"anthropic"})}, 403, "provider_not_allowed"),
    ({"allowed_models": frozenset({"openai/gpt-4o"})}, 403, "model_not_allowed"),
    ({"ip_allowlist": ("10.0.0.0/8",)}, 403, "address_refused"),
    ({"allowed_providers": frozenset({"openai"}), "allowed_models": frozenset({"openai/gpt-4o-mini"})}, 200, ""),
    ({"ip_allowlist": ("10.0.0.0/8", "127.0.0.0/8")}, 200, ""),
]


@pytest.mark.parametrize(("restriction", "status", "expected"), RESTRICTIONS)
async def test_a_token_does_no_more_than_it_allows(house: House, restriction: dict[str, Any], status: int, expected: str) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, **restriction)
    answer = await house.ask(house.request())
    assert answer.status == status
    if expected:
        assert code(answer) == expected
        assert house.provider.received == []
        assert house.lines() == []


async def test_an_expired_token_stops_at_its_time(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, expires_at=datetime.now(UTC) + timedelta(seconds=0.5))
    assert (await house.ask(house.request())).status == 200
    await asyncio.sleep(0.6)
    house.vault.grants.clear()
    assert code(await house.ask(house.request())) == "token_invalid"


async def test_acting_for_others_is_refused_clearly(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, scopes=frozenset({Scope.GATEWAY_USE, Scope.USERS_ACT_AS}))
    answer = await house.ask(house.request(PROMPT, "X-Keybearer-User: u1"))
    assert (answer.status, code(answer)) == (403, "forbidden")
    assert "not available yet" in answer.body.decode()


async def test_one_connection_may_speak_for_several_people(house: House) -> None:
    """What headers say is worked out once for equal headers, so unequal ones must be told apart in every byte."""
    other = generate()
    house.vault.grants[other.encode()] = replace(house.grant, token_id=other[3:15], allowed_models=frozenset({"openai/gpt-4o"}))
    connection = await house.connect()
    longer = PROMPT[:-1] + b" " * 7 + b"}"
    for data, status in (
        (house.request(), 200),
        (house.request(longer), 200),
        (house.request().replace(house.token.encode(), other.encode()), 403),
        (house.request(PROMPT, "X-Api-Key: " + other), 400),
        (house.request(PROMPT, "Openai-Beta: a"), 200),
        (house.request(PROMPT, "Openai-Beta: b"), 200),
        (house.request().replace(b"Host: gw", b"Host: g@w"), 400),
    ):
        await connection.send(data)
        assert (await connection.answer()).status == status
    assert [request["openai-beta"] for request in house.provider.received] == [None, None, "a", "b"]
    assert [len(request.body) for request in house.provider.received] == [len(PROMPT), len(longer), len(PROMPT), len(PROMPT)]


async def test_a_restricted_token_sees_only_its_models(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, allowed_providers=frozenset({"gemini"}))
    answer = await house.ask(house.request(b"", path="/v1/models", method="GET"))
    assert {model["id"].partition("/")[0] for model in json.loads(answer.body)["data"]} == {"gemini"}


KEYS: list[tuple[dict[str, Any], int, str]] = [
    ({"egress": ("https://api.openai.com:443",)}, 403, "egress_refused"),
    ({"egress": ()}, 403, "egress_refused"),
    ({"allowed_models": frozenset({"gpt-4o"})}, 403, "model_not_allowed"),
    ({"key": "sk-kbtest\r\nx-injected: 1"}, 403, "key_unreadable"),
    ({"key": "sk-kbtest\0"}, 403, "key_unreadable"),
    ({"key": ""}, 403, "key_unreadable"),
    ({"allowed_models": frozenset({"gpt-4o-mini"})}, 200, ""),
]


@pytest.mark.parametrize(("changed", "status", "expected"), KEYS)
async def test_a_key_goes_nowhere_it_is_not_meant_for(house: House, changed: dict[str, Any], status: int, expected: str) -> None:
    house.vault.keys["openai"] = credential(house.vault.providers.get("openai"), **changed)
    answer = await house.ask(house.request())
    assert answer.status == status
    if expected:
        assert code(answer) == expected
        assert b"kbtest" not in answer.body
        assert house.provider.received == []
        assert house.lines() == []


async def test_no_key_and_an_expired_key_are_told_apart(house: House) -> None:
    del house.vault.keys["openai"]
    assert code(await house.ask(house.request())) == "key_missing"

    async def expired(what: str) -> None:
        if what == "key":
            raise KeyExpired

    house.vault.latch = expired
    assert code(await house.ask(house.request())) == "key_expired"


async def test_the_second_key_serves_where_the_first_does_not_allow_the_model(house: House) -> None:
    openai = house.vault.providers.get("openai")
    first = credential(openai, allowed_models=frozenset({"gpt-4o"}))
    second = credential(openai, "sk-kbtest-second-key-of-the-company", source=KeySource.SYSTEM)
    house.vault.keys["openai"], house.vault.further["openai"] = first, (second,)
    answer = await house.ask(house.request())
    assert answer["x-keybearer-key-source"] == "system"
    assert house.provider.received[0]["authorization"] == "Bearer sk-kbtest-second-key-of-the-company"


async def test_the_clients_address_counts_behind_a_declared_proxy(open_house: Opener) -> None:
    async with open_house(proxies=("127.0.0.1", "10.0.0.0/8")) as house:
        house.vault.grants[house.token.encode()] = replace(house.grant, ip_allowlist=("203.0.113.0/24",))
        assert code(await house.ask(house.request())) == "address_refused"
        assert code(await house.ask(house.request(PROMPT, "X-Forwarded-For: 203.0.113.5, 198.51.100.1"))) == "address_refused"
        assert (await house.ask(house.request(PROMPT, "X-Forwarded-For: 9.9.9.9, 203.0.113.5, 10.1.2.3"))).status == 200
        assert house.lines()[0]["client"]["ip"] == "203.0.113.5"
        api = await house.ask(b"GET /api HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\n\r\n")
        assert json.loads(api.body) | {"body": 0} == {"path": "/api", "body": 0, "client": "203.0.113.5", "scheme": "https"}


async def test_forwarding_headers_of_anybody_else_are_hot_air(house: House) -> None:
    house.vault.grants[house.token.encode()] = replace(house.grant, ip_allowlist=("203.0.113.0/24",))
    assert code(await house.ask(house.request(PROMPT, "X-Forwarded-For: 203.0.113.5"))) == "address_refused"
    api = await house.ask(b"GET /api HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\n\r\n")
    assert json.loads(api.body)["client"] == "127.0.0.1"
    assert json.loads(api.body)["scheme"] == "http"
