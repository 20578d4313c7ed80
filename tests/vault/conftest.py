"""A deployment with its services."""

from __future__ import annotations

import pytest
from tests.support.vault import World, world_on

from keybearer.store.db import Database


@pytest.fixture
async def world(database: Database) -> World:
    return await world_on(database)
