"""Fixtures of the store's own tests: databases that may be spoilt."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from tests.support.postgresql import Server


@pytest.fixture
def fresh_postgresql(postgresql_server: Server) -> Iterator[tuple[str, str]]:
    """``(url, direct_url)`` of an empty PostgreSQL database that was never migrated, dropped after the test."""
    name = f"kbtest_{uuid4().hex}"
    yield postgresql_server.create(name)
    postgresql_server.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """``(url, direct_url)`` of an empty database of either kind that was never migrated."""
    if request.param == "postgresql":
        urls: tuple[str, str] = request.getfixturevalue("fresh_postgresql")
        return urls
    return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('fresh')}/fresh.db", ""
