"""Refused attempts on record: who was turned away, from where, asking for what. Bounded, so that nobody can fill the disk with them.

A refusal is noted in memory, as what answers it may not wait, and written with the next turn. Of one address and token a few a
minute are recorded one by one, the rest is counted and told in one record when the minute is over; all of a process together have
a budget, beyond which only counts are told. So a flood costs some 700 records an hour, however it is spread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.audit import lines, management
from keybearer.domain import Caller, Client, ManagementRecord, Role
from keybearer.errors import (
    EgressRefused,
    Forbidden,
    Frozen,
    KeybearerError,
    KeyUnusable,
    NotFound,
    RateLimited,
    RouteUnknown,
    Unauthenticated,
)
from keybearer.store.db import Actor, Database

PER_MINUTE, PER_MINUTE_KNOWN = 10, 60
"""Refusals of one address and token that are recorded one by one: of strangers, and of people and tokens that are known."""
MINUTE = 60.0
BURST, EVERY = 120, 6.0
"""Records of all together: so many at once, then one every so many seconds."""
REMEMBERED = 2000
"""Addresses and tokens counted apart in a minute; the others are counted together."""
TOLD = 20
"""Counts told apart in a minute, the largest first; the others are added up."""
SLICE = 20
"""Records in one transaction: they hold up everybody's changes."""
_IPV6_PREFIX = 64

Key = tuple[str, str]
"""Place, and token or person."""
_OTHERS: Key = ("", "")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One attempt that was turned away."""

    action: str
    code: str
    """The error's."""
    client: Client
    user_id: UUID | None = None
    """Whose token or session it was, if that is known."""
    token_id: str = ""
    """Of a token that has a token's form: whether it is valid or not."""
    subject: str = ""
    detail: tuple[tuple[str, str], ...] = ()

    def record(self, **more: str) -> ManagementRecord:
        """Return what goes on record."""
        detail = self.detail + tuple(more.items())
        if self.user_id is None:
            told = cut({"ip": self.client.ip, "user_agent": self.client.user_agent, "token_id": self.token_id})
            return ManagementRecord(self.action, None, self.subject, self.code, detail=told + detail)
        # As which role is not said in a record.
        caller = Caller(self.user_id, Role.MEMBER, frozenset(), token_id=self.token_id or None, client=self.client)
        return ManagementRecord(self.action, caller, self.subject, self.code, detail=detail)


def is_refusal(error: KeybearerError) -> bool:
    """Whether an error turns somebody away, and nobody has recorded it yet: not our own failures, nor what is merely malformed."""
    refused = isinstance(error, Unauthenticated | Forbidden | KeyUnusable | EgressRefused | NotFound | RateLimited | Frozen)
    return refused and not isinstance(error, RouteUnknown) and not error.is_recorded


@dataclass(slots=True)
class _Count:
    last: Refusal
    noted: int = 0
    rest: int = 0


class Refusals:
    """What one process has refused and not yet recorded. To be used from its event loop's thread alone."""

    def __init__(self, db: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._clock = clock
        self._queue: deque[ManagementRecord] = deque()
        self._counts: dict[Key, _Count] = {}
        self._minute_ends = 0.0
        self._budget_until = 0.0
        """When the whole burst will be there again (the GCRA's theoretical arrival time)."""

    @classmethod
    def of(cls, db: Database) -> Refusals:
        """Return the one object of this process and database, so that all its refusals share one budget."""
        return _OF.setdefault(db, cls(db))

    def note(self, refusal: Refusal) -> None:
        """Take a refusal in; cheap, and never fails."""
        if self.admits(refusal):
            self._queue.append(refusal.record())

    def admits(self, refusal: Refusal) -> bool:
        """Whether a refusal is to be recorded by itself; else it has been counted."""
        self._turn_over()
        key = (place_of(refusal.client.ip), refusal.token_id or str(refusal.user_id or ""))
        if key not in self._counts and len(self._counts) >= REMEMBERED:
            key = _OTHERS
        count = self._counts.setdefault(key, _Count(refusal))
        count.last = refusal
        if count.noted < (PER_MINUTE_KNOWN if refusal.user_id else PER_MINUTE) and self._may_record():
            count.noted += 1
            return True
        count.rest += 1
        return False

    async def flush(self, *, ends: bool = False) -> int:
        """Write what waits; ``ends``: the counts of the minute under way too. Return how many records that was.

        Raises ``Unavailable``; what was not written waits on.
        """
        self._turn_over(ends=ends)
        written = 0
        while self._queue:
            some = [self._queue[place] for place in range(min(SLICE, len(self._queue)))]
            async with self._db.write(Actor.system()) as tx:
                await self._record(tx, some)
            for _ in some:
                self._queue.popleft()
            written += len(some)
        return written

    async def _record(self, tx: AsyncConnection, records: Sequence[ManagementRecord]) -> None:
        for record in records:
            await management.record(self._db, tx, record)

    def _turn_over(self, *, ends: bool = False) -> None:
        """When the minute is over, tell how many more there were."""
        now = self._clock()
        if now < self._minute_ends and not ends:
            return
        self._minute_ends = now + MINUTE
        more = sorted((count for count in self._counts.values() if count.rest), key=lambda count: -count.rest)
        self._counts = {}
        others = 0
        for place, count in enumerate(more):
            if place < TOLD and self._may_record():
                self._queue.append(count.last.record(more=str(count.rest)))
            else:
                others += count.rest
        if others:
            together = replace(more[-1].last, client=Client(), user_id=None, token_id="", subject="", detail=())
            self._queue.append(together.record(more=str(others)))

    def _may_record(self) -> bool:
        now = self._clock()
        until = max(self._budget_until, now) + EVERY
        if until - now > BURST * EVERY:
            return False
        self._budget_until = until
        return True


_OF: WeakKeyDictionary[Database, Refusals] = WeakKeyDictionary()


def harmless(text: str) -> str:
    """Return an id as it stands in a request's path if it is one: what people typed there may be a secret."""
    try:
        return str(UUID(text))
    except ValueError:
        return ""


def cut(detail: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the facts that say something, cut to length."""
    return tuple((name, lines.clean(value, lines.DETAIL_VALUE)) for name, value in detail.items() if value)


def place_of(ip: str) -> str:
    """Return an address, or the network that an IPv6 customer gets: one has 2⁶⁴ addresses to try from."""
    try:
        address = ip_address(ip)
    except ValueError:
        return ip
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return f"{int(address) >> (128 - _IPV6_PREFIX):x}"
    return str(getattr(address, "ipv4_mapped", None) or address)
