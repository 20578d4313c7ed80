"""A backup of the root keys, wrapped by a passphrase: what opens the database when its provider is lost for good.

One JSON document: the deployment's id and each root key as ``kms.passphrase`` wraps it, bound to deployment and key. It opens nothing
by itself, like a key file: whoever has it, the passphrase *and* the database can open everything, so the three are kept apart.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

from keybearer.audit import management
from keybearer.crypto.keyring import Keyring, root_key_aad, unwrap_root_key
from keybearer.crypto.kms import Wrapper
from keybearer.crypto.kms.passphrase import PROVIDER, VARIABLE
from keybearer.domain import ManagementRecord
from keybearer.errors import RootKeyError
from keybearer.store.db import Actor, Database
from keybearer.store.queries import keys

FORMAT = "keybearer root keys 1"
_MOST_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Backup:
    """Root keys by their ids, each wrapped by a passphrase."""

    deployment: UUID
    wrapped: dict[UUID, bytes]

    def text(self) -> str:
        """Write it as the document."""
        rows = [{"id": str(id_), "wrapped": b64encode(each).decode()} for id_, each in self.wrapped.items()]
        made = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps({"format": FORMAT, "deployment": str(self.deployment), "made_at": made, "root_keys": rows}, indent=2)


async def make(db: Database, keyring: Keyring, wrapper: Wrapper) -> tuple[Backup, list[UUID]]:
    """Wrap all root keys by ``wrapper``; gives also those that could not be unwrapped: retired ones whose provider is gone.

    Raises ``RootKeyError``, ``Unavailable`` for the ones in use.
    """
    wrapped, lost = {}, []
    async with db.read(Actor.system()) as tx:
        for row in await keys.root_keys(tx):
            try:
                wrapped[row.id] = await keyring.rewrapped(tx, row.id, wrapper)
            except RootKeyError:
                if row.emptied_at is None:
                    raise
                lost.append(row.id)
    return Backup(keyring.deployment, wrapped), lost


def write(path: Path, backup: Backup) -> None:
    """Write a new file for the owner alone, synced. Raises ``RootKeyError`` where one is there, or it cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(backup.text() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RootKeyError(f"The backup {path} cannot be written: {error.strerror}.", hint="Name a new file.") from None


def read(path: Path) -> Backup:
    """Read what ``write`` wrote. Raises ``RootKeyError`` for anything else."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _no_backup(path)
        document = json.loads(path.read_text(encoding="ascii"))
        if document["format"] != FORMAT:
            raise _no_backup(path)
        rows = {UUID(row["id"]): b64decode(row["wrapped"], validate=True) for row in document["root_keys"]}
        return Backup(UUID(document["deployment"]), rows)
    except OSError as error:
        raise RootKeyError(f"The backup {path} cannot be read: {error.strerror}.", hint="Check its path and mode.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _no_backup(path) from None


async def restore(db: Database, backup: Backup, phrase: Wrapper, target: Wrapper) -> int:
    """Have ``target`` hold the database's root keys from now on, as the backup has them; how many.

    All or nothing. Raises ``RootKeyError`` where the passphrase is wrong, the backup is another deployment's, or lacks a key that is
    in use; ``Unavailable``.
    """
    async with db.write(Actor.system()) as tx:
        deployment = await keys.get_deployment(tx)
        if deployment is None or deployment.id != backup.deployment:
            raise RootKeyError("The backup is another deployment's.", hint="Look for the one that was made for this database.")
        restored = 0
        for row in await keys.lock_root_keys(tx):
            wrapped = backup.wrapped.get(row.id)
            if wrapped is None and row.emptied_at is None:
                raise RootKeyError(
                    "The backup is older than the database's root key.",
                    hint="Look for one made after the last rotation, or restore the database of that time with it.",
                )
            if wrapped is None:
                continue
            kept = SimpleNamespace(id=row.id, wrapped=wrapped, proof=row.proof, provider=PROVIDER, reference=VARIABLE)
            root = await unwrap_root_key(backup.deployment, phrase, kept)
            anew = await target.wrap(root.reveal(), root_key_aad(backup.deployment, row.id))
            await keys.set_holder(tx, row.id, (target.provider, target.reference), anew)
            restored += 1
        detail = (("provider", target.provider), ("root_keys", str(restored)))
        await management.record(db, tx, ManagementRecord("root_key.restore", None, "", detail=detail))
        return restored


def _no_backup(path: Path) -> RootKeyError:
    return RootKeyError(f"{path} is no backup of root keys.", hint="'keybearer key backup' writes them.")
