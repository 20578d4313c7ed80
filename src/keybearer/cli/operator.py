"""What operator commands work with: the server's database and keys, opened as the server opens them, and closed again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from keybearer import app, config, root_keys
from keybearer.access import policy
from keybearer.access.freeze import freeze, unfreeze
from keybearer.access.tokens import Tokens
from keybearer.access.users import User, Users
from keybearer.catalog import Catalog
from keybearer.config import Settings
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.kms import Wrapper
from keybearer.crypto.kms.providers import Providers as RootKeyProviders
from keybearer.domain import Caller, Client
from keybearer.errors import NotFound
from keybearer.gateway.egress import EgressPolicy
from keybearer.store.db import Database, migrate
from keybearer.vault import recovery
from keybearer.vault.erasure import Erasure
from keybearer.vault.models import Models
from keybearer.vault.providers import Providers
from keybearer.vault.rotate import Rotations
from keybearer.vault.secrets import Secrets
from keybearer.vault.transfer import restore as restoring
from keybearer.vault.transfer.exports import Exports
from keybearer.vault.transfer.imports import Imports
from keybearer.vault.transfer.items import Progress
from keybearer.vault.transfer.restore import Restored


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever can run commands on the server: may do what its files and database allow, and is recorded as ``operator``."""

    settings: Settings
    db: Database
    keyring: Keyring
    users: Users
    tokens: Tokens
    rotations: Rotations
    erasure: Erasure

    async def user(self, email: str) -> User:
        """Return the person with this e-mail address. Raises ``NotFound``."""
        try:
            return await self.users.find(email)
        except NotFound:
            raise NotFound(f"Nobody here has the e-mail address {email}.", hint="'keybearer user list' shows who has.") from None

    async def freeze(self, caller: Caller) -> bool:
        """Stop all use of keys; whether that is new."""
        return await freeze(self.db, caller)

    async def unfreeze(self, caller: Caller) -> bool:
        """Let keys be used again; whether that is new."""
        return await unfreeze(self.db, caller)

    def vault(self) -> tuple[Providers, Secrets]:
        """Open the vault, as the server opens it."""
        catalog = Catalog.load()
        secrets = Secrets(self.db, self.keyring, catalog, app.retention_of(self.settings))
        egress = EgressPolicy(self.settings.egress_allow)
        return Providers(self.db, self.keyring, catalog, egress, secrets, self.settings.fallback.value), secrets

    def imports(self) -> Imports:
        """Open the way in for files, as the server has it."""
        catalog, (_, secrets) = Catalog.load(), self.vault()
        models = Models(self.db, self.keyring, catalog, EgressPolicy(self.settings.egress_allow), secrets)
        return Imports(self.db, self.keyring, catalog, secrets, models, config.server_environment)

    def exports(self) -> Exports:
        """Open the way out."""
        return Exports(self.db, self.keyring, Catalog.load())

    def caller(self, user: User) -> Caller:
        """Act in a person's name, with what that person may do."""
        return Caller(user.id, user.role, policy.scopes_of(user.role), client=Client("", "keybearer command line"))


async def restore_root_keys(settings: Settings, path: Path, phrase: Wrapper) -> int:
    """Have the settings' provider hold the root keys of a backup; the lost key is not asked for. Raises ``RootKeyError``."""
    backup = recovery.read(path)
    name = settings.root_key_provider.value
    db = await Database.open(settings.sqlalchemy_url, settings.database_direct_url)
    try:
        # A key file that is lost is made anew: here it is known that the old one is not needed.
        target = RootKeyProviders(root_keys.options_of(settings), name, may_create=True).get(name)
        return await recovery.restore(db, backup, phrase, target)
    finally:
        await db.close()


async def restore(
    settings: Settings, path: Path, phrase: Wrapper | None, progress: Progress, *, despite_broken_audit: bool
) -> Restored:
    """Restore a backup into the settings' database, which must be empty. A root key is never made here: the backup's is needed."""
    header = restoring.header_of(path)
    holder = next((each["provider"] for each in header.root_keys if each.get("state") == "active"), "")
    app.make_data_dir(settings.data_dir)
    providers = RootKeyProviders(root_keys.options_of(settings), settings.root_key_provider.value, holder=holder)
    target = restoring.Target(
        settings.sqlalchemy_url, settings.database_direct_url, settings.journal_dir, providers.get, despite_broken_audit
    )
    return await restoring.restore(path, phrase, target, progress)


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Operator]:
    """Open the database and the keys; make them as the first start would where nothing is there yet."""
    app.make_data_dir(settings.data_dir)
    wrappers = await root_keys.providers_of(settings)
    await migrate(settings.sqlalchemy_url, settings.database_direct_url)
    db = await Database.open(settings.sqlalchemy_url, settings.database_direct_url)
    try:
        keyring = await root_keys.open_keyring(db, wrappers)
        users = Users(db, keyring, app.sessions_of(settings, db, keyring))
        yield Operator(
            settings, db, keyring, users, Tokens(db, keyring), Rotations(db, keyring, wrappers.get), Erasure(db, keyring)
        )
    finally:
        await db.close()
