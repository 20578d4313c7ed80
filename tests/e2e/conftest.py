"""A server, a mock provider and a person who has set both up: shared by the stories of one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support import provider as mock
from tests.support import server as servers
from tests.support.postgresql import Server as PostgreSQL
from tests.support.postgresql import database_settings, new_database
from tests.support.provider import Provider
from tests.support.server import Person, Server

KEYS = {
    "openai": "sk-proj-kbtest-openai-0123456789abcdefghijklmnop",
    "anthropic": "sk-ant-api03-kbtest-anthropic-0123456789abcdefghij",
    "gemini": "AIzaSy-kbtest-gemini-0123456789abcdefghi",
}


@dataclass
class World:
    """All that a story needs."""

    server: Server
    provider: Provider
    admin: Person
    token: str = field(repr=False)

    def point_providers(self) -> None:
        """Send the predefined providers' traffic to the mock provider, as an administrator would."""
        for name in (*KEYS, "xai", "openrouter"):
            self.admin.call("PUT", f"/providers/{name}", json={"base_url": self.provider.base_url(name)})


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with mock.running() as running:
        yield running


@pytest.fixture(scope="module")
def world(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with servers.running(tmp_path_factory.mktemp("server") / "data", egress_allow="127.0.0.1") as server:
        yield settle(server, provider)


def settle(server: Server, provider: Provider) -> World:
    """Set the server up, point it at the mock provider, store one key each, make a token."""
    world = World(server, provider, servers.set_up(server), "")
    world.point_providers()
    for name, key in KEYS.items():
        world.admin.add_key(name, key)
    world.token = world.admin.token(scopes=("gateway:use", "secrets:write", "usage:read", "audit:read"))
    return world


@pytest.fixture(scope="module")
def postgresql_urls(postgresql_server: PostgreSQL) -> Iterator[tuple[str, str]]:
    """``(url, direct_url)`` of a new PostgreSQL database with nothing in it: the server migrates it."""
    with new_database(postgresql_server) as urls:
        yield urls


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings that name an empty database."""
    with database_settings(request) as settings:
        yield settings


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
