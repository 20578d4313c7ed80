"""Connection strings taken apart: ``scheme://user:password@host:port/database?parameter=value``. Pure.

No message repeats any part of one: what parses as a host may be a part of the password.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from keybearer.domain import SecretBytes
from keybearer.errors import Invalid
from keybearer.gateway.egress import canonical_host

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """The parts; ``host`` in canonical form, ``parameters`` with names and values as they stand there."""

    scheme: str
    host: str
    port: int
    user: str = field(repr=False)
    password: SecretBytes
    database: str = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)

    @property
    def hidden(self) -> tuple[str, ...]:
        """What no message shows: listings have scheme and host only."""
        return tuple(part for part in (self.password.reveal().decode("utf-8", "replace"), self.user, self.database) if part)


def parse(text: str, default_port: int) -> ConnectionString:
    """Take a connection string apart. Raises ``Invalid`` for what is none, names no host or several, or a socket's path."""
    try:
        parts = urlsplit(text)
        port = default_port if parts.port is None else parts.port
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict"))
        user, password = (unquote(part or "", errors="strict") for part in (parts.username, parts.password))
        database = unquote(parts.path.removeprefix("/"), errors="strict")
    except ValueError:
        raise not_readable() from None
    if not parts.scheme or not parts.hostname or parts.fragment:
        raise not_readable()
    if any("\x00" in part for part in (user, password, database)):
        raise not_readable()
    return ConnectionString(
        parts.scheme, one_host(parts.hostname), checked_port(port), user, SecretBytes(password.encode()), database, parameters
    )


def one_host(host: str) -> str:
    """A host's name or address in canonical form. Raises ``Invalid`` for several of them and for a socket's path."""
    if "," in host:
        raise Invalid("The connection string names several hosts.", hint="Test it with one of them.")
    if host.startswith(("/", "@")):
        raise Invalid("The connection string names a socket of this machine, not a host.", hint="Name a host.")
    try:
        return canonical_host(host)
    except Invalid:
        raise not_readable() from None


def checked_port(port: int) -> int:
    """Raise ``Invalid`` for a number that is no port."""
    if not 0 < port <= _MAX_PORT:
        raise not_readable()
    return port


def not_readable() -> Invalid:
    """What is said of text that is no connection string."""
    return Invalid(
        "The connection string cannot be read.",
        hint="Write scheme://user:password@host:port/database, with special characters of the password percent-encoded.",
    )
