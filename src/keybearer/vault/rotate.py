"""Rotation of root and owner keys: online, in small transactions, gone on with by whoever is left when a process is killed.

A rotation is a row (``key_rotation``), one at a time. Whoever works on it holds a lease; each step finds from the database alone
what is left to do, so a second worker does no harm and a killed one loses no more than a transaction.

root    stage   a new root key is wrapped, proved and inserted as ``staged``
        prove   every running process has unwrapped it (``holders``)
        promote under a lock on all root keys: the old one ``retired``, the new one ``active``
        reseal  owner keys, in batches, under the new one
        retire  under the lock again: nothing refers to the old one, which is kept, wrapped, for backups
owners  turn    each owner's next key version is made, the one before ``retired``; from here on all is sealed under the new one
        system  what is sealed under the system's key beside secrets
        seal    values, in batches, owner by owner and with that owner's eyes, under the new key
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.access import policy
from keybearer.access.attempts import attempt
from keybearer.audit import management
from keybearer.crypto.envelope import key_id_of
from keybearer.crypto.keyring import FindWrapper, Keyring, OwnerKey
from keybearer.domain import SYSTEM_OWNER_ID, Caller, ManagementRecord
from keybearer.errors import (
    Conflict,
    EnvelopeError,
    FieldError,
    Invalid,
    NotFound,
    RootKeyError,
    RotationBlocked,
    Unavailable,
)
from keybearer.store import bulk, changes
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys, rotations, sealed
from keybearer.store.schema import owner_key
from keybearer.vault.holders import ALIVE
from keybearer.vault.sealed_columns import OWNERS_TABLES, SYSTEMS_COLUMNS, OwnersTable

BATCH = 1000
"""Rows sealed in one transaction: about a tenth of a second."""
OWNERS_BATCH = 1000
_NOTED_EVERY = 100
"""Owners whose values are sealed between two notes of how far it came."""
LEASE = timedelta(seconds=15)
PATIENCE_S = 120.0
"""How long a command waits for processes that cannot unwrap the new key, and for locks, before it says so."""
_PAUSE_S = 0.5
_TURN_S = 3.0
"""How long a server works at it before it looks whether it is to stop."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far a rotation has come."""

    id: UUID
    kind: str
    state: str
    step: str
    provider: str
    root_key_id: UUID | None
    owner_id: UUID | None
    done: int
    total: int
    unreadable: int
    problem: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """Every version of every key, what still refers to it, who holds it, and the rotation under way or last."""

    root_keys: tuple[dict[str, Any], ...]
    owner_keys: tuple[dict[str, Any], ...]
    processes: tuple[dict[str, Any], ...]
    rotation: Rotation | None


Progress = Callable[[Rotation], None]


class Rotations:
    """Begins rotations, works on them, tells how far they are. ``find`` gives the wrappers of root key providers."""

    def __init__(self, db: Database, keyring: Keyring, find: FindWrapper, *, batch: int = BATCH) -> None:
        self._db = db
        self._keyring = keyring
        self._find = find
        self._batch = batch
        self._runner = uuid4()
        self._steps: dict[str, Callable[[Any], Awaitable[bool]]] = {
            "stage": self._stage,
            "prove": self._prove,
            "promote": self._promote,
            "reseal": self._reseal,
            "retire": self._retire,
            "turn": self._turn,
            "system": self._system,
            "seal": self._seal,
        }

    # ---- what people ask for -----------------------------------------------------------------------------------------

    async def status(self, caller: Caller | None) -> KeyStatus:
        """Tell the state of all keys; ``caller``: an administrator, or ``None``: the operator. Raises ``Forbidden``."""
        if caller is not None:
            policy.require_admin(caller)
        async with self._db.read(Actor.system()) as tx:
            roots = await keys.root_key_status(tx)
            versions = await sealed.versions(tx, [each.table for each in OWNERS_TABLES])
            holders = await rotations.holders(tx, ALIVE)
            latest = await rotations.latest(tx)
        return KeyStatus(
            tuple({**row._mapping, "state": _shown_state(row)} for row in roots),  # noqa: SLF001  # SQLAlchemy's public name
            tuple({**row._mapping, "keys": int(row.keys), "rows": int(row.rows)} for row in versions),  # noqa: SLF001  # likewise
            tuple({name: getattr(row, name) for name in ("host", "pid", "seen_at", "root_key_id", "problem")} for row in holders),
            None if latest is None else _rotation(latest),
        )

    async def begin_root(self, caller: Caller | None, to: str | None = None) -> Rotation:
        """Begin to rotate the root key, ``to`` another provider or with the one that holds it now.

        Raises ``Conflict`` (one is under way), ``Invalid`` where the provider's settings are missing, ``Forbidden``.
        """
        async with attempt(self._db, "root_key.rotate", caller, to or ""):
            _require(caller)
            async with self._db.read(Actor.system()) as tx:
                active = await self._keyring.active_root_key(tx)
            provider = to or active.provider
            try:
                self._find(provider)
            except RootKeyError as error:  # here it is a wrong request, and no reason to stop a server
                raise Invalid(error.message, hint=error.hint, fields=(FieldError("to", "is not set up"),)) from None
            return await self._begin(caller, {"kind": "root", "step": "stage", "provider": provider}, provider)

    async def begin_owners(self, caller: Caller | None, owner_id: UUID | None = None) -> Rotation:
        """Begin to give one owner, or all of them, a new key and to seal their values under it.

        Raises ``Conflict`` (one is under way), ``NotFound`` (the owner has no key), ``Forbidden``.
        """
        async with attempt(self._db, "owner_key.rotate", caller, str(owner_id or "")):
            _require(caller)
            async with self._db.read(Actor.system()) as tx:
                total = await keys.count_active_owner_keys(tx, owner_id)
            if not total:
                raise NotFound("This owner has no key: nothing of theirs is sealed.")
            kind = "owners" if owner_id is None else "owner"
            columns = {"kind": kind, "step": "turn", "owner_id": owner_id, "total": total}
            return await self._begin(caller, columns, str(owner_id or "all"))

    async def _begin(self, caller: Caller | None, columns: dict[str, Any], subject: str) -> Rotation:
        rotation_id = uuid4()
        try:
            async with self._db.write(Actor.system()) as tx:
                at = await rotations.now(tx)
                await rotations.insert(tx, columns | {"id": rotation_id, "created_at": at, "updated_at": at})
                await self._record(tx, "rotation.begin", str(rotation_id), caller, kind=str(columns["kind"]), of=subject)
                row = await rotations.get(tx, rotation_id)
        except Conflict:
            raise Conflict(
                "A rotation is under way already.",
                hint="It goes on by itself while a server runs; 'keybearer key rotate --resume' goes on with it here.",
            ) from None
        return _rotation(row)

    # ---- working on one ----------------------------------------------------------------------------------------------

    async def drop_root_key(self, caller: Caller | None, key_id: UUID) -> None:
        """Delete a retired root key that seals nothing: backups made while it was in force open no more.

        Raises ``NotFound``, ``Conflict`` (in force, staged, or something is sealed under it yet), ``Forbidden``.
        """
        async with attempt(self._db, "root_key.drop", caller, str(key_id)):
            _require(caller)
            async with self._db.write(Actor.system()) as tx:
                row = next((each for each in await keys.lock_root_keys(tx) if each.id == key_id), None)
                if row is None:
                    raise NotFound("There is no root key with this id.", hint="'keybearer key status' lists them.")
                if row.state != "retired":
                    raise Conflict(f"This root key is {row.state}.", hint="Only a retired one can be dropped: rotate first.")
                sealed_under = await keys.count_under(tx, key_id)
                if sealed_under:
                    raise Conflict(
                        f"{sealed_under} owner key(s) are sealed under this root key yet.",
                        hint="'keybearer key rotate' seals them anew; those that do not open stay, see docs/troubleshooting.md.",
                    )
                await keys.drop_root_key(tx, key_id)
                await self._record(tx, "root_key.drop", str(key_id), caller, provider=row.provider)

    async def drop_owner_keys(self, caller: Caller | None) -> int:
        """Delete all retired owner keys that no value is sealed under; how many. Raises ``Forbidden``, ``Conflict`` (rotating)."""
        async with attempt(self._db, "owner_key.drop", caller):
            _require(caller)
            async with self._db.write(Actor.system()) as tx:
                latest = await rotations.latest(tx)
                if latest is not None and latest.state == "running":
                    raise Conflict("A rotation is under way.", hint="Wait for its end: 'keybearer key status'.")
                held = [await sealed.get_one(tx, each.column) for each in SYSTEMS_COLUMNS]
                kept = [key_id_of(envelope) for envelope in held if envelope is not None]
                dropped = await keys.drop_owner_keys(tx, [each.table for each in OWNERS_TABLES], kept)
                await self._record(tx, "owner_key.drop", "", caller, count=str(dropped))
            return dropped

    async def under_way(self) -> Rotation | None:
        """Return the rotation that is not finished."""
        async with self._db.read(Actor.system()) as tx:
            row = await rotations.running(tx)
        return None if row is None else _rotation(row)

    async def turn(self) -> None:
        """As a job: go on with a rotation that nobody else works on, for a few seconds."""
        until = asyncio.get_running_loop().time() + _TURN_S
        while asyncio.get_running_loop().time() < until and await self.under_way() is not None:
            if not await self._step():
                return

    async def finish(self, rotation: Rotation, progress: Progress = lambda _: None) -> Rotation:
        """Work on a rotation to its end, or watch who does. Raises ``RotationBlocked`` where it has to wait for too long."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        seen = rotation
        while seen.state == "running":
            try:
                moved = await self._step()
            except Unavailable:  # a lock that a stopped process holds; PostgreSQL ends its session after a minute
                moved = False
            async with self._db.read(Actor.system()) as tx:
                found = _rotation(await rotations.get(tx, rotation.id))
            progress(found)
            now = asyncio.get_running_loop().time()
            if moved or (found.step, found.done) != (seen.step, seen.done):
                deadline = now + PATIENCE_S
            elif now > deadline:
                raise RotationBlocked(found.problem or "The rotation does not get on: the database's locks are held by others.")
            else:
                await asyncio.sleep(_PAUSE_S)
            seen = found
        return seen

    async def _step(self) -> bool:
        """Do the next piece of the rotation under way, if nobody else does; whether it got on."""
        async with self._db.write(Actor.system()) as tx:
            row = await rotations.running(tx)
            if row is None or not await rotations.lease(tx, row.id, self._runner, LEASE):
                return False
        return await self._steps[row.step](row)

    async def release(self) -> None:
        """Let others go on at once with what this process was working on."""
        async with self._db.write(Actor.system()) as tx:
            row = await rotations.running(tx)
            if row is not None and row.runner == self._runner:
                await rotations.update(tx, row.id, {"runner": None, "leased_until": None})

    async def _next(self, tx: AsyncConnection, row: Any, step: str, **columns: Any) -> None:
        await rotations.update(tx, row.id, {"step": step, "problem": "", "place": None} | columns)

    # ---- root key ----------------------------------------------------------------------------------------------------

    async def _stage(self, row: Any) -> bool:
        new = await self._keyring.new_root_key(self._find(row.provider))
        async with self._db.write(Actor.system()) as tx:
            if not await self._is_at(tx, row):
                return True  # somebody else has staged one meanwhile
            origin = (new.provider, new.reference)
            await keys.insert_root_key(tx, new.id, origin, new.wrapped, new.proof, datetime.now(UTC), state="staged")
            await self._next(tx, row, "prove", root_key_id=new.id)
            await self._record(tx, "root_key.stage", str(new.id), provider=new.provider, reference=new.reference)
        return True

    async def _prove(self, row: Any) -> bool:
        async with self._db.write(Actor.system()) as tx:
            problem = await _unproved(tx, row.root_key_id)
            if problem:
                await rotations.update(tx, row.id, {"problem": problem})
            else:
                await self._next(tx, row, "promote")
        return not problem

    async def _promote(self, row: Any) -> bool:
        async with self._db.write(Actor.system()) as tx:
            # Whoever makes an owner key holds this lock FOR SHARE: theirs is committed, or will find the old key retired.
            found = {each.id: each for each in await keys.lock_root_keys(tx)}
            if not await self._is_at(tx, row):
                return True
            problem = await _unproved(tx, row.root_key_id)
            if problem:  # a process has started since
                await self._next(tx, row, "prove", problem=problem)
                return False
            for each in found.values():
                if each.state == "active":
                    await keys.set_root_key_state(tx, each.id, "retired")
                    await self._record(tx, "root_key.retire", str(each.id), provider=each.provider)
            await keys.set_root_key_state(tx, row.root_key_id, "active")
            total = await keys.count_not_under(tx, row.root_key_id)
            await self._next(tx, row, "reseal", done=0, total=total)
            await self._record(tx, "root_key.promote", str(row.root_key_id), provider=row.provider)
            await changes.note(self._db, tx, "root_key", str(row.root_key_id), SYSTEM_OWNER_ID)
        return True

    async def _reseal(self, row: Any) -> bool:
        async with self._db.write(Actor.system()) as tx:
            active = await self._keyring.active_root_key(tx, lock=True)
            found = await keys.not_under(tx, active.id, row.place, self._batch)
            resealed, unreadable = await self._keyring.reseal_owner_keys(tx, found, active.id)
            await bulk.update(tx, owner_key, ("id", "root_key_id", "envelope"), resealed)
            if found:
                await rotations.advance(tx, row.id, len(resealed), unreadable, found[-1].id)
            else:
                await self._next(tx, row, "retire")
        return True

    async def _retire(self, row: Any) -> bool:
        async with self._db.write(Actor.system()) as tx:
            now = datetime.now(UTC)
            for each in await keys.lock_root_keys(tx):
                if each.state == "retired" and each.emptied_at is None and not await keys.count_under(tx, each.id):
                    await keys.set_root_key_state(tx, each.id, "retired", now)
                    await self._record(tx, "root_key.empty", str(each.id), provider=each.provider)
            await self._finish(tx, row)
        return True

    # ---- owner keys --------------------------------------------------------------------------------------------------

    async def _turn(self, row: Any) -> bool:
        async with self._db.write(Actor.system()) as tx:
            found = await keys.active_owner_keys(tx, row.owner_id, row.place, OWNERS_BATCH)
            if found:
                await bulk.insert(tx, owner_key, await self._keyring.next_owner_keys(tx, found, datetime.now(UTC)))
                await keys.retire_owner_keys(tx, [each.id for each in found])
                await rotations.advance(tx, row.id, len(found), 0, found[-1].owner_id)
                if row.owner_id is not None:
                    await self._record(tx, "owner_key.turn", str(row.owner_id), version=str(found[-1].version + 1))
                return True
            await self._next(tx, row, "system")
        return True

    async def _system(self, row: Any) -> bool:
        async with self._db.write(Actor.system()) as tx:
            if row.owner_id in {None, SYSTEM_OWNER_ID}:
                new = await self._keyring.sealing_key(tx, SYSTEM_OWNER_ID)
                for each in SYSTEMS_COLUMNS:
                    envelope = await sealed.get_one(tx, each.column)
                    if envelope is None or key_id_of(envelope) == new.id:
                        continue
                    old = await self._keyring.opening_key(tx, key_id_of(envelope), SYSTEM_OWNER_ID)
                    bound = each.bind(self._keyring.deployment)
                    plaintext = self._keyring.unseal(old, bound, envelope)
                    await sealed.set_one(tx, each.column, self._keyring.seal(new, bound, plaintext.reveal()))
            total = sum([await sealed.count_retired(tx, each.table, row.owner_id) for each in OWNERS_TABLES])
            await self._next(tx, row, "seal", done=0, total=total)
        return True

    async def _seal(self, row: Any) -> bool:
        """Seal what the next owners have under retired keys; the last of them is noted, so that damaged rows hold nobody up."""
        async with self._db.read(Actor.system()) as tx:
            owners: set[UUID] = set()
            for each in OWNERS_TABLES:
                owners.update(await sealed.owners_retired(tx, each.table, row.owner_id, row.place, _NOTED_EVERY))
        # Of several tables' next owners only the first are surely those of all.
        following = sorted(owners, key=lambda id_: id_.bytes)[:_NOTED_EVERY]
        done = unreadable = 0
        for owner_id in following:
            for each in OWNERS_TABLES:
                counted = await self._seal_owner(row, owner_id, each)
                done, unreadable = done + counted[0], unreadable + counted[1]
        async with self._db.write(Actor.system()) as tx:
            if following:
                await rotations.advance(tx, row.id, done, unreadable, following[-1])
            else:
                await self._finish(tx, row)
        return True

    async def _seal_owner(self, row: Any, owner_id: UUID, table: OwnersTable) -> tuple[int, int]:
        """Seal all that one owner has in one table; how many rows were, and how many do not open."""
        is_system = owner_id == SYSTEM_OWNER_ID
        actor = Actor.user(owner_id, admin=is_system, system_keys=is_system)
        after: Sequence[Any] | None = None
        counted = [0, 0]
        while True:
            async with self._db.write(actor) as tx:
                found = await sealed.rows_retired(tx, table.source, table.table, owner_id, after, self._batch)
                if not found:
                    return counted[0], counted[1]
                new = await self._keyring.sealing_key(tx, owner_id)
                old = await self._keyring.open_keys(tx, {each.owner_key_id for each in found}, owner_id)
                resealed = await asyncio.to_thread(self._reseal_rows, table, found, old, new)
                names = (*table.key, "owner_key_id", *table.envelopes)
                await bulk.update(tx, table.table, names, resealed, keys=len(table.key))
            counted[0] += len(resealed)
            counted[1] += len(found) - len(resealed)
            after = [getattr(found[-1], name) for name in table.key]
            if len(found) == self._batch:
                async with self._db.write(Actor.system()) as tx:
                    await rotations.lease(tx, row.id, self._runner, LEASE)

    def _reseal_rows(self, table: OwnersTable, found: Sequence[Any], old: dict[UUID, OwnerKey], new: OwnerKey) -> list[bulk.Row]:
        keyring, resealed = self._keyring, []
        for row in found:
            key = old.get(row.owner_key_id)
            with contextlib.suppress(EnvelopeError):
                if key is None:
                    raise EnvelopeError
                envelopes: list[bytes | None] = []
                for name, bind in table.envelopes.items():
                    envelope, bound = getattr(row, name), bind(row, keyring.deployment)
                    opened = None if envelope is None else keyring.unseal(key, bound, bytes(envelope))
                    envelopes.append(None if opened is None else keyring.seal(new, bound, opened.reveal()))
                resealed.append((*(getattr(row, name) for name in table.key), new.id, *envelopes))
        return resealed

    # ---- common ------------------------------------------------------------------------------------------------------

    async def _is_at(self, tx: AsyncConnection, row: Any) -> bool:
        """Whether the rotation is where it was read to be: nobody else has taken the step."""
        now = await rotations.get(tx, row.id)
        return now is not None and (now.state, now.step, now.runner) == ("running", row.step, self._runner)

    async def _finish(self, tx: AsyncConnection, row: Any) -> None:
        await rotations.update(
            tx, row.id, {"state": "finished", "step": "done", "problem": "", "runner": None, "leased_until": None}
        )
        await rotations.round_off(tx, row.id)
        await self._record(tx, "rotation.finish", str(row.id), kind=row.kind)

    async def _record(self, tx: AsyncConnection, action: str, subject: str, caller: Caller | None = None, **detail: str) -> None:
        await management.record(self._db, tx, ManagementRecord(action, caller, subject, detail=tuple(detail.items())))


async def _unproved(tx: AsyncConnection, root_key_id: UUID) -> str:
    """Say which running processes have not unwrapped a root key; empty where all have."""
    waiting = [each for each in await rotations.holders(tx, ALIVE) if each.root_key_id != root_key_id]
    if not waiting:
        return ""
    named = "; ".join(f"{each.host} pid {each.pid}" + (f" ({each.problem})" if each.problem else "") for each in waiting[:5])
    return f"{len(waiting)} running process(es) have not unwrapped the new root key: {named}"


def _require(caller: Caller | None) -> None:
    """Only administrators rotate, and tokens of theirs with the scope. ``None`` is the operator on the server's machine."""
    if caller is not None:
        policy.require_admin(caller)


def _shown_state(row: Any) -> str:
    return "retiring" if row.state == "retired" and row.emptied_at is None else str(row.state)


def _rotation(row: Any) -> Rotation:
    return Rotation(**{name: getattr(row, name) for name in Rotation.__dataclass_fields__})
