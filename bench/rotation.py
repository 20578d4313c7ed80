"""Rotation on PostgreSQL: 100,000 owners with a million secrets get a new root key, and values are sealed anew, while others work.

The database is the tests' own PostgreSQL (fsync off, 32 MB of buffers): what is measured is our work, not the disk's. The root key's
provider is local, so no key management service is waited for.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
from tests.support.postgresql import Server, shared_server

from bench.peers import Peer
from bench.scenarios import Effort, Metric
from keybearer.access.policy import scopes_of
from keybearer.catalog import Catalog
from keybearer.crypto import keyring as rings
from keybearer.crypto.keyring import Binding, Keyring, OwnerKey
from keybearer.crypto.kms import env
from keybearer.domain import Caller, Client, Role, SecretBytes
from keybearer.store.db import Actor, Database, migrate
from keybearer.vault.rotate import Rotation, Rotations
from keybearer.vault.secrets import NewSecret, Secrets

DATABASE = "bench_rotation"
PER_OWNER = 10
LARGE_OWNER = 50_000
"""Secrets of the one owner whose key is rotated."""
VALUE = b"sk-proj-kbtest-" + b"0" * 85
SUBJECT = "keybearer"

SECRET: LiteralString = (
    "secret (id, owner_id, owner_kind, provider, secret_type, name, preview, description, tags, is_active, priority, fetchable,"
    " egress, state, state_reason, version, created_by, created_at, updated_at, usage_count)"
)
SHOWN = ("", "", "[]", True, 100, False, "[]", "ok", "", 1)


def rotation(_peers: Sequence[Peer], effort: Effort) -> list[Metric]:
    """Fill, rotate, and look at what others noticed; with ``--quick`` a tenth of it."""
    owners = 100_000 if effort.rounds > 2 else 10_000
    with tempfile.TemporaryDirectory(prefix="keybearer-rotation-") as directory:
        server = shared_server(Path(directory), os.getpid())
        urls = server.create(DATABASE)
        try:
            return asyncio.run(_measure(server, urls, owners))
        finally:
            server.drop(DATABASE)


async def _measure(server: Server, urls: tuple[str, str], owners: int) -> list[Metric]:
    await migrate(*urls)
    db, key = await Database.open(*urls), os.urandom(32).hex()
    try:
        keyring = await Keyring.open(db, env.parse(key))
        async with db.read(Actor.system()) as tx:
            root_id = (await keyring.active_root_key(tx)).id
        ids = await asyncio.to_thread(_fill, server, keyring, root_id, owners)
        rotations = Rotations(db, keyring, lambda _: env.parse(key))
        size = f"{owners:,} owners, {owners * PER_OWNER + LARGE_OWNER:,} secrets"
        root = Metric(f"root-key rotation, {size}", "s", False)
        noticed = Metric("storing a secret meanwhile in the same process, p99", "ms", False)
        sealed = Metric("owner-key re-encryption, one large owner (secrets per CPU second)", "secrets/s", True)
        person = Caller(ids[1], Role.MEMBER, scopes_of(Role.MEMBER), client=Client("127.0.0.1", "bench"))
        working = asyncio.create_task(_work(Secrets(db, keyring, Catalog.load()), person))
        began = time.monotonic()
        await _finished(rotations, await rotations.begin_root(None))
        root.add(SUBJECT, time.monotonic() - began)
        working.cancel()
        noticed.add(SUBJECT, await working)
        cpu = time.process_time()
        done = await _finished(rotations, await rotations.begin_owners(None, ids[0]))
        sealed.add(SUBJECT, done / (time.process_time() - cpu))
    finally:
        await db.close()
    return [root, noticed, sealed]


async def _finished(rotations: Rotations, begun: Rotation) -> int:
    done = await rotations.finish(begun)
    assert (done.state, done.unreadable) == ("finished", 0)
    return done.done


async def _work(secrets: Secrets, person: Caller) -> float:
    """Store secrets until cancelled; the 99th percentile of what one took, in milliseconds."""
    took: list[float] = []
    try:
        while True:
            began = time.monotonic()
            await secrets.create(person, NewSecret("openai", SecretBytes(VALUE), name=uuid4().hex, save_anyway=True))
            took.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return quantiles(took, n=100)[98]


def _fill(server: Server, keyring: Keyring, root_id: UUID, owners: int) -> list[UUID]:
    """Insert owners, keys and secrets, around policies and foreign keys; the owners, the large one first."""
    now = datetime.now(UTC)
    root = (root_id, keyring._roots[root_id])  # noqa: SLF001  # a million rows are not made one by one through the front door
    made = [rings._new_owner_key(keyring.deployment, root, uuid4(), 1) for _ in range(owners)]  # noqa: SLF001  # likewise
    keys = [key for key, _ in made]
    ids = [key.owner_id for key in keys]
    with server.connect(DATABASE) as connection:
        connection.execute("SET session_replication_role = replica")
        _copy(connection, "owner (id, kind, created_at)", ((owner, "user", now) for owner in ids))
        columns: LiteralString = "owner_key (id, owner_id, version, root_key_id, envelope, state, created_at)"
        _copy(connection, columns, ((key.id, key.owner_id, 1, root_id, envelope, "active", now) for key, envelope in made))
        places = [(key, uuid4()) for key in keys for _ in range(LARGE_OWNER if key is keys[0] else PER_OWNER)]
        _copy(
            connection,
            SECRET,
            ((id_, key.owner_id, "user", "openai", "api_key", id_.hex, *SHOWN, key.owner_id, now, now, 0) for key, id_ in places),
        )
        columns = "secret_version (secret_id, version, owner_id, owner_key_id, envelope, created_at)"
        _copy(connection, columns, ((id_, 1, key.owner_id, key.id, _sealed(keyring, key, id_), now) for key, id_ in places))
        connection.execute("ANALYZE")
    return ids


def _sealed(keyring: Keyring, key: OwnerKey, secret_id: UUID) -> bytes:
    return keyring.seal(key, Binding(secret_id, 1, "value"), VALUE)


def _copy(connection: psycopg.Connection[Any], into: LiteralString, rows: Iterator[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY public.{into} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
