"""Accounts: made by the set-up link (the first administrator), by an administrator, or by the operator."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import macs, policy
from keybearer.access.attempts import attempt, taken
from keybearer.access.fields import Fields, normalised_email
from keybearer.access.passwords import Passwords, check_policy
from keybearer.access.sessions import Sessions
from keybearer.audit import management
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, Client, ManagementRecord, Owner, OwnerKind, Role
from keybearer.errors import Conflict, EnvelopeError, Forbidden, LinkInvalid, NotFound, SignInFailed
from keybearer.store import changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import lookups
from keybearer.store.queries import users as rows

LINK_BYTES = 32
LINK_LIFE = timedelta(minutes=30)
_LINK_ACCOUNT = "set-up link"
"""What attempts to redeem one are counted under: no e-mail address."""


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account."""

    id: UUID
    email: str
    name: str
    role: Role
    is_active: bool
    fallback_allowed: bool
    """Whether the system's keys may serve this person where the deployment offers them."""
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class _NewUser:
    """An account about to be made, checked and hashed."""

    id: UUID
    email: str
    name: str
    role: Role
    password_hash: str


class Users:
    """Makes, shows, disables accounts."""

    def __init__(self, db: Database, keyring: Keyring, sessions: Sessions) -> None:
        self._db = db
        self._keyring = keyring
        self._sessions = sessions
        self._passwords: Passwords = sessions.passwords

    async def has_admin(self) -> bool:
        """Whether there is an administrator: then there are no set-up links."""
        async with self._db.read(Actor.lookup()) as tx:
            return await lookups.admin_exists(tx)

    async def issue_setup_link(self) -> str:
        """A new token for the set-up link, valid for 30 minutes; earlier ones end. Raises ``Conflict`` once an admin exists."""
        token = secrets.token_urlsafe(LINK_BYTES)
        now = datetime.now(UTC)
        async with self._db.write(Actor.system()) as tx:
            await self._db.lock_order(tx)
            await self._check_no_admin(tx)
            await rows.delete_links(tx, "setup")
            await rows.insert_link(tx, self._link_hash(token), "setup", now + LINK_LIFE, now)
            await management.record(self._db, tx, ManagementRecord("setup_link.issue", None, ""))
        return token

    async def redeem_setup_link(self, token: str, email: str, password: str, name: str, client: Client) -> tuple[Caller, str]:
        """Make the first administrator and sign in: gives the caller and the session's cookie. A link works once.

        Raises ``LinkInvalid`` (unknown, used, expired, or somebody was first), ``Invalid`` (the link then stays good).
        """
        detail = (("ip", client.ip), ("user_agent", client.user_agent))
        async with (
            self._sessions.counted(_LINK_ACCOUNT, client),
            attempt(self._db, "setup_link.redeem", None, detail=detail),
            taken("There is an account with this e-mail address already."),
        ):
            token_hash = self._link_hash(token)
            # Before the costly hash: strangers do not make this server work.
            async with self._db.read(Actor.lookup()) as tx:
                link = await lookups.link_by_hash(tx, token_hash)
            if link is None or link.used_at is not None or link.expires_at <= datetime.now(UTC):
                raise LinkInvalid
            new = await self._checked(email, password, name, Role.ADMIN)
            async with self._db.write(Actor.system()) as tx:
                await self._db.lock_order(tx)
                if not await rows.use_link(tx, token_hash, "setup", datetime.now(UTC)) or await lookups.admin_exists(tx):
                    raise LinkInvalid
                user = await self._insert(tx, new)
                by = Caller(user.id, user.role, policy.scopes_of(user.role), client=client)
                await self._note(tx, by, "user.create", user.id, ("role", user.role))
        return await self._sessions.begin(user.id, user.role, client)

    async def create(self, email: str, password: str, name: str, role: Role, by: Caller | None) -> User:
        """Make an account; ``by`` is an administrator, or ``None``: the operator on the server's machine.

        Raises ``Invalid``, ``Conflict`` (the address has an account), ``Forbidden``, ``ScopeMissing``.
        """
        async with attempt(self._db, "user.create", by):
            if by is not None:
                policy.require_admin(by)
            new = await self._checked(email, password, name, role)
            async with taken("There is an account with this e-mail address already."), self._write(by) as tx:
                user = await self._insert(tx, new)
                await self._note(tx, by, "user.create", user.id, ("role", user.role))
                return user

    async def get(self, user_id: UUID) -> User:
        """An account, as its owner sees it. Raises ``NotFound``."""
        async with self._db.read(Actor.user(user_id)) as tx:
            return _user(await rows.get(tx, user_id))

    async def find(self, email: str) -> User:
        """The account with this address, for the operator's commands. Raises ``NotFound``."""
        async with self._db.read(Actor.system()) as tx:
            return _user(await rows.by_email(tx, normalised_email(email)))

    async def page(self, caller: Caller, cursor: str | None = None, limit: int = 50) -> tuple[list[User], str | None]:
        """A page of all accounts, by address, and the cursor of the next.

        Raises ``Forbidden`` for who is no administrator, ``Invalid`` for a foreign cursor.
        """
        policy.require_admin(caller)
        async with self._db.read(policy.actor_of(caller)) as tx:
            found, following = await rows.all_users(tx, cursor, limit)
        return [_user(row) for row in found], following

    async def change_password(self, caller: Caller, current: str, new: str) -> None:
        """Change one's own password; one's other sessions end.

        Raises ``Invalid`` (``current_password`` or ``new_password``), ``RateLimited``, ``Forbidden`` for access tokens.
        """
        async with attempt(self._db, "user.change_password", caller, str(caller.user_id)):
            policy.require_person(caller)
            async with self._db.read(Actor.user(caller.user_id)) as tx:
                row: Any = await rows.get(tx, caller.user_id)
            user = _user(row)
            fields = Fields()
            try:
                await self._sessions.check_password(user.email, caller, row.password_hash, current)
            except SignInFailed:
                fields.wrong("current_password", "is not right")
            check_policy(fields, "new_password", new, user.email)
            fields.check()
            hashed = await self._passwords.hash(user.id, new)
            async with self._db.write(Actor.user(user.id)) as tx:
                await rows.set_password(tx, user.id, hashed, datetime.now(UTC))
                await self._sessions.end_all(tx, user.id, but=caller.session_id)
                await self._note(tx, caller, "user.change_password", user.id)

    async def prove(self, caller: Caller, action: str, password: str) -> None:
        """Ask a signed-in person for the password before what a session alone is not enough for, on record.

        Who has none signed in elsewhere: then the sign-in must be fresh. Raises ``SignInFailed``, ``SignInAgain``, ``RateLimited``.
        """
        async with attempt(self._db, action, caller):
            async with self._db.read(Actor.user(caller.user_id)) as tx:
                row: Any = await rows.get(tx, caller.user_id)
            if row.password_hash is not None:
                await self._sessions.check_password(_user(row).email, caller, row.password_hash, password)
                return
        await self._sessions.require_fresh(caller, action, str(caller.user_id))

    async def set_active(self, user_id: UUID, is_active: bool, by: Caller | None) -> User:  # noqa: FBT001  # the value to set
        """Enable or disable an account: all its tokens and sessions stop within a second.

        Raises ``NotFound``, ``Forbidden`` (no administrator, oneself, or the last active administrator), ``ScopeMissing``.
        """
        action = "user.enable" if is_active else "user.disable"
        async with attempt(self._db, action, by, str(user_id)):
            if by is not None:
                policy.require_admin(by)
                if by.user_id == user_id and not is_active:
                    raise Forbidden("You cannot disable your own account.", hint="Ask another administrator.")
            async with self._write(by) as tx:
                await self._db.lock_order(tx)  # or two administrators disable each other at the same moment
                row: Any = await rows.get(tx, user_id)
                user = _user(row)
                if user.role is Role.ADMIN and not is_active and await rows.count_active_admins(tx, but=user_id) == 0:
                    raise Forbidden("This is the last active administrator.", hint="Make another one first.")
                now = datetime.now(UTC)
                is_ours = self._is_ours(row)
                if is_active and not is_ours:
                    raise Forbidden("This account was changed outside Keybearer.", hint="Look at the database's own logs.")
                mac = self._mac(user_id, user.role, is_active) if is_ours else bytes(row.mac)
                await rows.set_active(tx, user_id, is_active, mac, now)
                if not is_active:
                    await self._sessions.end_all(tx, user_id)
                await self._note(tx, by, action, user_id)
                return _user(await rows.get(tx, user_id))

    async def set_fallback(self, caller: Caller, allowed: bool) -> User:  # noqa: FBT001  # the value to set
        """Say whether the system's keys may serve oneself where the deployment offers them."""
        async with attempt(self._db, "user.set_fallback", caller, str(caller.user_id)):
            policy.require_person(caller)
            async with self._db.write(Actor.user(caller.user_id)) as tx:
                await rows.set_fallback(tx, caller.user_id, allowed, datetime.now(UTC))
                await self._note(tx, caller, "user.set_fallback", caller.user_id, ("allowed", str(allowed).lower()))
                return _user(await rows.get(tx, caller.user_id))

    async def _checked(self, email: str, password: str, name: str, role: Role) -> _NewUser:
        """Everything checked, then the password hashed. Raises ``Invalid``."""
        fields = Fields()
        address = fields.email("email", email)
        shown = fields.line("name", name) or address[:200]
        check_policy(fields, "password", password, address)
        fields.check()
        user_id = uuid4()
        return _NewUser(user_id, address, shown, role, await self._passwords.hash(user_id, password))

    async def _insert(self, tx: AsyncConnection, new: _NewUser) -> User:
        now = datetime.now(UTC)
        columns = {
            "id": new.id,
            "email": new.email,
            "name": new.name,
            "password_hash": new.password_hash,
            "role": new.role.value,
            "is_active": True,
            "fallback_allowed": True,
            "mac": self._mac(new.id, new.role, is_active=True),
            "created_at": now,
            "updated_at": now,
        }
        await rows.insert(tx, columns)
        return User(new.id, new.email, new.name, new.role, is_active=True, fallback_allowed=True, created_at=now, updated_at=now)

    def _link_hash(self, token: str) -> bytes:
        """What is kept of a link's token. Keyed: who can write rows, but has no root key, makes no link that works."""
        return self._keyring.row_mac("one_time_link", "setup", hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest())

    def _mac(self, user_id: UUID, role: Role, is_active: bool) -> bytes:  # noqa: FBT001  # a column's value
        return self._keyring.row_mac(macs.USER, *macs.user_fields(user_id, role.value, is_active))

    def _is_ours(self, row: Any) -> bool:
        """Whether the row is as it was written here: an edited one must not get a good MAC."""
        try:
            self._keyring.check_row(row.mac, macs.USER, macs.user_fields, row.id, row.role, row.is_active)
        except EnvelopeError:
            return False
        return True

    def _write(self, by: Caller | None) -> Any:
        return self._db.write(Actor.system() if by is None else policy.actor_of(by))

    async def _check_no_admin(self, tx: AsyncConnection) -> None:
        if await lookups.admin_exists(tx):
            raise Conflict("This deployment has an administrator already.", hint="Sign in, or use 'keybearer admin create'.")

    async def _note(self, tx: AsyncConnection, by: Caller | None, action: str, user_id: UUID, *detail: tuple[str, str]) -> None:
        owner = Owner(OwnerKind.USER, user_id)
        await management.record(self._db, tx, ManagementRecord(action, by, str(user_id), owner=owner, detail=detail))
        await changes.note(self._db, tx, "user", str(user_id), user_id)


def _user(row: Any) -> User:
    if row is None:
        raise NotFound
    return User(row.id, row.email, row.name, Role(row.role), row.is_active, row.fallback_allowed, row.created_at, row.updated_at)
