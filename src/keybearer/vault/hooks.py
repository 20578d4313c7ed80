"""Where people want to be told by signed webhooks what reminders tell (Standard Webhooks), and telling it.

Address and signing key are sealed together under the person's own key: the address may be what gives the right to post there. The
signing key is made here and shown once. Opened is all of it with the person's own eyes, for the moment of a message.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.access.limiter import Rate
from keybearer.access.pace import Bound, Pace
from keybearer.audit import management
from keybearer.crypto.keyring import Binding, Keyring
from keybearer.domain import Caller, ManagementRecord, Owner, OwnerKind, SecretBytes
from keybearer.errors import EnvelopeError, FieldError, Frozen, Invalid, KeybearerError, NotFound, UpstreamGone
from keybearer.gateway.egress import Origin, origin_of
from keybearer.store.db import Actor, Database
from keybearer.store.queries import deployment
from keybearer.store.queries import hooks as rows

URL_LIMIT = 2048
TESTS = Bound("user.test_webhook", Rate(10, 6.0), "Too many test messages were sent in a short time.")
_KEY_BYTES = 32
_UNREADABLE = "Address and signing key do not open: enter the address again."


class Poster(Protocol):
    """What posts a signed message. Raises ``KeybearerError``: not taken; ``UpstreamGone``: nothing ever will be."""

    async def post(self, url: str, key: SecretBytes, message_id: str, body: bytes, owner_id: UUID) -> None: ...


@dataclass(frozen=True, slots=True)
class Hook:
    """A person's address for signed reminders, as it is shown."""

    preview: str
    """Scheme and host of the address."""
    kinds: tuple[str, ...] | None
    """What it is told; ``None``: all."""
    is_active: bool
    """``False``: it said that it is gone."""
    problem: str
    """What went wrong last; empty: nothing."""
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class HookMade:
    """A new address. ``key`` is shown this once."""

    hook: Hook
    key: SecretBytes


class Hooks:
    """One per process; see the module. ``poster`` is ``None`` where nothing is sent: in commands on the server."""

    def __init__(self, db: Database, keyring: Keyring, poster: Poster | None) -> None:
        self._db = db
        self._tests = Pace(db, TESTS)
        self._keyring = keyring
        self._poster = poster

    async def get(self, caller: Caller) -> Hook | None:
        """The caller's, if they have one."""
        async with self._db.read(Actor.user(caller.user_id)) as tx:
            row = await rows.get(tx, caller.user_id)
        return None if row is None else _shown(row)

    async def put(self, caller: Caller, url: SecretBytes, kinds: Sequence[str] | None) -> HookMade:
        """Be told at ``url`` from now on, signed with a new key. Raises ``Invalid``, ``Forbidden`` for access tokens."""
        async with attempt(self._db, "user.set_webhook", caller, str(caller.user_id)):
            policy.require_person(caller)
            text, origin = _checked(url)
            key = SecretBytes(b"whsec_" + b64encode(os.urandom(_KEY_BYTES)))
            now, owner_id = datetime.now(UTC), caller.user_id
            async with self._db.write(Actor.user(owner_id)) as tx:
                row = await rows.lock(tx, owner_id)
                version = 1 if row is None else row.version + 1
                sealing = await self._keyring.sealing_key(tx, owner_id)
                document = json.dumps({"url": text, "key": key.reveal().decode()}).encode()
                columns = {
                    "owner_id": owner_id,
                    "owner_key_id": sealing.id,
                    "version": version,
                    "envelope": self._keyring.seal(sealing, bound(owner_id, version), document),
                    "preview": f"{origin.scheme}://{origin.host}"[:300],
                    "kinds": None if kinds is None else list(dict.fromkeys(kinds)),
                    "is_active": True,
                    "problem": "",
                    "created_at": now if row is None else row.created_at,
                    "updated_at": now,
                }
                await rows.put(tx, row, columns)
                await self._record(tx, "user.set_webhook", caller, origin.text)
                made = await rows.get(tx, owner_id)
            return HookMade(_shown(made), key)

    async def delete(self, caller: Caller) -> None:
        """Be told there no more. Raises ``NotFound``, ``Forbidden`` for access tokens."""
        async with attempt(self._db, "user.delete_webhook", caller, str(caller.user_id)):
            policy.require_person(caller)
            async with self._db.write(Actor.user(caller.user_id)) as tx:
                if not await rows.delete(tx, caller.user_id):
                    raise NotFound("You have no webhook for reminders.")
                await self._record(tx, "user.delete_webhook", caller, "")

    async def test(self, caller: Caller, message_id: str) -> str:
        """Send a message that says that it is a test; what went wrong, or nothing.

        Raises ``NotFound``, ``Forbidden``, ``Frozen``, ``RateLimited``.
        """
        await self._tests.take(caller, str(caller.user_id))
        async with attempt(self._db, "user.test_webhook", caller, str(caller.user_id)):
            policy.require_person(caller)
            async with self._db.write(Actor.user(caller.user_id)) as tx:
                if await rows.get(tx, caller.user_id) is None:
                    raise NotFound("You have no webhook for reminders.")
                if await deployment.is_frozen(tx):
                    raise Frozen
                await self._record(tx, "user.test_webhook", caller, "")
        try:
            await self.tell(caller.user_id, message_id, "keybearer.test", {})
        except KeybearerError as error:
            return f"{error.message} {error.hint}".strip()
        return ""

    async def tell(self, owner_id: UUID, message_id: str, kind: str, data: dict[str, Any]) -> None:
        """Send a person's address one message, and keep what came of it.

        ``message_id`` stays the same when it is tried again, so that receivers act once. Raises ``KeybearerError``: it was not taken;
        ``UpstreamGone``: and nothing will be; ``NotFound``: there is no address (any more).
        """
        async with self._db.read(Actor.user(owner_id)) as tx:
            row = await rows.get(tx, owner_id)
            if row is None or not row.is_active or self._poster is None:
                raise NotFound("There is no webhook for reminders.")
            try:
                url, key = await self._opened(tx, row)
            except EnvelopeError:
                url, key = "", SecretBytes(b"")
        problem, is_active = "", True
        try:
            if not url:
                raise UpstreamGone(_UNREADABLE, hint="")
            body = {"type": kind, "timestamp": datetime.now(UTC).isoformat(), "data": data}
            await self._poster.post(url, key, message_id, json.dumps(body).encode(), owner_id)
        except KeybearerError as error:
            problem, is_active = f"{error.message} {error.hint}".strip()[:500], not isinstance(error, UpstreamGone)
            raise
        finally:
            async with self._db.write(Actor.system()) as tx:
                await rows.note(tx, owner_id, row.version, problem, is_active=is_active)

    async def _opened(self, tx: AsyncConnection, row: Any) -> tuple[str, SecretBytes]:
        key = await self._keyring.opening_key(tx, row.owner_key_id, row.owner_id)
        found = json.loads(self._keyring.unseal(key, bound(row.owner_id, row.version), bytes(row.envelope)).reveal())
        return str(found["url"]), SecretBytes(found["key"].encode())

    async def _record(self, tx: AsyncConnection, action: str, caller: Caller, host: str) -> None:
        owner = Owner(OwnerKind.USER, caller.user_id)
        detail = (("host", host),) if host else ()
        await management.record(self._db, tx, ManagementRecord(action, caller, str(caller.user_id), owner=owner, detail=detail))


def bound(owner_id: UUID, version: int) -> Binding:
    """What the envelope is bound to, beside its owner."""
    return Binding(owner_id, version, "hook", purpose="reminder-hook")


def _shown(row: Any) -> Hook:
    kinds = None if row.kinds is None else tuple(row.kinds)
    return Hook(row.preview, kinds, row.is_active, row.problem, row.updated_at)


def _checked(url: SecretBytes) -> tuple[str, Origin]:
    """The address and where it is. Raises ``Invalid``, which repeats nothing of it."""
    text = url.reveal().decode("utf-8", "replace").strip()
    try:
        origin = origin_of(text.partition("?")[0])
    except Invalid:
        raise _no_address() from None
    if len(text) > URL_LIMIT or "#" in text or not text.isascii() or not text.isprintable() or " " in text:
        raise _no_address()
    return text, origin


def _no_address() -> Invalid:
    message = "The address of a webhook is https://host[:port][/path][?query]."
    return Invalid(message, hint="", fields=(FieldError("url", "is no address"),))
