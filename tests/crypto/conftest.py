"""A keyring on either database, and the database as another process sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.crypto.keyrings import wrapper_of

from keybearer.crypto.keyring import Keyring
from keybearer.store.db import Database


@pytest.fixture
async def keyring(database: Database) -> Keyring:
    return await Keyring.open(database, wrapper_of())


@pytest.fixture
async def second(database_urls: tuple[str, str]) -> AsyncIterator[Database]:
    """The same database as another process sees it."""
    db = await Database.open(*database_urls)
    yield db
    await db.close()
