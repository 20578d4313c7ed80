"""The connection to Valkey, or Redis: one a process, one question at a time, so that answers come in the order of what was done.

A server that was restarted may hold nothing, or an old copy. So each connection learns the *run* of the server it leads to, and every
script is told it: what was written in another run does not count. A connection never comes back by itself without that.

The only module that knows the client library.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, NoScriptError, RedisError, ResponseError

from keybearer.errors import LimitsUnreachable, SettingsInvalid

WITHIN: Final = 2.0
"""Seconds for one question, connecting included."""
AGAIN: Final = 0.25
"""Seconds from an attempt to connect that failed to the next; who asks meanwhile is refused at once."""

_SCHEMES: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_HINT: Final = "rediss://user:password@host:6379/0, redis://… without TLS, or unix:///path; see docs/budgets.md."

AnyConnection = Connection | UnixDomainSocketConnection


def connector(url: str) -> Callable[[], AnyConnection]:
    """What makes connections to ``url``: ``rediss://[user]:password@host[:port][/db][?ca=FILE]``. Raises ``SettingsInvalid``.

    ``ca``: PEM file of the authorities that its certificate may come from, instead of the system's.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        port = parts.port or 6379
        username = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password else None
        is_socket = parts.scheme == "unix"
        database = 0 if is_socket else int(parts.path.strip("/") or 0)
    except ValueError:
        raise SettingsInvalid("KEYBEARER_REDIS_URL is not a URL of Valkey's.", hint=_HINT) from None
    common: dict[str, Any] = {"username": username, "password": password, "db": database, "protocol": 2, "driver_info": None}
    common |= {"socket_timeout": None, "socket_connect_timeout": WITHIN}
    kind: Callable[..., AnyConnection]
    if is_socket and PurePosixPath(parts.path).is_absolute() and not parts.hostname and not options:
        kind, common = UnixDomainSocketConnection, common | {"path": unquote(parts.path)}
    elif parts.scheme not in _SCHEMES or not parts.hostname or parts.fragment or options.keys() - {"ca"}:
        raise SettingsInvalid("KEYBEARER_REDIS_URL is not a URL of Valkey's.", hint=_HINT)
    elif _SCHEMES[parts.scheme]:
        tls = {"ssl_ca_certs": options.get("ca"), "ssl_min_version": ssl.TLSVersion.TLSv1_2}
        kind, common = SSLConnection, common | tls | {"host": parts.hostname, "port": port}
    elif options:
        raise SettingsInvalid("KEYBEARER_REDIS_URL names authorities, and no TLS.", hint=_HINT)
    else:
        kind, common = Connection, common | {"host": parts.hostname, "port": port}

    def connect() -> AnyConnection:  # no partial: its repr would show the password
        return kind(**common)

    return connect


class Script:
    """One of ours, by its file's name."""

    def __init__(self, name: str) -> None:
        self.text = resources.files("keybearer.gateway").joinpath(name).read_bytes()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


class Link:
    """See the module."""

    def __init__(self, url: str, told: Callable[[str], None]) -> None:
        """``told``: hears the reason when it goes away, and an empty one when it is back."""
        self.reason = ""
        """Why it is away; empty: it is not."""
        self.run = ""
        """Of the server that the connection leads to."""
        self._connect = connector(url)
        self._script = Script("shared_counts.lua")
        self._told = told
        self._connection: AnyConnection | None = None
        self._in_turn = asyncio.Lock()
        self._again_at = 0.0

    @property
    def is_resting(self) -> bool:
        """Whether a connection could not be made just now."""
        return time.monotonic() < self._again_at

    async def ask(self, verb: str, keys: Sequence[str], arguments: Sequence[str | int | bytes] = ()) -> Any:
        """Run the script's ``verb`` as one atomic step; what it answers. Raises ``LimitsUnreachable``: it may have run all the same."""
        async with self._in_turn:
            if self.is_resting:
                raise LimitsUnreachable(retry_after=1.0)
            reason, is_answered = self.reason, False
            try:
                async with asyncio.timeout(WITHIN):
                    answer = await self._ask(verb, keys, arguments)
                is_answered = True
            except (RedisError, OSError, TimeoutError) as error:
                if not self.run:
                    self._again_at = time.monotonic() + AGAIN
                reason = _reason(error, is_connected=bool(self.run))
                raise LimitsUnreachable(retry_after=1.0) from None
            finally:
                if not is_answered:  # what comes next on this connection would be the answer to this
                    await self._leave(reason)
            if self.reason:
                self.reason = ""
                self._told("")
            return answer

    async def close(self) -> None:
        """Let the connection go."""
        async with self._in_turn:
            await self._leave(self.reason)

    async def _ask(self, verb: str, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        connection = self._connection
        if connection is None or not connection.is_connected:
            connection = await self._begin()
        command = ("EVALSHA", self._script.sha, len(keys), *keys, self.run, verb, *arguments)
        await connection.send_command(*command)
        try:
            return await connection.read_response()
        except NoScriptError:  # somebody emptied the server's memory of scripts
            await self._load(connection)
            await connection.send_command(*command)
            return await connection.read_response()

    async def _begin(self) -> AnyConnection:
        self.run = ""
        connection = self._connection = self._connect()
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command("INFO", "server")
        told: bytes = await connection.read_response()
        await self._load(connection)
        run = next((line[7:] for line in told.decode("utf-8", "replace").splitlines() if line.startswith("run_id:")), "")
        if not run:
            raise ResponseError("it does not say its run_id")
        self.run = run
        return connection

    async def _load(self, connection: AnyConnection) -> None:
        await connection.send_command("SCRIPT", "LOAD", self._script.text)
        await connection.read_response()

    async def _leave(self, reason: str) -> None:
        connection, self._connection, self.run = self._connection, None, ""
        if connection is not None:
            await connection.disconnect(nowait=True)
        before, self.reason = self.reason, reason
        if reason and not before:
            self._told(reason)


def _reason(error: Exception, *, is_connected: bool) -> str:
    """What an operator is told. While signing in the server's own words may repeat the password."""
    if isinstance(error, NoPermissionError):
        return "its user may not run INFO, SCRIPT LOAD and EVALSHA, or may not use our keys"
    if isinstance(error, AuthenticationError | AuthorizationError):
        return "it refuses the user name or password"
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, ResponseError) and not is_connected:
        return "it does not let us in: is a password wanted, or its user name another?"
    return str(error)[:200] or type(error).__name__


async def check(url: str) -> None:
    """Prove that limits can be counted there. Raises ``SettingsInvalid``."""
    link = Link(url, lambda _: None)
    try:
        await link.ask("look", ["keybearer:{check}"])
    except LimitsUnreachable:
        message = f"Limits cannot be counted in Valkey (KEYBEARER_REDIS_URL): {link.reason}."
        raise SettingsInvalid(message, hint="One server, no cluster; see docs/budgets.md.") from None
    finally:
        await link.close()
