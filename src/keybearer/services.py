"""The objects of one server process, as one frozen dataclass. ``app`` builds it; routes, pages and the gateway are handed it."""

from __future__ import annotations

from dataclasses import dataclass

from keybearer.access.sessions import Sessions
from keybearer.access.tokens import Tokens
from keybearer.access.users import Users
from keybearer.audit.journal import Journal
from keybearer.audit.refusals import Refusals
from keybearer.audit.retention import AuditRetention
from keybearer.audit.seal import Sealer
from keybearer.audit.ship import Shipper
from keybearer.catalog import Catalog
from keybearer.crypto.keyring import Keyring
from keybearer.gateway.checks import Checker
from keybearer.gateway.counters import Counters
from keybearer.gateway.counts import Records
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.objects import Objects
from keybearer.gateway.prober import Prober
from keybearer.gateway.upstream import Upstream
from keybearer.store.changes import Feed
from keybearer.store.db import Database
from keybearer.vault.budgets import Budgets
from keybearer.vault.erasure import Erasure
from keybearer.vault.holders import KeyHolder
from keybearer.vault.hooks import Hooks
from keybearer.vault.models import Models
from keybearer.vault.providers import Providers
from keybearer.vault.reminders import Reminders
from keybearer.vault.resolve import Resolver
from keybearer.vault.rotate import Rotations
from keybearer.vault.secrets import Secrets
from keybearer.vault.shares import Shares
from keybearer.vault.teams import Teams
from keybearer.vault.transfer.exports import Exports
from keybearer.vault.transfer.imports import Imports


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The settings that packages below ``app`` need, as plain values."""

    public_url: str
    """Without a trailing slash, for example ``https://keys.example.com``."""
    secure_cookies: bool
    """Whether people reach the server by HTTPS."""
    trusted_proxies: tuple[str, ...]
    """Addresses or CIDRs whose forwarding headers are believed."""
    max_body_bytes: int
    max_buffered_bytes: int
    fallback: str
    audit_seal_seconds: float
    """Between two turns of the sealer."""
    reminder_seconds: float
    """Between two looks for what expires."""


@dataclass(frozen=True, slots=True)
class Services:
    """Everything one process works with."""

    options: ServerOptions
    db: Database
    feed: Feed
    keyring: Keyring
    holder: KeyHolder
    rotations: Rotations
    erasure: Erasure
    journal: Journal
    shipper: Shipper
    sealer: Sealer
    retention: AuditRetention
    refusals: Refusals
    catalog: Catalog
    users: Users
    sessions: Sessions
    tokens: Tokens
    providers: Providers
    models: Models
    secrets: Secrets
    teams: Teams
    shares: Shares
    imports: Imports
    exports: Exports
    resolver: Resolver
    credentials: Credentials
    objects: Objects
    budgets: Budgets
    counters: Counters
    records: Records
    upstream: Upstream
    prober: Prober
    checker: Checker
    reminders: Reminders
    hooks: Hooks
