"""What was removed from the database and may still stand in its live files: free pages, logs, dead rows."""

from __future__ import annotations

from contextlib import suppress

from keybearer.errors import Unavailable
from keybearer.store.db import Database

OF_OWNERS = ("owner_key", "secret", "secret_version")
"""What is sealed of an owner's, and what with."""


class Remains:
    """Of ``tables``, as far as this process knows; see the module."""

    def __init__(self, db: Database, *tables: str) -> None:
        self._db = db
        self._tables = tables
        self._removals, self._erased = 1, 0
        """How often something was removed, and up to which time it is erased. At first once: a process that was killed did not say."""

    async def removed(self) -> None:
        """After a commit that removed rows: empty SQLite's log at once; what that cannot do now, ``erase`` does later."""
        self._removals += 1
        with suppress(Unavailable):
            await self._db.truncate_log()

    async def erase(self) -> None:
        """Have the live files forget what was removed. For a job: on PostgreSQL it takes its time.

        Raises ``Unavailable`` where somebody holds on to pages as they were.
        """
        removals = self._removals
        if self._erased < removals:
            await self._db.erase(*self._tables)
            self._erased = removals  # what was removed meanwhile may have been missed, and is for the next time
