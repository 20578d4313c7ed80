"""The composition root: what is built, in which order, and what a first run does.

``prepare``  once per start: data directory, root key, migration, proof that the key is right, port, set-up link
``create``   the ASGI application of one worker process; uvicorn calls it
``serve``    prepare, print, run
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import multiprocessing
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from keybearer import api, config, console, jobs, limit_counts, root_keys
from keybearer.access.sessions import Sessions
from keybearer.access.tokens import Tokens
from keybearer.access.users import Users
from keybearer.audit.journal import Journal
from keybearer.audit.publish import CheckpointFile
from keybearer.audit.refusals import Refusals
from keybearer.audit.retention import AuditRetention
from keybearer.audit.seal import Sealer
from keybearer.audit.seal import Target as CheckpointTarget
from keybearer.audit.ship import KEEP, Shipper
from keybearer.catalog import Catalog
from keybearer.config import Fallback, RootKeyProvider, Settings
from keybearer.crypto.keyring import Keyring
from keybearer.crypto.memory import forbid_core_dumps
from keybearer.descriptors import raise_limit
from keybearer.errors import Invalid, KeybearerError, OperatorError, SettingsInvalid
from keybearer.gateway.checks import Checker
from keybearer.gateway.counters import Counters
from keybearer.gateway.counts import Records
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.dial import Dialer
from keybearer.gateway.egress import CONNECTION_ALLOW, EgressPolicy
from keybearer.gateway.hooks import HookPoster
from keybearer.gateway.mailer import Mailer
from keybearer.gateway.objects import Objects
from keybearer.gateway.openrouter import Listing
from keybearer.gateway.plane import Plane
from keybearer.gateway.post import PostTarget
from keybearer.gateway.prober import Prober
from keybearer.gateway.protocol import PLANE, GatewayProtocol
from keybearer.gateway.refused import RefusedKeys
from keybearer.gateway.resolve import OF_USERS, SystemResolver
from keybearer.gateway.token_endpoint import TokenEndpoint
from keybearer.gateway.upstream import Upstream
from keybearer.reference_stores import external_of
from keybearer.services import ServerOptions, Services
from keybearer.store.changes import EVERYTHING, Change, Feed
from keybearer.store.db import Database, migrate
from keybearer.telemetry import configure_logging
from keybearer.usage import own_prices, prices
from keybearer.vault.budgets import Budgets
from keybearer.vault.erasure import Erasure
from keybearer.vault.holders import KeyHolder
from keybearer.vault.hooks import Hooks
from keybearer.vault.models import Models
from keybearer.vault.providers import Providers
from keybearer.vault.reminders import Reminders
from keybearer.vault.resolve import Resolver
from keybearer.vault.retention import Retention
from keybearer.vault.rotate import Rotations
from keybearer.vault.secrets import Secrets
from keybearer.vault.shares import Shares
from keybearer.vault.teams import Teams
from keybearer.vault.transfer.exports import Exports
from keybearer.vault.transfer.imports import Imports

COLLECT_AFTER = (20_000, 20, 100)
"""The collector's thresholds while serving: net new objects, then rounds of the younger generation."""
SETTLE_AFTER = 0.5
"""Seconds after which a process that serves goes through its memory once."""
DRAIN_SECONDS = 30
"""How long uvicorn waits for answers under way; the gateway has cut off its own by then (``gateway.limits``)."""


@dataclass(frozen=True, slots=True)
class Start:
    """What the start found or made: what the banner tells."""

    settings: Settings
    """With the port that was bound."""
    listener: socket.socket
    setup_token: str
    """Empty once an administrator exists."""


# ---- first run -------------------------------------------------------------------------------------------------------


def make_data_dir(path: Path) -> None:
    """Create the data directory for the owner only, or tighten one that others could read."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        message = f"The data directory {path} cannot be used: {error.strerror}."
        raise OperatorError(message, hint="Choose another with --data-dir or KEYBEARER_DATA_DIR.") from None


def check_workers(settings: Settings) -> None:
    """Refuse several workers on SQLite, which is for one process. Raises ``SettingsInvalid``."""
    if settings.workers > 1 and not settings.database_url:
        raise SettingsInvalid("Several workers need PostgreSQL.", hint="Set KEYBEARER_DATABASE_URL, or use one worker.")


async def prepare(settings: Settings) -> Start:
    """Do what must be right before anything is served, in this order. Raises ``OperatorError`` and changes nothing further.

    The set-up link comes last: making one ends the one before, which a server that is running may have printed.
    """
    check_workers(settings)
    check_bind(settings)
    own_prices.read(settings.prices)
    make_data_dir(settings.data_dir)
    wrappers = await root_keys.providers_of(settings)
    await migrate(settings.sqlalchemy_url, settings.database_direct_url)
    async with contextlib.AsyncExitStack() as stack:
        db = await Database.open(settings.sqlalchemy_url, settings.database_direct_url)
        stack.push_async_callback(db.close)
        await limit_counts.check_limits(db, settings)
        keyring = await root_keys.open_keyring(db, wrappers)
        users = Users(db, keyring, sessions_of(settings, db, keyring))
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(bind(settings))
            setup_token = "" if await users.has_admin() else await users.issue_setup_link()
            undo.pop_all()
    return Start(settings.model_copy(update={"port": listener.getsockname()[1]}), listener, setup_token)


# ---- one worker process ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Build what one process works with, lowest layer first; take it down in reverse."""
    wrappers = await root_keys.providers_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        db = await Database.open(settings.sqlalchemy_url, settings.database_direct_url)
        stack.push_async_callback(db.close)
        holder = KeyHolder(db)
        await holder.register()
        stack.push_async_callback(holder.close)
        keyring = await root_keys.open_keyring(db, wrappers)
        await holder.turn(keyring)
        feed = Feed(db, grace=settings.outage_grace)
        journal = await Journal.open(db, settings.journal_dir, settings.audit_durability.value)
        stack.push_async_callback(journal.close)
        shipper = Shipper(db, settings.journal_dir, journal, keep=journal_seconds(settings))
        catalog = Catalog.load()
        policy = EgressPolicy(settings.egress_allow)
        tokens = Tokens(db, keyring)
        sessions = sessions_of(settings, db, keyring)
        upstream = Upstream(
            policy,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.upstream_timeout,
            ca_file=settings.egress_ca_file,
        )
        names_of_users = upstream.resolver_of_users = SystemResolver(at_once=OF_USERS)
        stack.push_async_callback(upstream.close)
        secrets = Secrets(db, keyring, catalog, retention_of(settings), external_of(settings), TokenEndpoint(upstream))
        stack.push_async_callback(secrets.refresher.close)
        providers = Providers(db, keyring, catalog, policy, secrets, settings.fallback.value)
        resolver = Resolver(db, keyring, secrets, settings.fallback.value)
        to_users = Upstream(
            EgressPolicy(settings.connection_allow, CONNECTION_ALLOW), ca_file=settings.egress_ca_file, resolver=names_of_users
        )
        stack.push_async_callback(to_users.close)
        hooks = Hooks(db, keyring, HookPoster(to_users))
        allowed = settings.connection_allow, settings.egress_allow
        prober = Prober(upstream, to_users, Dialer(*allowed, ca_file=settings.egress_ca_file, resolver=names_of_users))
        credentials = Credentials(db, feed, tokens, providers, resolver)
        if settings.fallback is Fallback.OPENROUTER:
            credentials.openrouter = Listing(upstream)
        stack.callback(credentials.close)
        models = Models(db, keyring, catalog, policy, secrets)
        checker = Checker(credentials, prober, providers, models, secrets)
        stack.push_async_callback(RefusedKeys(credentials, checker, secrets).close)
        feed.subscribe(partial(forget_deleted, keyring))
        feed.subscribe(secrets.external.forget)
        records = Records(db, journal, shipper)
        counters = Counters(db, feed, keyring, limit_counts.counts_of(settings, keyring.deployment, holder, feed, records))
        await feed.start()
        stack.push_async_callback(feed.stop)
        await counters.catch_up()
        stack.push_async_callback(counters.close)
        yield Services(
            options=server_options(settings),
            db=db,
            feed=feed,
            keyring=keyring,
            holder=holder,
            rotations=Rotations(db, keyring, wrappers.get),
            erasure=Erasure(db, keyring),
            journal=journal,
            shipper=shipper,
            refusals=Refusals.of(db),
            objects=Objects(db, keyring),
            retention=AuditRetention(db, settings.audit_retention_days),
            sealer=Sealer(db, keyring, checkpoint_target(settings, upstream)),
            catalog=catalog,
            users=Users(db, keyring, sessions),
            sessions=sessions,
            tokens=tokens,
            providers=providers,
            models=models,
            secrets=secrets,
            teams=Teams(db, keyring, catalog),
            shares=Shares(db, keyring, catalog),
            exports=Exports(db, keyring, catalog),
            imports=Imports(db, keyring, catalog, secrets, models, config.server_environment),
            resolver=resolver,
            credentials=credentials,
            budgets=Budgets(db, keyring, catalog, partial(limit_counts.check_counts, holder, settings)),
            counters=counters,
            records=records,
            upstream=upstream,
            prober=prober,
            checker=checker,
            reminders=Reminders(db, mailer_of(settings), settings.reminder_days, public_url(settings), hooks=hooks),
            hooks=hooks,
        )


def forget_deleted(keyring: Keyring, change: Change) -> None:
    """Drop the owner keys of a person who was changed, or is gone, from this process's memory; they are read again on need."""
    if change.subject == EVERYTHING:
        keyring.forget_owners()
    elif change.subject == "user":
        keyring.forget_owner(UUID(change.subject_id))


def mailer_of(settings: Settings) -> Mailer | None:
    """What sends mail, if anything. Raises ``SettingsInvalid``."""
    if not settings.smtp_url:
        return None
    try:
        return Mailer(settings.smtp_url, settings.mail_from, settings.egress_ca_file)
    except Invalid as error:
        raise SettingsInvalid(f"KEYBEARER_SMTP_URL: {error.message} {error.hint}".strip()) from None


def checkpoint_target(settings: Settings, upstream: Upstream) -> CheckpointTarget | None:
    """Where checkpoints are pushed, if anywhere. Raises ``SettingsInvalid``."""
    where = settings.audit_checkpoints
    if not where:
        return None
    if "://" not in where:
        return CheckpointFile(Path(where))
    try:
        return PostTarget(upstream, where)
    except Invalid as error:
        raise SettingsInvalid(f"KEYBEARER_AUDIT_CHECKPOINTS is neither a file nor a URL: {error.message}") from None


def journal_seconds(settings: Settings) -> float:
    """How long journal files stay that are shipped and sealed: no longer than what they tell may be kept."""
    return min(KEEP, settings.audit_retention_days * 86400.0) if settings.audit_retention_days else KEEP


def sessions_of(settings: Settings, db: Database, keyring: Keyring) -> Sessions:
    """Build what signs people in, with its time-outs."""
    idle, absolute = timedelta(hours=settings.session_idle_hours), timedelta(hours=settings.session_absolute_hours)
    return Sessions(db, keyring, idle, absolute)


def retention_of(settings: Settings) -> Retention:
    """How long secrets and their versions are kept that nobody uses any more."""
    return Retention(
        restorable=timedelta(days=settings.restore_days),
        versions=settings.versions_kept,
        versions_for=timedelta(days=settings.versions_days),
        expiring=timedelta(days=settings.expiring_days),
        checked=timedelta(hours=settings.health_check_every),
    )


def server_options(settings: Settings) -> ServerOptions:
    """The settings that packages below need, as plain values."""
    return ServerOptions(
        public_url=public_url(settings),
        secure_cookies=public_url(settings).startswith("https://"),
        trusted_proxies=settings.trusted_proxies,
        max_body_bytes=settings.max_body_bytes,
        max_buffered_bytes=settings.max_buffered_bytes,
        fallback=settings.fallback.value,
        audit_seal_seconds=settings.audit_seal_seconds,
        reminder_seconds=settings.reminder_seconds,
    )


def create(settings: Settings | None = None) -> FastAPI:
    """Build the ASGI application of one worker process; uvicorn calls it without arguments in spawned workers."""
    settings = settings or config.load()
    configure_logging(settings.log_level, as_json=settings.log_json)
    forbid_core_dumps()
    prices.set_own(own_prices.read(settings.prices))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        end_with_parent()
        priced = asyncio.create_task(asyncio.to_thread(prices.load))  # meanwhile the database is waited for
        async with open_services(settings) as services:
            await priced
            app.state.services = services
            stop = asyncio.Event()
            settled = asyncio.create_task(settle(stop))
            working = asyncio.create_task(jobs.run(jobs.jobs_of(services), stop))
            plane = Plane(services)
            try:
                yield {"services": services, PLANE: plane}
            finally:
                await plane.close()
                stop.set()
                await working
                await settled
                with contextlib.suppress(KeybearerError):  # then the next start ships and seals what is left
                    await services.shipper.ship_once()
                    await services.refusals.flush(ends=True)
                    await services.sealer.turn()
                    await services.sealer.release()

    app = FastAPI(
        title="Keybearer",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        **api.description(),
    )
    api.install(app)
    console.install(app)
    return app


def end_with_parent() -> None:
    """Stop this worker when the process that started it is gone: killed, it can tell nobody, and its port would stay taken."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    loop = asyncio.get_running_loop()

    def stop(sentinel: int) -> None:
        loop.remove_reader(sentinel)  # it would go on telling
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(parent.sentinel, stop, parent.sentinel)


async def settle(stop: asyncio.Event) -> None:
    """What can wait until the process serves: take what stays for good out of the collector's rounds.

    A full collection over the some 300,000 objects of a started process takes about 50 ms, in which nothing is relayed. Requests
    leave no reference cycles, so the collector may look seldom.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), SETTLE_AFTER)
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


# ---- serving ---------------------------------------------------------------------------------------------------------


def public_url(settings: Settings) -> str:
    """The URL that people use: as set, else the bound address."""
    if settings.public_url:
        return settings.public_url.rstrip("/")
    scheme = "https" if settings.tls_certificate else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{settings.port}"


def check_bind(settings: Settings) -> None:
    """Refuse to take tokens and keys over a network in the clear."""
    if (settings.tls_certificate is None) != (settings.tls_private_key is None):
        raise SettingsInvalid("KEYBEARER_TLS_CERTIFICATE and KEYBEARER_TLS_PRIVATE_KEY belong together.")
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback and settings.tls_certificate is None and not settings.trusted_proxies:
        message = f"Binding {settings.host} would take keys over the network unencrypted."
        raise SettingsInvalid(
            message,
            hint="Set KEYBEARER_TLS_CERTIFICATE and KEYBEARER_TLS_PRIVATE_KEY, or name the proxy that ends TLS in"
            " KEYBEARER_TRUSTED_PROXIES.",
        )


def bind(settings: Settings) -> socket.socket:
    """Bind the listening socket. Raises ``OperatorError`` where the port is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        message = f"Cannot bind {settings.host}:{settings.port}: {error.strerror}."
        raise OperatorError(message, hint="Is another server running? Choose another port with --port.") from None


def banner(start: Start) -> str:
    """What a person needs after the start: where to go, where things lie, what to save, what to do next."""
    settings, url = start.settings, public_url(start.settings)
    lines = [f"Keybearer {api.VERSION}", "", f"  console   {url}/"]
    if start.setup_token:
        lines.append(f"  set up    {url}/setup#{start.setup_token}   (once, within 30 minutes)")
    lines += [
        f"  gateway   {url}/v1   (OpenAI)   {url}/anthropic   {url}/gemini",
        f"  data      {'PostgreSQL' if settings.database_url else settings.data_dir.resolve() / 'keybearer.db'}",
    ]
    if settings.root_key_provider is RootKeyProvider.FILE:
        lines.append(f"  root key  {settings.root_key_path.resolve()}   back this key up: without it nothing can be read")
    if start.setup_token:
        lines += [
            "",
            "  next: open the set-up link, add a key, create an access token, then",
            "        see 'keybearer --help' and README.md",
        ]
    return "\n".join(lines)


def serve(settings: Settings, bound: Callable[[str], None] | None = None) -> None:
    """Run the server until SIGINT or SIGTERM; ``bound`` is told its URL once the port is known.

    Raises ``OperatorError`` before anything is served where something is wrong.
    """
    forbid_core_dumps()
    raise_limit()
    start = asyncio.run(prepare(settings))
    with start.listener:
        print(banner(start), flush=True)  # noqa: T201  # what the command is for
        configure_logging(settings.log_level, as_json=settings.log_json)
        if bound is not None:
            bound(public_url(start.settings))
        run_workers(start.settings, start.listener)


def run_workers(settings: Settings, listener: socket.socket) -> None:
    """Serve on ``listener`` with as many worker processes as asked for."""
    options = uvicorn.Config(
        "keybearer.app:create" if settings.workers > 1 else create(settings),
        factory=settings.workers > 1,
        http=GatewayProtocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        workers=settings.workers,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=str(settings.tls_private_key) if settings.tls_private_key else None,
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
    )
    server = uvicorn.Server(options)
    if settings.workers > 1:
        config.export(settings)
        Multiprocess(options, sockets=[listener]).run()
        return
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)
