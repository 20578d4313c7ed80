"""A server on either database, a mock provider that plays all model providers, and people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx2
import pytest
from tests.support import provider as mock
from tests.support import server as servers
from tests.support.postgresql import database_settings
from tests.support.provider import Provider
from tests.support.server import PASSWORD, Person, Server

from keybearer.catalog import Catalog


@dataclass
class World:
    """All that a story needs."""

    server: Server
    provider: Provider
    admin: Person
    people: dict[str, Person] = field(default_factory=dict)

    def person(self, name: str) -> Person:
        """Somebody with an account of their own, signed in."""
        if name not in self.people:
            account = {"email": f"{name}@example.com", "password": PASSWORD, "name": name.title()}
            self.admin.call("POST", "/users", json=account)
            self.people[name] = servers.sign_in(self.server, account["email"])
        return self.people[name]

    def move(self, *names: str) -> None:
        """Send predefined providers' calls to the mock provider, as an administrator would; every process has heard of it."""
        now_at = {row["name"]: row["base_url"] for row in self.admin.call("GET", "/providers")}
        there = [name for name in names if now_at[name] != self.provider.base_url(name)]
        for name in there:
            self.admin.call("PUT", f"/providers/{name}", json={"base_url": self.provider.base_url(name)})
        if there:
            servers.heard(self.admin)

    def move_back(self, *names: str) -> None:
        """Take the administrator's addresses back."""
        for name in names:
            self.admin.call("PUT", f"/providers/{name}", json={"base_url": Catalog.load().get(name).base_url})

    def ask(self, token: str, model: str, path: str = "/v1/chat/completions", **more: object) -> httpx2.Response:
        """One call through the gateway."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        headers = {"authorization": f"Bearer {token}"}
        return httpx2.post(f"{self.server.url}{path}", json=body, headers=headers, timeout=30)

    def last(self) -> dict[str, object]:
        """The last request that reached the mock provider."""
        return self.provider.requests()[-1]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with mock.running() as running:
        yield running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("registry") / "data"
    with database_settings(request) as database, servers.running(data_dir, egress_allow="127.0.0.1", **database) as server:
        yield World(server, provider, servers.set_up(server))
