"""The connection test of MySQL and MariaDB: greeting, TLS where asked (or where the server offers it), sign-in, ``SELECT 1``."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from keybearer.domain import SecretBytes
from keybearer.errors import Invalid, UpstreamMalformed, UpstreamTls, UpstreamUnreachable
from keybearer.gateway import mysql
from keybearer.gateway.connection_string import ConnectionString, parse
from keybearer.gateway.dial import Dialer, Place
from keybearer.gateway.verdict import ProbeStatus, Refused, masked

DEFAULT_PORT = 3306
_NOT_MYSQL = "The server does not speak MySQL's protocol."
_DEFAULT_PLUGIN = "caching_sha2_password"
_TURNS = 8
"""Packets that signing in may take."""

Tls = Literal["disabled", "preferred", "required", "verify_ca", "verify_identity"]
_NAMES = ("ssl-mode", "sslmode", "ssl_mode", "ssl", "tls")
_MODES: dict[str, Tls] = {
    "disabled": "disabled", "false": "disabled", "0": "disabled", "disable": "disabled",
    "preferred": "preferred", "prefer": "preferred",
    "required": "required", "require": "required", "skip-verify": "required",
    "verify_ca": "verify_ca", "verify-ca": "verify_ca",
    "verify_identity": "verify_identity", "verify-full": "verify_identity", "true": "verify_identity", "1": "verify_identity",
}  # fmt: skip
_BY_CODE: dict[int, tuple[ProbeStatus, str]] = {
    1045: ("invalid", "The server refused the user name or the password."),
    1698: ("invalid", "The server refused the user name or the password."),
    1820: ("invalid", "The password has expired."),
    1862: ("invalid", "The password has expired."),
    1044: ("forbidden", "The user may not use this database."),
    1129: ("forbidden", "The server has blocked this host after too many errors."),
    1130: ("forbidden", "The server does not let this host in."),
    3118: ("forbidden", "The account is locked."),
    3159: ("tls", "The server takes no connections in clear."),
    1040: ("rate_limited", "The server has no connection left."),
    1203: ("rate_limited", "The user has no connection left."),
    1226: ("rate_limited", "The user has no connection left."),
}


async def probe_mysql(dialer: Dialer, value: SecretBytes, *, is_systems: bool, seconds: float) -> None:
    """Connect, sign in, ``SELECT 1``. Raises ``Invalid`` for what is no connection string, ``Refused``, ``KeybearerError``."""
    del seconds  # the caller's own deadline is enough
    target = parse(value.reveal().decode("utf-8", "replace"), DEFAULT_PORT)
    mode = _mode(target)
    place = await dialer.find(target.host, target.port, is_systems=is_systems)
    try:
        async with _connected(place) as line:
            await _sign_in(line, dialer, target, _raised(mode, place))
            line.sequence = 0
            line.say(mysql.SELECT_1)
            mysql.check(await line.hear())
            line.sequence = 0
            line.say(mysql.QUIT)
    except mysql.ServerError as error:
        raise Refused(*_BY_CODE.get(error.code, ("error", masked(error.message, target.hidden)))) from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise UpstreamMalformed("The server closed the connection. Is it MySQL?", hint="") from None


class _Line:
    """A connection as packets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.sequence = 0

    async def hear(self) -> bytes:
        head = await self._reader.readexactly(4)
        size = int.from_bytes(head[:3], "little")
        if size > mysql.MAX_PACKET:
            raise UpstreamMalformed(_NOT_MYSQL, hint="")
        self.sequence = head[3] + 1
        return await self._reader.readexactly(size)

    def say(self, payload: bytes) -> None:
        self.writer.write(mysql.packet(self.sequence, payload))
        self.sequence += 1


@asynccontextmanager
async def _connected(place: Place) -> AsyncIterator[_Line]:
    try:
        reader, writer = await asyncio.open_connection(place.address, place.port, limit=mysql.MAX_PACKET)
    except OSError:
        raise UpstreamUnreachable(f"{place.host} could not be connected to.", hint="") from None
    try:
        yield _Line(reader, writer)
        with suppress(ConnectionError):
            await writer.drain()
    finally:
        writer.transport.abort()


async def _sign_in(line: _Line, dialer: Dialer, target: ConnectionString, mode: Tls) -> None:
    greeting = mysql.greeting(await line.hear())
    has_tls = mode != "disabled" and bool(greeting.capabilities & mysql.SSL)
    if has_tls:
        line.say(mysql.ssl_request(target.database))
        await _start_tls(line, dialer, target.host, mode)
    elif mode not in {"disabled", "preferred"}:
        raise UpstreamTls("The server does not speak TLS, and in clear no password is sent to it.", hint="")
    password, plugin = target.password.reveal(), greeting.plugin
    # A way that is not spoken here is answered with one that is: the server then says which it wants of this user.
    proof = mysql.prove(plugin, password, greeting.nonce)
    if proof is None:
        plugin, proof = _DEFAULT_PLUGIN, mysql.prove(_DEFAULT_PLUGIN, password, greeting.nonce) or b""
    line.say(mysql.sign_in(target.user, target.database, plugin, proof, tls=has_tls))
    for _ in range(_TURNS):
        answer = await line.hear()
        mysql.check(answer)
        if answer[0] == mysql.OK:
            return
        reply = _reply(answer, password, has_tls=has_tls)
        if reply is not None:
            line.say(reply)
    raise UpstreamMalformed(_NOT_MYSQL, hint="")


def _reply(answer: bytes, password: bytes, *, has_tls: bool) -> bytes | None:
    """What to say to a server that wants more; ``None``: nothing yet."""
    if answer[0] == mysql.SWITCH:
        plugin, nonce = mysql.switch(answer)
        proof = mysql.prove(plugin, password, nonce)
        if proof is None:
            raise Refused("error", f"The server asks for a way to sign in that is not tested here: {plugin}.")
        return proof
    if answer == bytes((mysql.MORE,)) + mysql.IN_FULL:
        if not has_tls:
            # The server's public key, asked for in clear, could be anybody's.
            raise UpstreamTls("The server asks for the password itself, which is sent under TLS only.", hint="")
        return password + b"\0"
    if answer == bytes((mysql.MORE,)) + mysql.FAST_DONE:
        return None
    raise UpstreamMalformed(_NOT_MYSQL, hint="")


async def _start_tls(line: _Line, dialer: Dialer, host: str, mode: Tls) -> None:
    context = dialer.tls(verify=mode.startswith("verify"), check_name=mode == "verify_identity")
    try:
        await line.writer.start_tls(context, server_hostname=host)
    except ssl.SSLCertVerificationError:
        raise UpstreamTls("The server's certificate could not be verified.", hint="") from None
    except (ssl.SSLError, ConnectionError):
        raise UpstreamTls("No TLS connection to the server.", hint="") from None


def _mode(target: ConnectionString) -> Tls:
    asked = next((target.parameters[name] for name in _NAMES if name in target.parameters), "preferred").lower()
    if asked not in _MODES:
        raise Invalid("The connection string asks for a kind of TLS that is not known.", hint="Write ssl-mode=VERIFY_IDENTITY.")
    return _MODES[asked]


def _raised(mode: Tls, place: Place) -> Tls:
    """On a public network at least under TLS."""
    return "required" if place.is_public and mode in {"disabled", "preferred"} else mode
