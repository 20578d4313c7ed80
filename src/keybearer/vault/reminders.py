"""What people are told of their secrets: that one expires, should be replaced, or is refused by its provider.

In the console, and by mail and signed webhook to those who want them. An occasion is a secret, the moment it ends and a number of days
before. For each person and channel it is a row that exists once, so that processes and restarts make no second. A mail or message is
taken by one process for a while (the row's ``runner``); one that was killed in the moment between the server's yes and its own note
sends it again, under the same id. No reminder has any part of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import UUID, uuid4

import structlog

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.domain import Caller, ManagementRecord, Owner, OwnerKind
from keybearer.errors import KeybearerError, NotFound, UpstreamGone
from keybearer.store.db import Actor, Database
from keybearer.store.queries import deployment, users
from keybearer.store.queries import notifications as rows
from keybearer.vault.hooks import Hooks

Kind = Literal["expiry", "rotation", "failure"]
COLUMNS: dict[Kind, str] = {"expiry": "expires_at", "rotation": "rotate_at", "failure": "failed_at"}
OVERDUE = timedelta(days=1)
"""What should have been replaced is told until then; what has expired shows itself."""
FAILED_WITHIN = timedelta(days=7)
"""Whoever becomes responsible for a secret is not told of failures before that."""
BATCH = 500
LEASE = timedelta(minutes=2)
"""For which a mail is one process's; sending it takes at most a third of that."""
TRIES = 8
AT_ONCE = 50
"""Mails of one turn."""

log = structlog.get_logger(__name__)


class Sender(Protocol):
    """What sends mail."""

    async def send(self, to: str, subject: str, text: str, message_id: str) -> None:
        """Send one. Raises ``KeybearerError``."""


class Reminders:
    """Finds what is to be told, tells it, and shows it; see the module. ``days``: how many before."""

    def __init__(
        self,
        db: Database,
        sender: Sender | None,
        days: Sequence[int],
        public_url: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        hooks: Hooks | None = None,
    ) -> None:
        self._db = db
        self._sender = sender
        self._days = sorted({day for day in days if day > 0})
        self._url = public_url
        self._clock = clock
        self._hooks = hooks

    async def turn(self) -> None:
        """Find and send. For a job; safe in every process at once. Raises ``Unavailable``."""
        await self.find()
        await self.send()

    async def find(self) -> None:
        """Note every occasion that has come; those noted already stay as they are."""
        now = self._clock()
        plans: dict[Kind, tuple[Sequence[int], datetime]] = {
            "expiry": (self._days, now),
            "rotation": ([0, *self._days] if self._days else [], now - OVERDUE),
            "failure": ([0], now - FAILED_WITHIN),
        }
        for kind, (days, since) in plans.items():
            if not days:
                continue
            column = COLUMNS[kind]
            after: UUID | None = None
            while True:
                async with self._db.write(Actor.system()) as tx:
                    found = await rows.due(tx, column, since, now + timedelta(days=days[-1]), after, BATCH)
                    for row in found:
                        before = next(day for day in days if row.due_at - timedelta(days=day) <= now or day == days[-1])
                        await rows.add(tx, self._told(row, kind, before, await rows.told(tx, row.owner_kind, row.owner_id), now))
                if len(found) < BATCH:
                    break
                after = found[-1].id

    def _told(self, row: Any, kind: Kind, days: int, people: Sequence[Any], now: datetime) -> list[dict[str, Any]]:
        common = {
            "secret_id": row.id, "kind": kind, "due_at": row.due_at, "days": days, "provider": row.provider, "name": row.name,
            "attempts": 0, "next_at": now, "created_at": now,
        }  # fmt: skip
        made = []
        for person in people:
            made.append(common | {"id": uuid4(), "user_id": person.id, "channel": "console", "state": "sent"})
            if self._sender is not None and (person.mailed is None or kind in person.mailed):
                made.append(common | {"id": uuid4(), "user_id": person.id, "channel": "mail", "state": "pending"})
            if self._hooks is not None and person.is_hooked and (person.hooked is None or kind in person.hooked):
                made.append(common | {"id": uuid4(), "user_id": person.id, "channel": "webhook", "state": "pending"})
        return made

    async def send(self) -> None:
        """Send the mails and messages that wait. What a server does not take is tried again later, and at last given up."""
        channels = [name for name, sends in (("mail", self._sender), ("webhook", self._hooks)) if sends is not None]
        runner = uuid4()
        for _ in range(AT_ONCE if channels else 0):
            now = self._clock()
            async with self._db.write(Actor.system()) as tx:
                # People's own addresses are as closed to a frozen deployment as providers are; the operator's mail server is not.
                open_to = [name for name in channels if name != "webhook" or not await deployment.is_frozen(tx)]
                row = await rows.take(tx, runner, now, now + LEASE, open_to)
            if row is None:
                return
            state, later = await self._sent(row), now + timedelta(minutes=2 ** min(row.attempts, 10))
            async with self._db.write(Actor.system()) as tx:
                await rows.settle(tx, row, state, later)
                if row.channel == "webhook" and state in {"pending", "failed"}:
                    await rows.postpone(tx, row, later)

    async def _sent(self, row: Any) -> str:
        async with self._db.read(Actor.system()) as tx:
            person = await users.get(tx, row.user_id)
            is_due = await rows.still_due(tx, row.secret_id, COLUMNS[row.kind], row.due_at)
        if not is_due or person is None or not person.is_active:
            return "dropped"
        try:
            if row.channel == "mail" and self._sender is not None:
                subject, text = written(row, self._url)
                await self._sender.send(person.email, subject, text, str(row.id))
            elif row.channel == "webhook" and self._hooks is not None:
                await self._hooks.tell(row.user_id, f"msg_{row.id.hex}", f"secret.{row.kind}", told(row, self._url))
        except (NotFound, UpstreamGone):
            return "dropped"
        except KeybearerError as error:
            log.warning("a reminder was not taken", notification=str(row.id), attempt=row.attempts, code=error.code)
            return "pending" if row.attempts < TRIES else "failed"
        return "sent"

    async def unread(self, caller: Caller) -> int:
        """How many of the caller's reminders they have not read."""
        async with self._db.read(Actor.user(caller.user_id)) as tx:
            return await rows.unread(tx, caller.user_id)

    async def page(self, caller: Caller, cursor: str | None, limit: int) -> tuple[Sequence[Any], str | None]:
        """The caller's reminders, newest first. Raises ``Invalid``."""
        async with self._db.read(Actor.user(caller.user_id)) as tx:
            return await rows.page(tx, caller.user_id, cursor, limit)

    async def read(self, caller: Caller, notification_id: UUID) -> None:
        """Mark one as read. Raises ``NotFound``."""
        async with self._db.write(Actor.user(caller.user_id)) as tx:
            if not await rows.read(tx, caller.user_id, notification_id, self._clock()):
                raise NotFound

    async def mailed(self, caller: Caller) -> list[Kind]:
        """Which kinds come by mail."""
        async with self._db.read(Actor.user(caller.user_id)) as tx:
            chosen = await rows.mailed(tx, caller.user_id)
        return [kind for kind in COLUMNS if chosen is None or kind in chosen]

    async def set_mailed(self, caller: Caller, kinds: Sequence[Kind]) -> list[Kind]:
        """Choose them, for what is found from now on. Raises ``Forbidden`` for access tokens."""
        async with attempt(self._db, "user.set_mailed", caller, str(caller.user_id)):
            policy.require_person(caller)
            chosen = [kind for kind in COLUMNS if kind in kinds]
            owner = Owner(OwnerKind.USER, caller.user_id)
            detail = (("mail", " ".join(chosen)),)
            async with self._db.write(Actor.user(caller.user_id)) as tx:
                await rows.set_mailed(tx, caller.user_id, list(chosen))
                record = ManagementRecord("user.set_mailed", caller, str(caller.user_id), owner=owner, detail=detail)
                await management.record(self._db, tx, record)
            return chosen


def told(row: Any, url: str) -> dict[str, Any]:
    """What a webhook's message says."""
    return {
        "secret_id": str(row.secret_id),
        "provider": row.provider,
        "name": row.name,
        "due_at": row.due_at.isoformat(),
        "days": row.days,
        "url": f"{url}/secrets/{row.secret_id}",
    }


def written(row: Any, url: str) -> tuple[str, str]:
    """Subject and text of a mail."""
    day = f"{row.due_at:%d %B %Y, %H:%M} UTC"
    if row.kind == "expiry":
        what = f"Your secret '{row.name}' for {row.provider} expires on {day}."
        then = "From then on it is not used any more. Enter a new value, or change its expiry:"
    elif row.kind == "failure":
        what = f"Your secret '{row.name}' for {row.provider} is refused by its provider since {day}."
        then = "It is not used any more. See what the provider says, and enter a new value:"
    else:
        what = f"Your secret '{row.name}' for {row.provider} should be replaced by {day}."
        then = "Make a new one at the provider and rotate it here:"
    return what, f"{what}\n\n{then}\n{url}/secrets/{row.secret_id}\n\nWhich reminders come by mail you choose in Keybearer.\n"
