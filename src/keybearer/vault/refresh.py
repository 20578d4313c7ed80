"""OAuth tokens are refreshed before they expire: once, whatever the number of processes.

Whoever refreshes takes a lease in the secret's row, with a number (the fence) that grows; whoever lost the lease while it slept
writes nothing. No transaction is open while the endpoint is asked. What it granted, a rotated refresh token too, is committed as a new
version before any call can use it: calls read it from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.catalog import Catalog
from keybearer.domain import SYSTEM_OWNER_ID, Caller, ManagementRecord, Scope, Secret, SecretBytes, SecretType
from keybearer.errors import Frozen, Invalid, KeybearerError, KeyExpired
from keybearer.gateway.egress import Origin, origin_of, require_bound
from keybearer.store.db import Actor
from keybearer.store.queries import deployment, versions
from keybearer.store.queries import secrets as rows
from keybearer.vault import registry
from keybearer.vault.keeper import LAST_CHECK, Keeper, sealing_actor
from keybearer.vault.oauth import OAuth
from keybearer.vault.sealed import Content, Unreadable, console_path, egress_of, owner_of
from keybearer.vault.token_answer import Refused, Tokens, can_refresh, pause, read, request_of
from keybearer.vault.values import preview_of

LEASE = timedelta(seconds=60)
"""Longer than an endpoint is waited for: a lease that has run out is a dead process's."""
PATIENCE = 20.0
"""Seconds that a call waits for another process to refresh what it needs."""
AT_ONCE = 4
_DUE = 50

log = structlog.get_logger(__name__)


Find = Callable[[AsyncConnection], Awaitable[Any]]
"""Finds a secret's row."""


class Endpoint(Protocol):
    """Posts a form to a token endpoint: status and body. Raises ``EgressRefused``, ``UpstreamError`` and its kinds."""

    async def post(
        self, url: str, form: SecretBytes, authorization: SecretBytes | None, owner_id: UUID | None
    ) -> tuple[int, bytes]: ...


@dataclass(frozen=True, slots=True)
class _Lease:
    row: Any
    fence: int
    content: Content
    oauth: OAuth
    defined_by: UUID | None
    """Who says where the endpoint is: ``None``: an administrator."""


class Refresher:
    """One per process; see the module."""

    def __init__(self, keeper: Keeper, catalog: Catalog, endpoint: Endpoint | None) -> None:
        self._keeper = keeper
        self._catalog = catalog
        self._endpoint = endpoint
        self._under_way: set[asyncio.Task[bool]] = set()

    async def turn(self) -> None:
        """Refresh what is due, of all owners. For a job; safe in every process at once."""
        now = datetime.now(UTC)
        async with self._keeper.db.read(Actor.system()) as tx:
            due = await rows.due_for_refresh(tx, now, _DUE)
        room = asyncio.Semaphore(AT_ONCE)

        async def one(row: Any) -> None:
            async with room:
                try:
                    await self.refresh(row.id, row.owner_id)
                except (Unreadable, Frozen) as error:
                    log.warning("a token could not be refreshed", secret=str(row.id), code=error.code)

        outcomes = await asyncio.gather(*(one(row) for row in due), return_exceptions=True)
        for error in filter(None, outcomes):  # when all have ended: nothing goes on behind a turn
            raise error

    async def at_use(self, secret_id: UUID, owner_id: UUID, version: int) -> None:
        """Have an expired token refreshed for a call, or wait while another process does. Raises ``KeyExpired`` where it is not."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not await self.refresh(secret_id, owner_id):
            async with self._keeper.db.read(owners_eyes(owner_id)) as tx:
                row = await rows.get(tx, secret_id, (owner_id,))
            if row is None or row.version != version:
                return  # somebody else did, or it is gone: the call looks again
            is_leased = row.refresh_until is not None and row.refresh_until > datetime.now(UTC)
            if not is_leased or asyncio.get_running_loop().time() > deadline:
                problem = f" {row.refresh_problem}" if row.refresh_problem else ""
                hint = f"It is tried again by itself; look at it at {console_path(row.id)}."
                raise KeyExpired(f"The token '{row.name}' for {row.provider} has expired.{problem}", hint=hint)
            await asyncio.sleep(0.2)

    async def opened(
        self, caller: Caller | None, eyes: Actor, action: str, find: Find, *, even_expired: bool = False, **detail: str
    ) -> tuple[Any, Content]:
        """A secret's row and what it holds, on record as ``action``; a token that has expired is refreshed first.

        For what takes a value outside of calls: tests, and showing it. ``find`` locks the row, and raises where it is not to be opened.
        ``even_expired``: gives what there is where it could not be refreshed, or may not be as the deployment is frozen. Raises what
        ``find`` does, ``Unreadable``, and ``KeyExpired`` and ``Frozen``.
        """
        is_tried = False
        while True:  # ends: what cannot be refreshed is told, and what was is not due again at once
            async with self._keeper.db.write(eyes) as tx:
                row = await find(tx)
                if is_tried or not has_expired(row, datetime.now(UTC)):
                    content = await self._keeper.sealer.open(tx, row)
                    await self._keeper.record(tx, caller, action, row, provider=row.provider, **detail)
                    return row, content
            try:
                await self.at_use(row.id, row.owner_id, row.version)
            except (KeyExpired, Frozen):
                if not even_expired:
                    raise
                is_tried = True

    async def now(self, caller: Caller, secret_id: UUID) -> Secret:
        """Refresh one at once, because somebody asks for it.

        Raises ``NotFound``, ``Forbidden``, ``Invalid`` (nothing to refresh with), ``ScopeMissing``; the rest is in the answer.
        """
        async with attempt(self._keeper.db, "secret.refresh", caller, str(secret_id)), self._keeper.marking():
            policy.require(caller, Scope.SECRETS_WRITE)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                row = await self._keeper.own(tx, caller, secret_id)
                if not can_refresh((await self._keeper.sealer.open(tx, row)).oauth):
                    raise Invalid("This secret has no refresh token and token endpoint.", hint="Give both, in 'oauth'.")
                await self._keeper.write(tx, row, {"refresh_at": datetime.now(UTC)})
            await self.refresh(secret_id, row.owner_id)
            async with self._keeper.db.write(sealing_actor(caller)) as tx:
                return await self._keeper.shown(tx, caller, row)

    async def refresh(self, secret_id: UUID, owner_id: UUID) -> bool:
        """Refresh a token if it is due and nobody else does; whether a new one is in force. Raises ``Unreadable``, ``Frozen``.

        Whoever waits for it may be cancelled: it goes on, for what an endpoint has granted must be saved.
        """
        work = asyncio.create_task(self._refresh(secret_id, owner_id))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        return await asyncio.shield(work)

    def _ended(self, work: asyncio.Task[bool]) -> None:
        self._under_way.discard(work)
        if not work.cancelled():
            work.exception()  # who waits has it; if nobody does any more, nobody misses it

    async def close(self) -> None:
        """Wait for what is under way: a rotated refresh token that is not saved is lost. An endpoint is not waited for for long."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    async def _refresh(self, secret_id: UUID, owner_id: UUID) -> bool:
        async with self._keeper.marking():
            lease = await self._take(secret_id, owner_id)
        if lease is None:
            return False
        try:
            granted = await self._ask(lease)
        except Refused as refused:
            await self._give_up(lease, str(refused))
        except KeybearerError as error:
            await self._try_later(lease, error)
        else:
            return await self._save(lease, granted)
        return False

    async def _take(self, secret_id: UUID, owner_id: UUID) -> _Lease | None:
        now = datetime.now(UTC)
        async with self._keeper.db.write(owners_eyes(owner_id)) as tx:
            row = await rows.lock(tx, secret_id, (owner_id,))
            if row is None or not _is_due(row, now):
                return None
            if await deployment.is_frozen(tx):
                raise Frozen
            content = await self._keeper.sealer.open(tx, row)
            if content.oauth is None or not can_refresh(content.oauth):
                return None
            known = (await registry.load(tx, self._keeper.keyring, self._catalog, owner_id)).providers.get(row.provider)
            is_admins = owner_id == SYSTEM_OWNER_ID
            if known is not None and known.owner_id in {None, SYSTEM_OWNER_ID} and known.base_url and not known.parameters:
                is_admins = is_admins or origin_of(known.base_url) == endpoint_of(content.oauth)
            fence = (row.refresh_fence or 0) + 1
            await self._keeper.write(tx, row, {"refresh_fence": fence, "refresh_until": now + LEASE})
        return _Lease(row, fence, content, content.oauth, None if is_admins else owner_id)

    async def _ask(self, lease: _Lease) -> Tokens:
        origin = endpoint_of(lease.oauth)
        if self._endpoint is None or origin is None or lease.oauth.token_endpoint is None:
            raise Invalid("The token endpoint is no https:// URL.")
        require_bound(origin, egress_of(lease.row))
        form, authorization = request_of(lease.oauth)
        url = lease.oauth.token_endpoint.reveal().decode()
        status, body = await self._endpoint.post(url, form, authorization, lease.defined_by)
        return read(status, body, datetime.now(UTC))

    async def _save(self, lease: _Lease, granted: Tokens) -> bool:
        """Put what was granted in force, as a new version; one that a refresh had made is not kept for rolling back to."""
        now, keeper, owner_id = datetime.now(UTC), self._keeper, lease.row.owner_id
        oauth = replace(lease.oauth, refresh_token=granted.refresh or lease.oauth.refresh_token)
        preview = preview_of(granted.access.reveal().decode(), SecretType(lease.row.secret_type))
        async with keeper.db.write(owners_eyes(owner_id)) as tx:
            row = await self._still_ours(tx, lease)
            if row is None:
                return False
            keeper.sealer.check(row)
            before = await versions.get(tx, owner_id, row.id, row.version)
            bound = egress_of(row), bool(row.fetchable)
            columns = await keeper.put_version(tx, None, row, Content(granted.access, preview, oauth), now, bound=bound)
            if before is not None and before.created_by is None:
                await versions.delete(tx, owner_id, row.id, row.version)
            columns |= {
                "token_expires_at": granted.expires_at,
                "refresh_at": granted.refresh_at,
                "refresh_until": None,
                "refresh_attempts": 0,
                "refresh_problem": "",
                "rotate_at": row.rotate_at,  # what people replace is the grant
                **{name: getattr(row, name) for name in LAST_CHECK},
            }
            await keeper.write(tx, row, columns)
            await keeper.note(tx, None, "secret.refresh", row, version=str(columns["version"]))
        return True

    async def _give_up(self, lease: _Lease, reason: str) -> None:
        """The grant is over: the secret is failed until somebody enters it again."""
        async with self._keeper.db.write(owners_eyes(lease.row.owner_id)) as tx:
            row = await self._still_ours(tx, lease)
            if row is not None:
                columns = {"state": "failed", "state_reason": reason, "refresh_problem": reason, "failed_at": datetime.now(UTC)}
                await self._keeper.write(tx, row, columns | {"refresh_at": None, "refresh_until": None})
                await self._keeper.note(tx, None, "secret.failed", row, reason=reason)

    async def _try_later(self, lease: _Lease, error: KeybearerError) -> None:
        """Wait longer after each failure; only the first of a row is recorded."""
        now = datetime.now(UTC)
        async with self._keeper.db.write(owners_eyes(lease.row.owner_id)) as tx:
            row = await self._still_ours(tx, lease)
            if row is None:
                return
            attempts = row.refresh_attempts or 0
            columns = {"refresh_attempts": attempts + 1, "refresh_problem": error.message[:500], "refresh_until": None}
            await self._keeper.write(tx, row, columns | {"refresh_at": now + pause(attempts)})
            if not attempts:
                detail = (("reason", error.message[:500]),)
                record = ManagementRecord(
                    "secret.refresh", None, str(row.id), outcome=error.code, owner=owner_of(row), detail=detail
                )
                await management.record(self._keeper.db, tx, record)

    async def _still_ours(self, tx: Any, lease: _Lease) -> Any | None:
        """The row, locked, if the lease is still ours and the secret as it was."""
        row = await rows.lock(tx, lease.row.id, (lease.row.owner_id,))
        if row is None or row.refresh_fence != lease.fence or row.version != lease.row.version:
            log.warning("a refreshed token came too late and was dropped", secret=str(lease.row.id))
            return None
        return row


def endpoint_of(oauth: OAuth | None) -> Origin | None:
    """Where the token endpoint is; ``None``: there is none that a key may be sent to."""
    if oauth is None or oauth.token_endpoint is None:
        return None
    try:
        origin = origin_of(oauth.token_endpoint.reveal().decode().partition("?")[0])
    except Invalid:
        return None
    return origin if origin.scheme == "https" else None


def with_endpoint(egress: tuple[str, ...], oauth: OAuth | None) -> tuple[str, ...]:
    """An egress set with the token endpoint in it, where there is all that refreshing takes."""
    origin = endpoint_of(oauth) if can_refresh(oauth) else None
    return egress if origin is None else tuple(sorted({*egress, origin.text}))


def has_expired(row: Any, now: datetime) -> bool:
    """Whether a token has reached the end that its endpoint told."""
    return row.token_expires_at is not None and row.token_expires_at <= now


def _is_due(row: Any, now: datetime) -> bool:
    is_free = row.refresh_until is None or row.refresh_until <= now
    is_wanted = row.is_active and row.state in {"ok", "failed"} and (row.expires_at is None or row.expires_at > now)
    return bool(is_free and is_wanted and row.refresh_at is not None and row.refresh_at <= now)


def owners_eyes(owner_id: UUID) -> Actor:
    """An owner's own eyes: nobody else's may open their secrets, jobs least of all."""
    is_system = owner_id == SYSTEM_OWNER_ID
    return Actor.user(owner_id, admin=is_system, system_keys=is_system)
