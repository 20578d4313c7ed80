"""A server on either database, a mock provider, an administrator and a member with a token, whose limits are tried."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.limits.counting import Process, process
from tests.support import provider as mock
from tests.support import server as servers
from tests.support import valkey as valkeys
from tests.support.postgresql import database_settings
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person, Server
from tests.support.valkey import Valkey

OPENAI_KEY = "sk-proj-kbtest-openai-0123456789abcdefghijklmnop"
ANTHROPIC_KEY = "sk-ant-api03-kbtest-anthropic-0123456789abcdefghij"
SCOPES = ("gateway:use", "budgets:write", "usage:read")


@dataclass
class World:
    """All that a story needs."""

    server: Server
    provider: Provider
    admin: Person
    settings: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def person(self) -> Person:
        """Somebody new, signed in, with a key each for two providers."""
        self.count += 1
        email = f"person{self.count}@example.com"
        self.admin.call("POST", "/users", json={"email": email, "password": PASSWORD, "name": "Somebody"})
        person = servers.sign_in(self.server, email)
        person.add_key("openai", OPENAI_KEY)
        person.add_key("anthropic", ANTHROPIC_KEY)
        return person

    def ask(self, token: str, model: str = "openai/gpt-4o-mini", **more: Any) -> httpx2.Response:
        """One chat call through the gateway."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50, **more}
        headers = {"authorization": f"Bearer {token}"}
        return httpx2.post(f"{self.server.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    def heard(self) -> int:
        """How many calls have reached the provider."""
        return len(self.provider.requests())

    def until_heard(self, calls: int) -> None:
        """Wait until that many have; what they may cost is reserved by then."""
        deadline = time.monotonic() + 20
        while self.heard() < calls:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def settled(person: Person, budget: dict[str, Any]) -> dict[str, Any]:
    """A limit as it stands once nothing is reserved any more."""
    deadline = time.monotonic() + 10
    while True:
        found: dict[str, Any] = person.call("GET", f"/budgets/{budget['id']}")
        if not found["reserved"]:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def early_in_a_minute(seconds: float = 20.0) -> None:
    """Wait until the clock's minute lasts that long: a window that ends in mid-story would begin anew."""
    left = 60 - time.time() % 60
    if left < seconds:
        time.sleep(left + 0.05)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with mock.running() as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("limits") / "data"
    with database_settings(request) as database, servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        settings = {"egress_allow": "127.0.0.1"} | database
        world = World(server, provider, servers.set_up(server), settings)
        for each in ("openai", "anthropic"):
            world.admin.call("PUT", f"/providers/{each}", json={"base_url": provider.base_url(each)})
        servers.heard(world.admin)
        yield world


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with valkeys.running() as running:
        yield running


@pytest.fixture
async def three(database_urls: tuple[str, str], tmp_path: Path, valkey: Valkey) -> AsyncIterator[Sequence[Process]]:
    """Processes of one machine."""
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(process(database_urls, tmp_path, valkey.url)) for _ in range(3)]
        for each in running:
            await each.keep()
        yield running
