"""Sign-in and sessions: a random cookie in the browser, its hash here; two time-outs; a new one at every sign-in."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt, record_alone
from keybearer.access.fields import EMAIL_LIMIT, has_control, normalised_email
from keybearer.access.limiter import Limiter, Refused
from keybearer.access.passwords import Passwords
from keybearer.audit import management
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, Client, ManagementRecord, Owner, OwnerKind, Role
from keybearer.errors import EnvelopeError, NotFound, Overloaded, SessionInvalid, SignInAgain, SignInFailed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import lookups
from keybearer.store.queries import sessions as rows
from keybearer.store.queries import users as user_rows

COOKIE_BYTES = 32
TOUCHED_EVERY = timedelta(seconds=60)
"""How exact ``last_seen_at`` is: a write for every request would be one too many."""
FRESH = timedelta(minutes=10)
"""For how long a sign-in counts as proof for what needs more than a session."""
_IP_LIMIT, _AGENT_LIMIT = 64, 256


@dataclass(frozen=True, slots=True)
class SessionView:
    """A signed-in browser as its owner sees it."""

    id: UUID
    ip: str
    user_agent: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    is_current: bool


class Sessions:
    """Signs people in and out. ``idle`` and ``absolute``: how long a session lasts unused, and at most."""

    def __init__(
        self,
        db: Database,
        keyring: Keyring,
        idle: timedelta,
        absolute: timedelta,
        *,
        passwords: Passwords | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self.idle = idle
        self.absolute = absolute
        self.passwords = passwords or Passwords(keyring)
        self.limiter = limiter or Limiter()
        self._db = db
        self._keyring = keyring

    async def sign_in(self, email: str, password: str, client: Client, *, replaces: str = "") -> tuple[Caller, str]:
        """Sign in; gives the caller and the cookie of a new session. ``replaces``: the browser's cookie so far; it ends.

        Raises ``SignInFailed`` (unknown address, wrong password, disabled account: one answer, and as much work),
        ``RateLimited``, ``Overloaded``.
        """
        address = normalised_email(email[: EMAIL_LIMIT + 1])
        row: Any = None
        try:
            async with self.counted(address, client):
                row = await self._account(address)
                await self.passwords.check(row and row.id, row and row.password_hash, password)
                self._check_active(row)
        except SignInFailed as error:
            await self._record_failure(row, client, error.code)
            raise
        hashed = await self.passwords.hash(row.id, password) if self.passwords.is_outdated(row.password_hash) else None
        async with self._db.write(Actor.user(row.id)) as tx:
            if hashed is not None:
                await user_rows.set_password(tx, row.id, hashed, datetime.now(UTC))
            if replaces:
                await rows.delete_by_hash(tx, row.id, _hash(replaces))
            return await self._begin(tx, row.id, Role(row.role), client)

    async def begin(self, user_id: UUID, role: Role, client: Client) -> tuple[Caller, str]:
        """Start a session of somebody who has just proved who they are in another way; gives the caller and the cookie."""
        async with self._db.write(Actor.user(user_id)) as tx:
            return await self._begin(tx, user_id, role, client)

    async def _begin(self, tx: AsyncConnection, user_id: UUID, role: Role, client: Client) -> tuple[Caller, str]:
        """Start a session; expired ones of this person are swept."""
        now = datetime.now(UTC)
        cookie = secrets.token_urlsafe(COOKIE_BYTES)
        session_id, token_hash, expires_at = uuid4(), _hash(cookie), now + self.absolute
        await rows.delete_expired(tx, user_id, now, now - self.idle)
        columns = {
            "id": session_id,
            "token_hash": token_hash,
            "user_id": user_id,
            "ip": _printable(client.ip)[:_IP_LIMIT],
            "user_agent": _printable(client.user_agent),
            "last_seen_at": now,
            "expires_at": expires_at,
            "created_at": now,
        }
        fields = macs.session_fields(session_id, token_hash, user_id, now, expires_at)
        await rows.insert(tx, columns | {"mac": self._keyring.row_mac(macs.SESSION, *fields)})
        caller = Caller(user_id, role, policy.scopes_of(role), session_id=session_id, client=client)
        await self._record(tx, caller, "session.sign_in", session_id)
        return caller, cookie

    async def authenticate(self, cookie: str, client: Client) -> Caller:
        """Who a cookie belongs to. Raises ``SessionInvalid``: unknown, timed out, signed out or its account disabled."""
        now = datetime.now(UTC)
        token_hash = _hash(cookie)
        async with self._db.read(Actor.lookup()) as tx:
            row = await lookups.session_by_hash(tx, token_hash)
        if row is None or row.expires_at <= now or row.last_seen_at + self.idle <= now:
            raise SessionInvalid
        fields = (row.id, token_hash, row.user_id, row.created_at, row.expires_at)
        try:
            self._keyring.check_row(row.mac, macs.SESSION, macs.session_fields, *fields)
            self._keyring.check_row(row.user_mac, macs.USER, macs.user_fields, row.user_id, row.user_role, row.user_is_active)
        except EnvelopeError:
            raise SessionInvalid from None
        if not row.user_is_active:
            raise SessionInvalid
        if row.last_seen_at + TOUCHED_EVERY <= now:
            async with self._db.write(Actor.user(row.user_id)) as tx:
                await rows.touch(tx, row.id, now)
        role = Role(row.user_role)
        return Caller(row.user_id, role, policy.scopes_of(role), session_id=row.id, client=client)

    async def require_fresh(self, caller: Caller, action: str, subject: str) -> None:
        """Raise ``SignInAgain`` where a person signed in longer than ``FRESH`` ago, on record; tokens go by their scopes."""
        if caller.session_id is None:
            return
        now = datetime.now(UTC)
        async with attempt(self._db, action, caller, subject):
            async with self._db.read(Actor.user(caller.user_id)) as tx:
                begun_at = await rows.begun_at(tx, caller.user_id, caller.session_id)
            if begun_at is None or begun_at + FRESH <= now:
                raise SignInAgain

    async def sign_out(self, caller: Caller) -> None:
        """End the caller's own session; for callers without one, nothing."""
        if caller.session_id is None:
            return
        async with self._db.write(Actor.user(caller.user_id)) as tx:
            if await rows.delete(tx, caller.user_id, caller.session_id):
                await self._record(tx, caller, "session.sign_out", caller.session_id)

    async def page(self, caller: Caller, cursor: str | None = None, limit: int = 50) -> tuple[list[SessionView], str | None]:
        """A page of the caller's live sessions, newest first, and the cursor of the next.

        Raises ``Forbidden`` for access tokens, ``Invalid`` for a foreign cursor.
        """
        policy.require_person(caller)
        now = datetime.now(UTC)
        async with self._db.read(Actor.user(caller.user_id)) as tx:
            found, following = await rows.live_of_user(tx, caller.user_id, (now, now - self.idle), cursor, limit)
        views = [
            SessionView(
                row.id, row.ip, row.user_agent, row.created_at, row.last_seen_at, row.expires_at, row.id == caller.session_id
            )
            for row in found
        ]
        return views, following

    async def revoke(self, caller: Caller, session_id: UUID) -> None:
        """End one of the caller's sessions. Raises ``NotFound``, for unknown ids and for those of others alike."""
        async with attempt(self._db, "session.revoke", caller, str(session_id)):
            policy.require_person(caller)
            async with self._db.write(Actor.user(caller.user_id)) as tx:
                if not await rows.delete(tx, caller.user_id, session_id):
                    raise NotFound
                await self._record(tx, caller, "session.revoke", session_id)

    async def end_all(self, tx: AsyncConnection, user_id: UUID, *, but: UUID | None = None) -> None:
        """End all sessions of a person, but the one given, with the change that is the reason for it."""
        await rows.delete_of_user(tx, user_id, but)

    async def check_password(self, address: str, caller: Caller, kept: str | None, password: str) -> None:
        """Ask a signed-in person for the password again, limited like sign-in. Raises ``SignInFailed``, ``RateLimited``."""
        async with self.counted(address, caller.client):
            await self.passwords.check(caller.user_id, kept, password)

    @asynccontextmanager
    async def counted(self, account: str, client: Client) -> AsyncIterator[None]:
        """Count an attempt to prove who one is, unless it succeeds, or nobody has time to look at it. Raises ``RateLimited``.

        Of many refusals in a row only the first is recorded: a flood must not fill the records.
        """
        try:
            self.limiter.take(account, client.ip)
        except Refused as error:
            if error.is_first:
                await self._record_failure(None, client, error.code)
            raise
        try:
            yield
        except Overloaded:
            self.limiter.give_back(account, client.ip)
            raise
        self.limiter.give_back(account, client.ip)

    async def _account(self, address: str) -> Any:
        if len(address) > EMAIL_LIMIT or has_control(address):
            return None
        async with self._db.read(Actor.lookup()) as tx:
            return await lookups.user_by_email(tx, address)

    def _check_active(self, row: Any) -> None:
        """Raise ``SignInFailed`` for a disabled account, and for one whose row was edited."""
        try:
            self._keyring.check_row(row.mac, macs.USER, macs.user_fields, row.id, row.role, row.is_active)
        except EnvelopeError:
            raise SignInFailed from None
        if not row.is_active:
            raise SignInFailed

    async def _record(self, tx: AsyncConnection, caller: Caller, action: str, session_id: UUID) -> None:
        owner = Owner(OwnerKind.USER, caller.user_id)
        await management.record(self._db, tx, ManagementRecord(action, caller, str(session_id), owner=owner))

    async def _record_failure(self, row: Any, client: Client, outcome: str) -> None:
        """Of the person only what is known here: what was typed as the address may be a password."""
        owner = None if row is None else Owner(OwnerKind.USER, row.id)
        detail = (("ip", _printable(client.ip)[:_IP_LIMIT]), ("user_agent", _printable(client.user_agent)))
        await record_alone(
            self._db, ManagementRecord("session.sign_in", None, "" if row is None else str(row.id), outcome, owner, detail)
        )


def _hash(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()


def _printable(text: str) -> str:
    """What a browser says of itself, as it may stand in a database: cut, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:_AGENT_LIMIT])
