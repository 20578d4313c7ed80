"""A deployment with its services."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.vault import World, world_on

from keybearer.store.db import Database


@pytest.fixture
async def world(database: Database) -> World:
    return await world_on(database)


@pytest.fixture
async def sqlite_world(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[World]:
    """For tables of bad input, whose answers do not depend on the database."""
    path = tmp_path / "keybearer.db"
    shutil.copyfile(sqlite_template, path)
    db = await Database.open(f"sqlite+aiosqlite:///{path}")
    yield await world_on(db)
    await db.close()
