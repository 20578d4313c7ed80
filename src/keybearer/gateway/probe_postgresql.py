"""The connection test of PostgreSQL: libpq itself connects, to the address that was checked, signs in and asks for one row.

Nothing of this server's own surroundings comes along: no password file, no client certificate, no Kerberos, no file that the
connection string names. Source: PostgreSQL's documentation, "Database Connection Control Functions" (libpq).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from keybearer.domain import SecretBytes
from keybearer.errors import KeybearerError, UpstreamError, UpstreamTls
from keybearer.gateway.connection_string import checked_port, not_readable, one_host
from keybearer.gateway.dial import Dialer, Place
from keybearer.gateway.verdict import ProbeStatus, Refused, masked

DEFAULT_PORT = 5432
_DRIVER = re.compile(r"^postgres(?:ql)?(?:\+[a-z0-9]+)?://", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_TAKEN = ("user", "password", "dbname")
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_IN_CLEAR = frozenset({"disable", "allow", "prefer"})
_WORDS: tuple[tuple[str, ProbeStatus, str], ...] = (
    # The server's words are those of its own language; what is not recognised is passed on as an error.
    ("password authentication failed", "invalid", "The server refused the user name or the password."),
    ("no password supplied", "invalid", "The server asks for a password, and the connection string has none."),
    (r"role \"[^\"]*\" does not exist", "invalid", "The server does not know the user."),
    (r"no pg_hba\.conf entry", "forbidden", "The server's pg_hba.conf does not let this user in from here."),
    (r"pg_hba\.conf rejects", "forbidden", "The server's pg_hba.conf does not let this user in from here."),
    ("permission denied for database", "forbidden", "The user may not connect to this database."),
    ("not permitted to log in", "forbidden", "The user is not permitted to sign in."),
    ("too many c", "rate_limited", "The server has no connection left."),
    ("remaining connection slots", "rate_limited", "The server has no connection left."),
    ("does not support ssl", "tls", "The server does not speak TLS, and in clear no password is sent to it."),
    ("certificate", "tls", "The server's certificate could not be verified."),
    ("ssl error", "tls", "No TLS connection to the server."),
    ("connection refused", "unreachable", "The connection was refused."),
    ("no route to host", "unreachable", "There is no route to the server."),
    ("network is unreachable", "unreachable", "There is no route to the server."),
    ("timeout expired", "timeout", "The server did not answer in time."),
    ("server closed the connection unexpectedly", "error", "The server closed the connection. Is it PostgreSQL?"),
    ("received invalid response", "error", "The server does not speak PostgreSQL's protocol."),
    ("expected authentication request", "error", "The server does not speak PostgreSQL's protocol."),
)


async def probe_postgresql(dialer: Dialer, value: SecretBytes, *, is_systems: bool, seconds: float) -> None:
    """Connect, sign in, ``SELECT 1``. Raises ``Invalid`` for what is no connection string, ``Refused``, ``KeybearerError``."""
    given = _parsed(value)
    place = await dialer.find(one_host(given.get("host", "")), _port(given), is_systems=is_systems)
    parameters = _parameters(given, place, dialer, seconds)
    try:
        async with await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=None) as connection:
            await connection.execute("SELECT 1")
    except psycopg.Error as error:
        raise _translated(error, (given[name] for name in _TAKEN if name in given)) from None


def _parsed(value: SecretBytes) -> dict[str, str]:
    text = _DRIVER.sub("postgresql://", value.reveal().decode("utf-8", "replace"))
    try:
        found = {name: str(part) for name, part in conninfo_to_dict(text).items() if part}
    except psycopg.Error:  # its words repeat the text
        raise not_readable() from None
    if "hostaddr" in found:
        found.setdefault("host", found["hostaddr"])
    if "host" not in found:
        raise not_readable()
    return found


def _port(given: dict[str, str]) -> int:
    text = given.get("port", str(DEFAULT_PORT))
    if not _PORT.fullmatch(text):
        raise not_readable()
    return checked_port(int(text))


def _parameters(given: dict[str, str], place: Place, dialer: Dialer, seconds: float) -> dict[str, Any]:
    """What libpq is told: everything that it would else take from its surroundings is set."""
    mode = given.get("sslmode", "prefer")
    if mode not in _MODES:
        raise not_readable()
    if place.is_public and mode in _IN_CLEAR:
        mode = "require"
    verified: dict[str, str] = {}
    if mode.startswith("verify"):
        # The system's authorities are trusted for names only: any of them signs for anybody.
        authorities = str(dialer.ca_file) if dialer.ca_file is not None else "system"
        mode = "verify-full" if authorities == "system" else mode
        verified = {"sslrootcert": authorities}
    return {
        **{name: given[name] for name in _TAKEN if name in given},
        "host": place.host,
        "hostaddr": place.address,
        "port": str(place.port),
        "sslmode": mode,
        "sslrootcert": "/dev/null/none",
        **verified,
        "sslcertmode": "disable",
        "sslnegotiation": "postgres",
        "gssencmode": "disable",
        "require_auth": "!gss,!sspi",
        "passfile": "/dev/null",
        "connect_timeout": str(max(2, int(seconds))),
        "application_name": "keybearer",
        "options": "",
        "target_session_attrs": "any",
    }


def _translated(error: psycopg.Error, hidden: Iterable[str]) -> KeybearerError | Refused:
    # Several attempts are a line each: the last is the one that counts.
    text = str(error).strip()
    words = text.rpartition(" failed: ")[2].strip()
    lowered = words.lower()
    for pattern, status, message in _WORDS:
        if re.search(pattern, lowered):
            return UpstreamTls(message, hint="") if status == "tls" else Refused(status, message)
    if re.match(r"\w+:  ", words):  # "FATAL:  ": the server's own, in whichever language
        return Refused("error", masked(words.partition(":")[2].strip(), hidden))
    return UpstreamError("The server could not be connected to.", hint="")
