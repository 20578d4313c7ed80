"""Values that are kept elsewhere: fetched at use, kept in memory for a short time, never stored.

A value is known by the secret and version that points to it, never by where it points: what one owner may read, another is not
given because both name it. One fetch at a time for each; a failure is remembered for a few seconds, so that a store that is down
costs a call its time-out once and not each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from keybearer.access.fields import has_control
from keybearer.domain import Caller, SecretBytes, SecretType
from keybearer.errors import Invalid, KeybearerError, ReferenceUnreachable, ReferenceWrong
from keybearer.store.changes import EVERYTHING, Change
from keybearer.vault.references import Leaves, Reference
from keybearer.vault.stores import Store
from keybearer.vault.values import text_of

log = structlog.get_logger(__name__)

SECONDS = 45.0
"""For how long a value serves after it was fetched, all caches together: those of the gateway end with it."""
FAILURE_SECONDS = 10.0
_TIMEOUT = 15.0
"""For everything that a store does for one value."""
_ENTRIES = 1024

Key = tuple[UUID, int]
"""A secret's id and version."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value that is to be fetched."""

    reference: Reference
    owner_id: UUID
    secret_type: SecretType


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and until when it may serve."""

    value: SecretBytes
    until: datetime
    wanted: Wanted


class External:
    """One per process; see the module. ``stores`` by the name of the source."""

    def __init__(self, leaves: Leaves | None = None, stores: Mapping[str, Store] | None = None) -> None:
        self._leaves = leaves or Leaves()
        self._stores = dict(stores or {})
        self._known: dict[Key, Found | KeybearerError] = {}
        self._fetching: dict[Key, asyncio.Task[Found]] = {}
        self._failing: set[Key] = set()

    def granted(self, caller: Caller, owner_id: UUID, given: Mapping[str, Any] | str) -> Reference:
        """A reference that ``caller`` may make for this owner; see ``Leaves.granted``."""
        return self._leaves.granted(caller, owner_id, given)

    async def value(self, key: Key, wanted: Wanted) -> Found:
        """The value for a use. Raises ``ReferenceUnreachable``, ``ReferenceDenied``, ``ReferenceMissing``, ``ReferenceWrong``."""
        self._leaves.require(wanted.reference, wanted.owner_id)
        known = self._known.get(key)
        if isinstance(known, Found):
            return known
        if known is not None:
            raise type(known)(known.message, hint=known.hint)  # one of its own: each is raised, and gets a traceback, anew
        return await self._fetch_once(key, wanted)

    async def fresh(self, wanted: Wanted, key: Key | None = None) -> SecretBytes:
        """The value as the store has it now, for a test or before a reference is saved. Raises what ``value`` does."""
        self._leaves.require(wanted.reference, wanted.owner_id)
        if key is None:
            return (await self._fetch(wanted)).value
        self._known.pop(key, None)
        return (await self._fetch_once(key, wanted)).value

    async def is_replaced(self, key: Key, refused: SecretBytes) -> bool:
        """Whether the store has another value by now than one that a provider refused. Raises what ``value`` does."""
        known = self._known.get(key)
        if not isinstance(known, Found):
            return False
        return (await self.fresh(known.wanted, key)).reveal() != refused.reveal()

    def forget(self, change: Change) -> None:
        """Drop what a changed secret pointed to, and everything where the change says no more than that there was one."""
        if change.subject == EVERYTHING:
            self._known.clear()
        elif change.subject == "secret":
            for key in [key for key in self._known if str(key[0]) == change.subject_id]:
                del self._known[key]

    async def _fetch_once(self, key: Key, wanted: Wanted) -> Found:
        task = self._fetching.get(key)
        if task is None:
            task = self._fetching[key] = asyncio.get_running_loop().create_task(self._fetch(wanted))
            task.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(task)  # a waiter that is cancelled takes nobody else along

    def _fetched(self, key: Key, task: asyncio.Task[Found]) -> None:
        self._fetching.pop(key, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._failing.discard(key)
            self._keep(key, task.result(), SECONDS)
        elif isinstance(error, KeybearerError):
            if key not in self._failing and len(self._failing) < _ENTRIES:
                self._failing.add(key)
                log.warning("an external secret cannot be read", secret=str(key[0]), code=error.code, reason=error.message)
            self._keep(key, error.with_traceback(None), FAILURE_SECONDS)

    def _keep(self, key: Key, what: Found | KeybearerError, seconds: float) -> None:
        while len(self._known) >= _ENTRIES:
            del self._known[next(iter(self._known))]
        self._known[key] = what

        def drop() -> None:
            if self._known.get(key) is what:
                del self._known[key]

        asyncio.get_running_loop().call_later(seconds, drop)

    async def _fetch(self, wanted: Wanted) -> Found:
        until = datetime.now(UTC) + timedelta(seconds=SECONDS)
        reference = wanted.reference
        store = self._stores.get(reference.source)
        if store is None:
            raise ReferenceUnreachable(
                f"This server is not set up to read from {reference.source}.", hint="See docs/references.md."
            )
        try:
            async with asyncio.timeout(_TIMEOUT):
                found = await store.read(reference)
        except TimeoutError:
            raise ReferenceUnreachable(f"{reference.source} did not answer within {_TIMEOUT:g} seconds.") from None
        return Found(_usable(found, wanted), until, wanted)


def _usable(found: SecretBytes, wanted: Wanted) -> SecretBytes:
    """The value as one that people enter would be: text of a bounded length that a header can carry."""
    try:
        text = text_of(found, wanted.secret_type)
    except Invalid as error:
        raise ReferenceWrong(f"At {wanted.reference}, the {error.message}") from None
    if not text.strip() or has_control(text, lines=wanted.secret_type is SecretType.CUSTOM):
        problem = "is nothing" if not text.strip() else "are control or other invisible characters"
        raise ReferenceWrong(f"At {wanted.reference} there {problem}.")
    return SecretBytes(text.encode())
