"""Somebody who uses a key, the journal of this process, and what ships it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.audit.audit_samples import Person, add_person

from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.store.db import Database


@pytest.fixture
async def who(database: Database) -> Person:
    return await add_person(database)


@pytest.fixture
async def journal(database: Database, tmp_path: Path) -> AsyncIterator[Journal]:
    opened = await Journal.open(database, tmp_path / "journal", "journal")
    yield opened
    await opened.close()


@pytest.fixture
def shipper(database: Database, tmp_path: Path, journal: Journal) -> Shipper:
    return Shipper(database, tmp_path / "journal", journal)
