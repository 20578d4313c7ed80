"""The keys of a running process: root keys unwrapped once, owner keys sealed under them, row MACs under a sealed system key.

One object per process. It holds no transaction of its own after the start: callers bring theirs, so that a key and what it seals
commit together and row-level security sees the caller. What it returns and what it keeps redacts itself.

Sealed here, beside what callers seal (``Binding``), with these contexts: an owner key (purpose ``owner-key``, its owner, its id,
its version, field ``key``) under the root key; a root key's proof (``root-key-proof``, system, the root key's id, 1, ``proof``)
under itself; a backup's key (``backup-key``, system, the backup's id, 1, ``key``) under the root key; the row MAC key
(``row-mac-key``, system, the deployment's id, 1, ``key``) under the system's owner key.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives import constant_time, hashes, hmac
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keybearer.crypto.envelope import KEY_BYTES, Context, key_id_of, open_sealed, seal
from keybearer.crypto.kms import Wrapper
from keybearer.crypto.rows import RowField, encode_row
from keybearer.domain import SYSTEM_OWNER_ID, OwnerKind, SecretBytes
from keybearer.errors import Conflict, DatabaseError, EnvelopeError, RootKeyError, Unavailable
from keybearer.store import bulk
from keybearer.store import engine as engines
from keybearer.store.db import Actor, Database, translated
from keybearer.store.queries import keys

CACHED_KEYS = 1024
CACHED_SECONDS = 60.0
"""An owner key that was destroyed in another process opens nothing here after this time."""

_PROOF = b"keybearer root key"
_RESTORE = "Restore the database from your backup; see docs/troubleshooting.md."

FindWrapper = Callable[[str], Wrapper]
"""Gives the wrapper of a provider by its name. Raises ``RootKeyError`` where the settings do not have what it needs."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnerKey:
    """One version of an owner's key."""

    id: UUID
    owner_id: UUID
    version: int
    key: SecretBytes


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a sealed value belongs, beside its owner and deployment, which the key and the keyring know."""

    record: UUID
    version: int
    field: str
    egress: tuple[str, ...] = ()
    """Canonical origins (``scheme://host:port``) that the value may be sent to."""
    fetchable: bool = False
    purpose: str = "secret"


@dataclass(frozen=True, slots=True)
class NewRootKey:
    """A root key to be staged: what its row holds."""

    id: UUID
    provider: str
    reference: str
    wrapped: bytes
    proof: bytes


class RecentKeys:
    """Owner keys opened a short while ago: at most ``most``, each for ``seconds``, the longest unused one dropped first."""

    def __init__(
        self, most: int = CACHED_KEYS, seconds: float = CACHED_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[UUID, tuple[float, OwnerKey]] = OrderedDict()

    def get(self, key_id: UUID) -> OwnerKey | None:
        """Return the key, unless it is unknown or its time is over; using it does not prolong that."""
        until, key = self._kept.get(key_id, (0.0, None))
        if key is None:
            return None
        if self._clock() >= until:
            del self._kept[key_id]
            return None
        self._kept.move_to_end(key_id)
        return key

    def put(self, key: OwnerKey) -> None:
        self._kept[key.id] = (self._clock() + self._seconds, key)
        self._kept.move_to_end(key.id)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all keys."""
        self._kept.clear()

    def drop(self, owner_id: UUID) -> None:
        """Forget an owner's keys."""
        for key_id in [key_id for key_id, (_, key) in self._kept.items() if key.owner_id == owner_id]:
            del self._kept[key_id]


class Keyring:
    """See the module. Made by ``open``."""

    def __init__(self, deployment: UUID, wrapper: Wrapper, find: FindWrapper | None = None) -> None:
        self.deployment = deployment
        self._wrapper = wrapper
        self._find = find
        self._roots: dict[UUID, SecretBytes] = {}
        self._recent = RecentKeys()
        self._mac: hmac.HMAC | None = None

    @classmethod
    async def open(cls, db: Database, wrapper: Wrapper, find: FindWrapper | None = None) -> Keyring:
        """Return the keyring of the deployment in ``db``; an empty one is founded first: root key, system owner, row MAC key.

        ``wrapper`` wraps what is founded; ``find`` gives those of other providers, which other root keys may need. Processes that
        start first at the same time end with one root key. Raises ``RootKeyError`` where the wrapper's key is not the one this
        database was set up with, or where the database's own rows are damaged or mixed from two deployments.
        """
        async with db.read(Actor.system()) as tx:
            found = await keys.get_deployment(tx)
            if found is None and await keys.count_root_keys(tx):
                raise RootKeyError("The database holds root keys but no deployment: it is damaged.", hint=_RESTORE)
        if found is None:
            await _found(db, wrapper)
        async with db.read(Actor.system()) as tx:
            row = await keys.get_deployment(tx)
            active = _only(await keys.get_active_root_keys(tx))
        if row is None:
            raise RootKeyError("The database lost its deployment: it is damaged.", hint=_RESTORE)
        keyring = cls(row.id, wrapper, find)
        keyring._roots[active.id] = await keyring._unwrapped(active)
        async with db.read(Actor.system()) as tx:
            await keyring._load_mac_key(tx, row.row_mac_key)
        return keyring

    async def sealing_key(self, tx: AsyncConnection, owner_id: UUID) -> OwnerKey:
        """Return the owner's active key, made where there is none; ``tx`` writes, as that owner or the system.

        Its row is locked FOR SHARE until ``tx`` ends, and so is the active root key's while one is made: what is sealed here is
        committed before a rotation retires the key, or the key is found retired. Raises ``EnvelopeError`` if it does not open.
        """
        row = await keys.get_active_owner_key(tx, owner_id, lock=True)
        if row is None:
            await self._make_owner_key(tx, owner_id)
            row = await keys.get_active_owner_key(tx, owner_id, lock=True)
        if row is None:
            raise Unavailable("The owner's key was retired at this moment.")
        return _of_owner(self._recent.get(row.id) or await self._open_owner_key(tx, row), owner_id)

    async def opening_key(self, tx: AsyncConnection, key_id: UUID, owner_id: UUID) -> OwnerKey:
        """Return the owner key ``key_id``, active or retired, from memory where it was used in the last minute.

        ``owner_id`` is the owner that the row to be opened names. Raises ``EnvelopeError`` if the key is unknown (destroyed, or
        invisible to ``tx``), does not open, or is another owner's: a row moved to another owner opens no value of the first.
        """
        key = self._recent.get(key_id)
        if key is None:
            row = await keys.get_owner_key(tx, key_id)
            if row is None:
                raise EnvelopeError
            key = await self._open_owner_key(tx, row)
        return _of_owner(key, owner_id)

    async def new_root_key(self, wrapper: Wrapper) -> NewRootKey:
        """Draw a root key, wrap it, and see that it unwraps. Raises ``RootKeyError``, ``Unavailable``."""
        root_id, root = uuid4(), SecretBytes(os.urandom(KEY_BYTES))
        aad = root_key_aad(self.deployment, root_id)
        wrapped = await wrapper.wrap(root.reveal(), aad)
        if not constant_time.bytes_eq(await wrapper.unwrap(wrapped, aad), root.reveal()):
            raise RootKeyError("The provider does not give back the key that it wrapped.", hint="Nothing was changed.")
        proof = seal(root.reveal(), root_id, _proof_context(self.deployment, root_id), _PROOF)
        return NewRootKey(root_id, wrapper.provider, wrapper.reference, wrapped, proof)

    async def hold_root_keys(self, rows: Sequence[keys.Row]) -> None:
        """Unwrap and prove the root keys of ``rows`` that are not in memory, and drop all others: each opens nothing any more.

        Raises ``RootKeyError``, ``Unavailable``; those before the failing one are held then.
        """
        for row in rows:
            if row.id not in self._roots:
                self._roots[row.id] = await self._unwrapped(row)
        for key_id in self._roots.keys() - {row.id for row in rows}:
            del self._roots[key_id]

    async def active_root_key(self, tx: AsyncConnection, *, lock: bool = False) -> keys.Row:
        """Return the row of the root key that owner keys are sealed under; ``lock``: FOR SHARE. Raises ``RootKeyError``."""
        # A rotation that came while the first waited for its lock is seen by the second.
        return _only(await keys.get_active_root_keys(tx, lock=lock) or await keys.get_active_root_keys(tx, lock=lock))

    def holds(self, root_id: UUID) -> bool:
        """Whether this process has unwrapped and proved a root key."""
        return root_id in self._roots

    async def rewrapped(self, tx: AsyncConnection, root_id: UUID, wrapper: Wrapper) -> bytes:
        """Wrap a root key by another provider, for a backup. Raises ``RootKeyError``, ``Unavailable``."""
        return await wrapper.wrap((await self._root(tx, root_id)).reveal(), root_key_aad(self.deployment, root_id))

    async def seal_backup_key(self, tx: AsyncConnection, root_id: UUID, backup_id: UUID, key: SecretBytes) -> bytes:
        """Seal a backup's key under a root key; ``open_backup_key`` opens it. Raises ``RootKeyError``, ``Unavailable``."""
        root = await self._root(tx, root_id)
        return seal(root.reveal(), root_id, _backup_context(self.deployment, backup_id), key.reveal())

    async def reseal_owner_keys(self, tx: AsyncConnection, rows: Sequence[keys.Row], root_id: UUID) -> tuple[list[bulk.Row], int]:
        """Seal owner keys under another root key: (id, root key's id, envelope) each, and how many do not open.

        The work is done in a thread: it is for thousands.
        """
        for each in {row.root_key_id for row in rows} | {root_id}:
            await self._root(tx, each)
        return await asyncio.to_thread(self._reseal_owner_keys, rows, root_id)

    async def next_owner_keys(self, tx: AsyncConnection, rows: Sequence[keys.Row], at: datetime) -> list[bulk.Row]:
        """Make the next version of each of these owner keys, as rows of ``owner_key``; locks the active root key FOR SHARE."""
        root_id = (await self.active_root_key(tx, lock=True)).id
        root = await self._root(tx, root_id)
        return await asyncio.to_thread(self._next_owner_keys, rows, (root_id, root), at)

    async def open_keys(self, tx: AsyncConnection, key_ids: Iterable[UUID], owner_id: UUID) -> dict[UUID, OwnerKey]:
        """Return those of an owner's keys that open."""
        opened = {}
        for key_id in key_ids:
            with suppress(EnvelopeError):
                opened[key_id] = await self.opening_key(tx, key_id, owner_id)
        return opened

    def forget_owners(self) -> None:
        """Drop all owners' keys from memory: nobody knows which of them are gone."""
        self._recent.clear()

    def forget_owner(self, owner_id: UUID) -> None:
        """Drop an owner's keys from memory: the owner is gone."""
        self._recent.drop(owner_id)

    def _reseal_owner_keys(self, rows: Sequence[keys.Row], root_id: UUID) -> tuple[list[bulk.Row], int]:
        sealed: list[bulk.Row] = []
        root, unreadable = self._roots[root_id], 0
        for row in rows:
            context = _owner_key_context(self.deployment, row.owner_id, row.id, row.version)
            try:
                key = SecretBytes(open_sealed(self._roots[row.root_key_id].reveal(), context, row.envelope))
            except EnvelopeError:
                unreadable += 1
            else:
                sealed.append((row.id, root_id, seal(root.reveal(), root_id, context, key.reveal())))
        return sealed, unreadable

    def _next_owner_keys(self, rows: Sequence[keys.Row], root: tuple[UUID, SecretBytes], at: datetime) -> list[bulk.Row]:
        made = ((row, *_new_owner_key(self.deployment, root, row.owner_id, row.version + 1)) for row in rows)
        return [(key.id, key.owner_id, key.version, root[0], envelope, "active", at) for _, key, envelope in made]

    def seal(self, key: OwnerKey, binding: Binding, plaintext: bytes) -> bytes:
        """Seal ``plaintext`` for ``binding``. Raises ``ValueError`` where the binding is malformed."""
        return seal(key.key.reveal(), key.id, self._context(key, binding), plaintext)

    def unseal(self, key: OwnerKey, binding: Binding, envelope: bytes) -> SecretBytes:
        """Return what was sealed for exactly ``binding``. Raises ``EnvelopeError`` and nothing else."""
        try:
            context = self._context(key, binding)
        except ValueError:  # an edited row holds an origin that is none
            raise EnvelopeError from None
        return SecretBytes(open_sealed(key.key.reveal(), context, envelope))

    def row_mac(self, table: str, *fields: RowField) -> bytes:
        """Return 32 bytes over a row of ``table``: its fields, in an order that the caller keeps for ever."""
        if self._mac is None:
            raise RootKeyError("The keyring was not opened.")
        state = self._mac.copy()
        state.update(encode_row(table, *fields))
        return state.finalize()

    def check_row(self, mac: object, table: str, fields: Callable[..., tuple[RowField, ...]], *of: Any) -> None:
        """Raise ``EnvelopeError`` unless ``mac`` was made here over ``fields(*of)``: a row as it was read, which may hold anything."""
        try:
            self.check_row_mac(mac if isinstance(mac, bytes) else b"", table, *fields(*of))
        except (AttributeError, TypeError, ValueError):  # what no column of ours holds
            raise EnvelopeError from None

    def check_row_mac(self, mac: bytes, table: str, *fields: RowField) -> None:
        """Raise ``EnvelopeError`` unless ``mac`` was made here over the same row."""
        if not constant_time.bytes_eq(mac, self.row_mac(table, *fields)):
            raise EnvelopeError

    def _context(self, key: OwnerKey, binding: Binding) -> Context:
        return Context(
            binding.purpose,
            self.deployment,
            key.owner_id,
            binding.record,
            binding.version,
            binding.field,
            binding.egress,
            binding.fetchable,
        )

    async def _make_owner_key(self, tx: AsyncConnection, owner_id: UUID) -> None:
        """Insert the owner's next key, or leave it where another transaction has."""
        root_row = await self.active_root_key(tx, lock=True)
        root = await self._root(tx, root_row.id)
        # In this order: a key made in between by another transaction is found active, and one made after has this version.
        version = await keys.latest_owner_key_version(tx, owner_id) + 1
        if await keys.get_active_owner_key(tx, owner_id) is not None:
            return
        key, envelope = _new_owner_key(self.deployment, (root_row.id, root), owner_id, version)
        await keys.insert_owner_key(tx, key.id, (owner_id, version), (root_row.id, envelope), datetime.now(UTC))

    async def _open_owner_key(self, tx: AsyncConnection, row: keys.Row) -> OwnerKey:
        root = await self._root(tx, row.root_key_id)
        context = _owner_key_context(self.deployment, row.owner_id, row.id, row.version)
        key = OwnerKey(row.id, row.owner_id, row.version, SecretBytes(open_sealed(root.reveal(), context, row.envelope)))
        self._recent.put(key)
        return key

    async def _root(self, tx: AsyncConnection, key_id: UUID) -> SecretBytes:
        """Return a root key from memory; one that came with a rotation since the start is unwrapped once."""
        root = self._roots.get(key_id)
        if root is None:
            row = await keys.get_root_key(tx, key_id)
            if row is None:
                raise EnvelopeError
            root = self._roots[key_id] = await self._unwrapped(row)
        return root

    async def _unwrapped(self, row: keys.Row) -> SecretBytes:
        """Unwrap a root key by the provider that its row names. Raises ``RootKeyError``, ``Unavailable``."""
        wrapper = self._wrapper
        if self._find is not None and row.provider != wrapper.provider:
            try:
                wrapper = self._find(row.provider)
            except RootKeyError as error:
                message = f"The database's root key is held by {row.provider} ({row.reference}). {error.message}"
                raise RootKeyError(message, hint=error.hint) from None
        return await unwrap_root_key(self.deployment, wrapper, row)

    async def _load_mac_key(self, tx: AsyncConnection, envelope: bytes | None) -> None:
        try:
            envelope = envelope or b""  # a column that was emptied is damage like any other
            system_key = await self.opening_key(tx, key_id_of(envelope), SYSTEM_OWNER_ID)
            mac_key = SecretBytes(open_sealed(system_key.key.reveal(), _mac_key_context(self.deployment), envelope))
        except EnvelopeError:
            raise RootKeyError("The system's keys in the database are damaged or missing.", hint=_RESTORE) from None
        self._mac = hmac.HMAC(mac_key.reveal(), hashes.SHA256())


async def held_by(url: str) -> str | None:
    """Return the provider that holds the root key of the database at ``url``, migrated or not; ``None``: it has no root key yet.

    Where it has one, a missing key file must not be made anew.

    Empty where the database has one, but which provider's cannot be told. Changes nothing, and makes no SQLite file. Raises
    ``DatabaseError`` for a malformed URL or a file that is no database, ``Unavailable`` if nobody answers.
    """
    engine = _existing(url)
    if engine is None:
        return None
    try:
        with translated():
            async with engine.connect() as connection:
                return await keys.held_by(connection)
    except DBAPIError as error:
        raise DatabaseError(f"The database cannot be read: {error.orig}") from None
    finally:
        await engine.dispose()


def _existing(url: str) -> AsyncEngine | None:
    """Return an engine for a database that is there; connecting would make an SQLite file."""
    name, parsed = engines.parse(url)
    if name == "postgresql":
        return engines.postgresql(parsed, pool_size=1)
    if Path(str(parsed.database)).exists():
        return engines.sqlite(parsed, pool_size=1, begin="BEGIN", read_only=True)
    return None


async def _found(db: Database, wrapper: Wrapper) -> None:
    """Found the deployment in one transaction, or leave it where another process was first."""
    deployment, root_id, at = uuid4(), uuid4(), datetime.now(UTC)
    root = SecretBytes(os.urandom(KEY_BYTES))
    system, system_envelope = _new_owner_key(deployment, (root_id, root), SYSTEM_OWNER_ID, 1)
    mac_key = seal(system.key.reveal(), system.id, _mac_key_context(deployment), os.urandom(KEY_BYTES))
    proof = seal(root.reveal(), root_id, _proof_context(deployment, root_id), _PROOF)
    wrapped = await wrapper.wrap(root.reveal(), root_key_aad(deployment, root_id))
    try:
        async with db.write(Actor.system()) as tx:
            if await keys.get_deployment(tx) is not None:
                return
            await keys.insert_deployment(tx, deployment, mac_key, at)
            await keys.insert_root_key(tx, root_id, (wrapper.provider, wrapper.reference), wrapped, proof, at)
            await keys.insert_owner(tx, SYSTEM_OWNER_ID, OwnerKind.SYSTEM, at)
            await keys.insert_owner_key(tx, system.id, (SYSTEM_OWNER_ID, 1), (root_id, system_envelope), at)
    except Conflict:
        return  # another process was first; its rows are read next


def _only(active: Sequence[keys.Row]) -> keys.Row:
    if len(active) != 1:
        raise RootKeyError(f"The database holds {len(active)} active root keys, not one: it is damaged.", hint=_RESTORE)
    return active[0]


def open_backup_key(root: SecretBytes, deployment: UUID, backup_id: UUID, envelope: bytes) -> SecretBytes:
    """Open what ``Keyring.seal_backup_key`` sealed. Raises ``EnvelopeError``."""
    return SecretBytes(open_sealed(root.reveal(), _backup_context(deployment, backup_id), envelope))


async def unwrap_root_key(deployment: UUID, wrapper: Wrapper, row: Any) -> SecretBytes:
    """Return the root key of ``row``, proved to be the one this database was sealed with."""
    if row.wrapped is None:
        raise RootKeyError("The wrapped root key is missing from the database.", hint=_RESTORE)
    try:
        root = SecretBytes(await wrapper.unwrap(row.wrapped, root_key_aad(deployment, row.id)))
    except RootKeyError as error:
        if row.provider == wrapper.provider:
            raise
        raise RootKeyError(
            f"{error.message} The database was set up with KEYBEARER_ROOT_KEY_PROVIDER={row.provider} ({row.reference}), "
            f"now it is {wrapper.provider}.",
            hint="Set the provider as it was; 'keybearer key rotate' moves to another one.",
        ) from None
    try:
        proved = open_sealed(root.reveal(), _proof_context(deployment, row.id), row.proof) == _PROOF
    except EnvelopeError:
        proved = False
    if not proved:
        raise RootKeyError("The root key does not match this database: its rows are damaged or mixed.", hint=_RESTORE)
    return root


def _new_owner_key(deployment: UUID, root: tuple[UUID, SecretBytes], owner_id: UUID, version: int) -> tuple[OwnerKey, bytes]:
    """Return a random owner key and its envelope under the root key."""
    root_id, root_key = root
    key = OwnerKey(uuid4(), owner_id, version, SecretBytes(os.urandom(KEY_BYTES)))
    context = _owner_key_context(deployment, owner_id, key.id, version)
    return key, seal(root_key.reveal(), root_id, context, key.key.reveal())


def _of_owner(key: OwnerKey, owner_id: UUID) -> OwnerKey:
    if key.owner_id != owner_id:
        raise EnvelopeError
    return key


def _owner_key_context(deployment: UUID, owner_id: UUID, key_id: UUID, version: int) -> Context:
    return Context("owner-key", deployment, owner_id, key_id, version, "key")


def _proof_context(deployment: UUID, root_id: UUID) -> Context:
    return Context("root-key-proof", deployment, SYSTEM_OWNER_ID, root_id, 1, "proof")


def _mac_key_context(deployment: UUID) -> Context:
    return Context("row-mac-key", deployment, SYSTEM_OWNER_ID, deployment, 1, "key")


def _backup_context(deployment: UUID, backup_id: UUID) -> Context:
    return Context("backup-key", deployment, SYSTEM_OWNER_ID, backup_id, 1, "key")


def root_key_aad(deployment: UUID, root_id: UUID) -> bytes:
    """What a wrapped root key is bound to."""
    return b"keybearer/v1/root-key" + deployment.bytes + root_id.bytes
