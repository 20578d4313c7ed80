"""The system's OpenRouter key in place of a provider's: real vault, both databases, a provider that plays OpenRouter too."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from tests.plane.conftest import CHAT, House, Opener
from tests.plane.wire import Answer, Received, fixed, until
from tests.support.vault import World, value, world_on

from keybearer.access.tokens import NewToken
from keybearer.catalog import Catalog
from keybearer.domain import Caller, Role
from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.openrouter import Listing
from keybearer.store.db import Database
from keybearer.vault.providers import Providers
from keybearer.vault.resolve import Resolver
from keybearer.vault.secrets import NewSecret

ROUTER_KEY = "sk-or-v1-kbtest-0123456789abcdef"
LISTED = {"data": [{"id": "openai/gpt-4o"}, {"id": "google/gemini-2.5-flash"}, {"id": "anthropic/claude-sonnet-4.5"}]}
COSTED = json.dumps({**json.loads(CHAT), "usage": {"prompt_tokens": 9, "completion_tokens": 3, "cost": 0.002}}).encode()


async def play(request: Received) -> None:
    """OpenRouter: its list is everybody's to read, everything else is a chat."""
    body = json.dumps(LISTED).encode() if request.line.startswith(b"GET ") else COSTED
    await fixed(b"200 OK", body, b"content-type: application/json")(request)


class Place:
    """A deployment that offers OpenRouter, and a person without a key."""

    def __init__(self, house: House, world: World, person: Caller, admin: Caller) -> None:
        self.house, self.world, self.person, self.admin = house, world, person, admin

    async def chat(self, model: str, path: str = "/v1/chat/completions", **more: Any) -> Answer:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}).encode()
        return await self.house.ask(self.house.request(body, path=path))

    def chats(self) -> list[Received]:
        return [request for request in self.house.provider.received if request.line.startswith(b"POST ")]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def place(database_urls: tuple[str, str], open_house: Opener) -> AsyncIterator[Place]:
    db = await Database.open(*database_urls)
    world = await world_on(db, os.urandom(32))
    world = replace(
        world,
        providers=Providers(db, world.keyring, Catalog.load(), EgressPolicy(("127.0.0.1",)), world.secrets, "openrouter"),
        resolver=Resolver(db, world.keyring, world.secrets, "openrouter"),
    )
    async with open_house(world=world, interval=0.25) as house:
        house.provider.script = play
        house.credentials.openrouter = Listing(house.plane.upstream)
        admin, person = await world.person("root", Role.ADMIN), await world.person("alice")
        for name in ("openrouter", "openai"):
            await world.providers.update(admin, name, {"base_url": f"http://127.0.0.1:{house.provider.port}/{name}"})
        new = NewSecret("openrouter", value(ROUTER_KEY), system=True, save_anyway=True)
        await world.secrets.create(admin, new)
        _, house.token = await world.tokens.create(person, NewToken("test"))
        yield Place(house, world, person, admin)
    await db.close()


def code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


async def test_a_chat_without_a_key_of_ones_own_goes_there_under_its_full_name(place: Place) -> None:
    for name, full in (
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("gpt-4o", "openai/gpt-4o"),
        ("gemini-2.5-flash", "google/gemini-2.5-flash"),
    ):
        answer = await place.chat(name, temperature=0.5)
        assert (answer.status, answer.body) == (200, COSTED)
        assert answer["x-keybearer-key-source"] == "openrouter"
        assert answer["x-keybearer-provider"] == "openrouter"
        sent = place.chats()[-1]
        assert sent.line.startswith(b"POST /openrouter/v1/chat/completions ")
        assert sent["authorization"] == f"Bearer {ROUTER_KEY}"
        assert json.loads(sent.body) == {"model": full, "messages": [{"role": "user", "content": "Hello"}], "temperature": 0.5}
    lists = [request for request in place.house.provider.received if request.line.startswith(b"GET ")]
    assert [request.line.split()[1] for request in lists] == [b"/openrouter/v1/models"]  # read once, without a key
    assert lists[0]["authorization"] is None
    await until(lambda: len(place.house.sent()) == 6)
    use, outcome = place.house.sent()[:2]
    assert (use["provider"], use["model"], use["source"]) == ("openrouter", "openai/gpt-4o", "openrouter")
    assert outcome["cost_micro_usd"] == 2000  # as OpenRouter states it


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "openai/gpt-4o-2099", "messages": []}),  # not listed
        ("/v1/embeddings", {"model": "openai/gpt-4o", "input": "x"}),
        ("/v1/responses", {"model": "openai/gpt-4o", "input": "x"}),
        ("/v1/messages", {"model": "anthropic/claude-sonnet-4.5", "max_tokens": 5, "messages": []}),
        ("/v1/chat/completions", {"model": "groq/openai/gpt-4o", "messages": []}),
    ],
    ids=["not listed", "embeddings", "responses", "messages", "an aggregator's"],
)
async def test_everything_else_has_no_key(place: Place, path: str, body: dict[str, Any]) -> None:
    answer = await place.house.ask(place.house.request(json.dumps(body).encode(), path=path))
    assert answer.status == 404
    assert b"key_missing" in answer.body
    assert place.chats() == []


async def test_who_declines_or_has_a_key_of_their_own_is_not_served_so(place: Place) -> None:
    assert (await place.chat("gpt-4o")).status == 200
    await place.world.users.set_fallback(place.person, False)
    await until(lambda: not place.house.credentials._by_user)
    answer = await place.chat("gpt-4o")
    assert (answer.status, code(answer)) == (404, "key_missing")
    await place.world.users.set_fallback(place.person, True)
    own = NewSecret("openai", value("sk-proj-kbtest-own-0123456789abcdefghijklmnop"), save_anyway=True)
    made = await place.world.secrets.create(place.person, own)
    await until(lambda: not place.house.credentials._by_user)
    assert (await place.chat("gpt-4o"))["x-keybearer-key-source"] == "user"
    await place.world.secrets.update(place.person, made.id, {"is_active": False})
    await until(lambda: not place.house.credentials._by_user)
    answer = await place.chat("gpt-4o")
    assert (answer.status, code(answer)) == (403, "key_inactive")


async def test_a_token_that_is_limited_to_providers_reaches_no_other_by_a_detour(place: Place) -> None:
    limited = NewToken("limited", allowed_providers=frozenset({"openai"}))
    _, place.house.token = await place.world.tokens.create(place.person, limited)
    answer = await place.chat("gpt-4o")
    assert (answer.status, code(answer), place.chats()) == (404, "key_missing", [])
    both = NewToken("both", allowed_providers=frozenset({"openai", "openrouter"}))
    _, place.house.token = await place.world.tokens.create(place.person, both)
    assert (await place.chat("gpt-4o")).status == 200


async def test_a_list_that_cannot_be_read_is_an_error_of_the_providers(place: Place) -> None:
    place.house.provider.script = fixed(b"500 Oops", b"{}")
    for _ in range(2):
        answer = await place.chat("gpt-4o")
        assert (answer.status, code(answer)) == (502, "upstream_unreachable")
    assert len(place.house.provider.received) == 1  # not asked again at once
