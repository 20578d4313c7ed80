"""The vault's services on a real database, and people who use them."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, replace
from datetime import timedelta

import sqlalchemy as sa

from keybearer.access.limiter import Limiter
from keybearer.access.passwords import Passwords
from keybearer.access.policy import scopes_of
from keybearer.access.sessions import Sessions
from keybearer.access.tokens import Tokens
from keybearer.access.users import Users
from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.kms import env
from keybearer.domain import Caller, Client, Role, SecretBytes
from keybearer.gateway.egress import EgressPolicy
from keybearer.store.db import Actor, Database
from keybearer.store.schema import audit_record, change
from keybearer.vault.models import Models
from keybearer.vault.providers import Providers
from keybearer.vault.resolve import Resolver
from keybearer.vault.secrets import Secrets
from keybearer.vault.shares import Shares
from keybearer.vault.teams import Teams

PASSWORD = "kbtest-correct horse battery"
OPENAI_KEY = "sk-proj-kbtest-openai-0123456789abcdefghijklmnop"
OTHER_OPENAI_KEY = "sk-proj-kbtest-openai-zyxwvutsrqponmlkjihgfedcba"
ANTHROPIC_KEY = "sk-ant-api03-kbtest-anthropic-0123456789abcdefghij"
BROWSER = Client("198.51.100.7", "kbtest browser")


def value(text: str) -> SecretBytes:
    return SecretBytes(text.encode())


@dataclass(frozen=True)
class World:
    """All services of one deployment; ``offering`` gives one that offers its own keys."""

    db: Database
    keyring: Keyring
    users: Users
    sessions: Sessions
    tokens: Tokens
    secrets: Secrets
    providers: Providers
    models: Models
    resolver: Resolver
    teams: Teams
    shares: Shares

    async def person(self, name: str, role: Role = Role.MEMBER) -> Caller:
        """Make an account, as the operator would, and be signed in with it."""
        user = await self.users.create(f"{name}@example.com", PASSWORD, name, role, None)
        return Caller(user.id, role, scopes_of(role), client=BROWSER)

    async def recorded(self) -> list[tuple[str, str]]:
        """Action and outcome of all management records, oldest first."""
        query = sa.select(audit_record.c.action, audit_record.c.outcome).where(audit_record.c.kind == "manage")
        async with self.db.read(Actor.system()) as tx:
            return [(row.action, row.outcome) for row in await tx.execute(query.order_by(audit_record.c.seq))]

    async def changed(self) -> list[str]:
        """The subjects of all changes noted, oldest first."""
        async with self.db.read(Actor.system()) as tx:
            return list((await tx.execute(sa.select(change.c.subject).order_by(change.c.id))).scalars())

    def offering(self, fallback: str = "system") -> World:
        """The same deployment with KEYBEARER_FALLBACK set."""
        return replace(
            self,
            providers=Providers(self.db, self.keyring, Catalog.load(), EgressPolicy(), self.secrets, fallback),
            resolver=Resolver(self.db, self.keyring, self.secrets, fallback),
        )

    def allowing(self, *allow: str) -> World:
        """The same deployment with KEYBEARER_EGRESS_ALLOW set."""
        parts = (self.db, self.keyring, Catalog.load(), EgressPolicy(allow), self.secrets)
        return replace(self, providers=Providers(*parts), models=Models(*parts))


async def world_on(db: Database, root_key: bytes = b"") -> World:
    """Found a deployment, or join one with its ``root_key``. Password hashing is made cheap: its real cost is one test's business."""
    keyring = await Keyring.open(db, env.parse(base64.b64encode(root_key or os.urandom(32)).decode()))
    passwords = Passwords(keyring, memory_kib=64, passes=1, lanes=1)
    sessions = Sessions(db, keyring, timedelta(hours=1), timedelta(days=1), passwords=passwords, limiter=Limiter())
    secrets = Secrets(db, keyring, Catalog.load())
    return World(
        db,
        keyring,
        Users(db, keyring, sessions),
        sessions,
        Tokens(db, keyring),
        secrets,
        Providers(db, keyring, Catalog.load(), EgressPolicy(), secrets),
        Models(db, keyring, Catalog.load(), EgressPolicy(), secrets),
        Resolver(db, keyring, secrets),
        Teams(db, keyring, Catalog.load()),
        Shares(db, keyring, Catalog.load()),
    )
