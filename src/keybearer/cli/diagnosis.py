"""What ``keybearer doctor`` looks at: each check by itself, in the order of a start, told as a ``Finding``.

Nothing is made, migrated or mended: whoever asks what is wrong is told, and what is wrong is left for them to see. (SQLite's files alone
are narrowed to their owner whenever anybody opens them.)
"""

from __future__ import annotations

import os
import shutil
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keybearer import app, config, limit_counts, root_keys
from keybearer.config import Settings
from keybearer.crypto.keyring import Keyring, held_by
from keybearer.crypto.kms.file import KeyFileMissing
from keybearer.crypto.kms.providers import Providers
from keybearer.errors import KeybearerError, SettingsInvalid
from keybearer.gateway.egress import CONNECTION_ALLOW, EGRESS_ALLOW, EgressPolicy
from keybearer.store import engine as engines
from keybearer.store import guard
from keybearer.store.db import Actor, Database, translated
from keybearer.store.migrations import HEAD
from keybearer.store.queries import deployment, rotations
from keybearer.store.schema import audit_record
from keybearer.usage import own_prices
from keybearer.vault.holders import ALIVE

State = Literal["ok", "warning", "failed", "skipped"]

_OTHERS = 0o077
_LITTLE_SPACE = 512 * 2**20
_BUILT = datetime(2026, 1, 1, tzinfo=UTC)
"""A clock that is behind this is wrong."""
_SKEW = timedelta(seconds=2)
_GREAT_SKEW = timedelta(seconds=30)
"""Revocation, budgets and sessions count on clocks that agree better than this."""
_WIDE = {4: 8, 6: 32}
"""Shorter prefixes open a good part of all addresses."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    message: str
    hint: str = ""


def failed(check: str, error: KeybearerError) -> Finding:
    """An error as a finding."""
    return Finding(check, "failed", error.message, error.hint)


async def diagnose(data_dir: Path | None) -> AsyncIterator[Finding]:
    """Look at everything; what cannot be looked at, because something before it is wrong, is skipped."""
    try:
        settings = config.load(data_dir=data_dir)
        yield _settings(settings)
    except KeybearerError as error:
        yield failed("settings", error)
        yield Finding("all others", "skipped", "They need settings that can be read.")
        return
    yield _data_dir(settings)
    yield _egress(settings)
    held, database = await _database(settings)
    yield database
    providers, found = await _root_key(settings, held, is_new=database.state != "failed")
    yield found
    if held is None:
        why = "It cannot be read." if database.state == "failed" else "There is no database yet; the first start makes it."
        yield Finding("migrations", "skipped", why)
        yield _own_clock()
        return
    found = await _migrations(settings)
    yield found
    if found.state == "failed":
        yield Finding("deployment", "skipped", "The database is not fit to be opened.")
        yield _own_clock()
        return
    async for each in _opened(settings, providers):
        yield each


# ---- without a database ----------------------------------------------------------------------------------------------


def _settings(settings: Settings) -> Finding:
    """What a start refuses, and parts that are only looked at when they are needed."""
    app.check_workers(settings)
    app.check_bind(settings)
    app.mailer_of(settings)
    own_prices.read(settings.prices)
    for name in ("tls_certificate", "tls_private_key", "egress_ca_file", "openbao_ca_file"):
        path = getattr(settings, name)
        if path is not None and not os.access(path, os.R_OK):
            raise SettingsInvalid(
                f"{config.PREFIX}{name.upper()} names {path}, which cannot be read.", hint="Check path and mode."
            )
    if settings.tls_certificate is not None and settings.tls_private_key is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                settings.tls_certificate, settings.tls_private_key
            )
        except ssl.SSLError as error:
            message = f"The TLS certificate and its key do not go together: {error.reason}."
            raise SettingsInvalid(message, hint="Both are PEM files; the certificate comes first in its chain.") from None
    return Finding("settings", "ok", f"Can be read. Serves {app.public_url(settings)}.")


def _data_dir(settings: Settings) -> Finding:
    path = settings.data_dir
    try:
        status = path.stat()
    except FileNotFoundError:
        return Finding("data directory", "warning", f"{path} is not there yet; the first start makes it.")
    except OSError as error:
        return Finding("data directory", "failed", f"{path} cannot be read: {error.strerror}.", "Check its owner.")
    if not stat.S_ISDIR(status.st_mode):
        return Finding("data directory", "failed", f"{path} is no directory.", "Choose another with --data-dir.")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Finding("data directory", "failed", f"{path} cannot be written.", "Run this as the user that serves, or chown it.")
    names = [path, *(each for each in path.rglob("*") if not each.is_symlink())]
    open_ones = [each for each in names if _is_open(each)]
    if open_ones:
        message = f"Others than the owner can get at {len(open_ones)} of its entries, {open_ones[0]} first."
        return Finding("data directory", "warning", message, f"Run: chmod -R go= {path}")
    free = shutil.disk_usage(path).free
    if free < _LITTLE_SPACE:
        message = f"{path} has {free // 2**20} MB left. Without room for the journal no key leaves."
        return Finding("data directory", "warning", message, "Make room, or move it to a larger disk.")
    return Finding("data directory", "ok", f"{path} is its owner's alone, with {free // 2**30} GB left.")


def _is_open(path: Path) -> bool:
    """Whether others than the owner can get at a file. A server that runs may have removed it since it was listed."""
    try:
        return bool(path.stat().st_mode & _OTHERS)
    except FileNotFoundError:
        return False


def _egress(settings: Settings) -> Finding:
    lists = {EGRESS_ALLOW: settings.egress_allow, CONNECTION_ALLOW: settings.connection_allow}
    entries = [entry for allowed in lists.values() for entry in allowed]
    try:
        for setting, allowed in lists.items():
            EgressPolicy(allowed, setting)
        if settings.egress_ca_file is not None:
            ssl.create_default_context(cafile=str(settings.egress_ca_file))
    except KeybearerError as error:
        return failed("egress", error)
    except (ssl.SSLError, OSError) as error:
        message = f"KEYBEARER_EGRESS_CA_FILE names {settings.egress_ca_file}, which holds no certificates: {error}."
        return Finding("egress", "failed", message, "Put PEM certificates there.")
    wide = {setting: [entry for entry in allowed if _is_wide(entry)] for setting, allowed in lists.items()}
    found = [f"{', '.join(each)} in {setting}" for setting, each in wide.items() if each]
    if found:
        message = f"{' and '.join(found)} opens a great many private addresses to keys."
        return Finding("egress", "warning", message, "Name the hosts there, or a narrower network.")
    if not entries:
        return Finding("egress", "ok", "Keys go to public addresses by HTTPS alone.")
    return Finding("egress", "ok", f"Beside public addresses keys may go to: {', '.join(entries)}.")


def _is_wide(entry: str) -> bool:
    address, separator, prefix = entry.rpartition("/")
    return bool(separator) and prefix.isdecimal() and int(prefix) < _WIDE[6 if ":" in address else 4]


def _own_clock(now: datetime | None = None) -> Finding:
    now = now or datetime.now(UTC)
    if now < _BUILT:
        return Finding("clock", "failed", f"It says {now:%Y-%m-%d %H:%M} UTC, which is past.", "Set it, and keep it by NTP.")
    return Finding("clock", "ok", f"It says {now:%Y-%m-%d %H:%M:%S} UTC.")


# ---- the database ----------------------------------------------------------------------------------------------------


async def _database(settings: Settings) -> tuple[str | None, Finding]:
    """Who holds the root key of the database that is there (``None``: there is none), and how it answers."""
    try:
        name, url = engines.parse(settings.sqlalchemy_url)
        held = await held_by(settings.sqlalchemy_url)
    except KeybearerError as error:
        return None, failed("database", error)
    where = str(url.database) if name == "sqlite" else f"PostgreSQL at {url.host}, {url.database}"
    if held is None:
        return None, Finding("database", "warning", f"{where}: empty, or not there yet. The first start fills it.")
    return held, Finding("database", "ok", f"{where} answers.")


async def _root_key(settings: Settings, held: str | None, *, is_new: bool) -> tuple[Providers, Finding]:
    default = settings.root_key_provider.value
    providers = Providers(root_keys.options_of(settings), default, holder=held or default)
    try:
        wrapper = providers.get(providers.holder)
    except KeyFileMissing as error:
        if held is None and is_new:
            return providers, Finding("root key", "warning", "There is none yet; the first start makes it.", "Back it up then.")
        return providers, failed("root key", error)
    except KeybearerError as error:
        return providers, failed("root key", error)
    if held is not None and providers.holder != default:
        message = f"It is held by {providers.holder}, but KEYBEARER_ROOT_KEY_PROVIDER is {default}."
        return providers, Finding(
            "root key", "warning", message, f"Set it to {providers.holder}; or 'keybearer key rotate --to {default}'."
        )
    return providers, Finding("root key", "ok", f"Held by {providers.holder}: {wrapper.reference}.")


async def _migrations(settings: Settings) -> Finding:
    """Whether the schema is this version's, and PostgreSQL's wall stands."""
    name, url = engines.parse(settings.sqlalchemy_url)
    engine = (
        engines.sqlite(url, pool_size=1, begin="BEGIN", read_only=True)
        if name == "sqlite"
        else engines.postgresql(url, pool_size=1)
    )
    try:
        with translated():
            return await _revision(engine, settings)
    except KeybearerError as error:
        return failed("migrations", error)
    except DBAPIError as error:
        return Finding("migrations", "failed", f"The database cannot be read: {error.orig}.", "Restore it from your backup.")
    finally:
        await engine.dispose()


async def _revision(engine: AsyncEngine, settings: Settings) -> Finding:
    async with engine.connect() as connection:
        found = await _revision_of(connection)
        if found is None or found < HEAD:
            hint = "'keybearer serve' migrates it at its start."
            if connection.dialect.name == "postgresql" and not settings.database_direct_url:
                hint = "Set KEYBEARER_DATABASE_DIRECT_URL to the role that owns it, then start 'keybearer serve'."
            return Finding("migrations", "failed", f"The schema is of revision {found}; this version needs {HEAD}.", hint)
        await guard.check(connection)
    if found > HEAD:
        message = f"The schema is of revision {found}, newer than this version's {HEAD}."
        return Finding("migrations", "warning", message, "It works with the version before; update this one soon.")
    return Finding("migrations", "ok", f"The schema is of revision {found}, the newest.")


async def _revision_of(connection: AsyncConnection) -> str | None:
    if connection.dialect.name == "postgresql":
        await guard.is_ready(connection)  # takes the role that may look
    return await guard.revision(connection)


# ---- the deployment in it --------------------------------------------------------------------------------------------


async def _opened(settings: Settings, providers: Providers) -> AsyncIterator[Finding]:
    try:
        db = await Database.open(settings.sqlalchemy_url, settings.database_direct_url)
    except KeybearerError as error:
        yield failed("deployment", error)
        return
    try:
        yield await _opens(db, providers)
        yield await _limits(db, settings)
        yield await _clocks(db)
        yield await _processes(db)
        async with db.read(Actor.system()) as tx:
            if await deployment.is_frozen(tx):
                yield Finding(
                    "emergency stop", "warning", "All use of keys is stopped.", "'keybearer unfreeze' lets them be used again."
                )
    except KeybearerError as error:
        yield failed("deployment", error)
    finally:
        await db.close()


async def _opens(db: Database, providers: Providers) -> Finding:
    """Whether the root key is this database's: an empty one is not founded here, it was found to have one."""
    try:
        await Keyring.open(db, providers.get(providers.holder), providers.get)
    except KeybearerError as error:
        return failed("root key opens", error)
    return Finding("root key opens", "ok", "It opens this database.")


async def _limits(db: Database, settings: Settings) -> Finding:
    """Where budgets and limits are counted, as a start asks it."""
    try:
        await limit_counts.check_limits(db, settings)
    except KeybearerError as error:
        return failed("limits", error)
    except ImportError:
        return Finding(
            "limits", "failed", "KEYBEARER_REDIS_URL is set, but its client is not installed.", "pip install 'keybearer[server]'"
        )
    where = (
        "in Valkey, for all processes"
        if settings.redis_url is not None
        else "in the memory of one process, which must serve alone"
    )
    return Finding("limits", "ok", f"Where some are set, they are counted {where}.")


async def _clocks(db: Database) -> Finding:
    """This machine's clock beside the database's, and beside what was recorded last."""
    own = _own_clock()
    if own.state != "ok":
        return own
    async with db.read(Actor.system()) as tx:
        there, here = await rotations.now(tx), datetime.now(UTC)
        newest = (await tx.execute(sa.select(sa.func.max(audit_record.c.at)))).scalar()
    skew = abs(there - here)
    if skew > _SKEW:
        state: State = "failed" if skew > _GREAT_SKEW else "warning"
        message = f"It differs from the database's by {skew.total_seconds():.0f} s."
        return Finding("clock", state, message, "Keep both by NTP: revocation, budgets and sessions count on it.")
    if newest is not None and newest > here + _GREAT_SKEW:
        message = f"The newest record is of {newest:%Y-%m-%d %H:%M} UTC, which is still to come: a clock was, or is, wrong."
        return Finding("clock", "warning", message, "Set the clock, and keep it by NTP.")
    return own


async def _processes(db: Database) -> Finding:
    async with db.read(Actor.system()) as tx:
        running, latest = await rotations.holders(tx, ALIVE), await rotations.latest(tx)
    troubled = [each for each in running if each.problem]
    if troubled:
        message = f"The process {troubled[0].host} / {troubled[0].pid} cannot follow the root key: {troubled[0].problem}"
        return Finding("processes", "failed", message, "Give it the settings of the others, and start it anew.")
    if latest is not None and latest.state == "running":
        waits = f" It waits: {latest.problem}" if latest.problem else ""
        state: State = "warning" if latest.problem or not running else "ok"
        message = f"{len(running)} running. A rotation of keys is under way, at {latest.done} of {latest.total}.{waits}"
        return Finding("processes", state, message, "" if running else "'keybearer key rotate --resume' goes on with it.")
    return Finding("processes", "ok", f"{len(running)} running.")
