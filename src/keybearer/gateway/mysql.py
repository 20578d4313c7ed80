"""MySQL's protocol, as far as signing in and one query need it. Pure: bytes in, bytes out.

Source: MySQL Internals, Client/Server Protocol (dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html): handshake version 10,
``mysql_native_password``, ``caching_sha2_password``. MariaDB speaks the same.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from keybearer.errors import UpstreamMalformed

MAX_PACKET: Final = 2**16
"""Bytes; what a server says while one signs in is far shorter."""

CONNECT_WITH_DB: Final = 0x8
PROTOCOL_41: Final = 0x200
SSL: Final = 0x800
SECURE_CONNECTION: Final = 0x8000
PLUGIN_AUTH: Final = 0x80000
_NEEDED: Final = PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH
_UTF8MB4: Final = 45
_NONCE: Final = 20

OK, MORE, SWITCH, ERROR = 0x00, 0x01, 0xFE, 0xFF
FAST_DONE, IN_FULL = b"\x03", b"\x04"
"""What ``caching_sha2_password`` says after its first answer: known, or send the password itself."""
QUIT: Final = b"\x01"
SELECT_1: Final = b"\x03SELECT 1"


class ServerError(Exception):
    """The server's own refusal: its number and words."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says first."""

    capabilities: int
    nonce: bytes
    plugin: str


def packet(sequence: int, payload: bytes) -> bytes:
    """Frame a payload."""
    return len(payload).to_bytes(3, "little") + bytes((sequence & 0xFF,)) + payload


def greeting(payload: bytes) -> Greeting:
    """Read a handshake of version 10. Raises ``ServerError`` where the server refuses at once, ``UpstreamMalformed``."""
    check(payload)
    try:
        if payload[0] != 10:  # noqa: PLR2004  # the version since 1998
            raise UpstreamMalformed("The server does not speak MySQL's protocol.")
        at = payload.index(b"\0", 1) + 5  # behind version and connection id
        first = payload[at : at + 8]
        low, _charset, _status, high, length = struct.unpack_from("<HBHHB", payload, at + 9)
        rest = at + 9 + 8 + 10
        size = max(13, length - 8)
        second = payload[rest : rest + size].rstrip(b"\0")
        name, _, _ = payload[rest + size :].partition(b"\0")
    except (IndexError, ValueError, struct.error):
        raise UpstreamMalformed("The server does not speak MySQL's protocol.") from None
    capabilities = low | high << 16
    if capabilities & _NEEDED != _NEEDED:
        raise UpstreamMalformed("The server speaks a version of MySQL's protocol from before 5.5.")
    return Greeting(capabilities, (first + second)[:_NONCE], name.decode("ascii", "replace"))


def ssl_request(database: str) -> bytes:
    """Ask to go on under TLS."""
    return struct.pack("<IIB23x", _flags(database) | SSL, MAX_PACKET, _UTF8MB4)


def sign_in(user: str, database: str, plugin: str, proof: bytes, *, tls: bool) -> bytes:
    """The answer to the greeting."""
    head = struct.pack("<IIB23x", _flags(database) | (SSL if tls else 0), MAX_PACKET, _UTF8MB4)
    named = database.encode() + b"\0" if database else b""
    return head + user.encode() + b"\0" + bytes((len(proof),)) + proof + named + plugin.encode("ascii", "replace") + b"\0"


def prove(plugin: str, password: bytes, nonce: bytes) -> bytes | None:
    """That one knows the password, without saying it; ``None`` for ways to sign in that are not spoken here."""
    if not password:
        return b""
    if plugin == "mysql_native_password":
        # SHA-1 is the protocol's own, and long known to be weak; the server chose it.
        inner = hashlib.sha1(password, usedforsecurity=False).digest()
        twice = hashlib.sha1(inner, usedforsecurity=False).digest()
        return _xor(inner, hashlib.sha1(nonce + twice, usedforsecurity=False).digest())
    if plugin == "caching_sha2_password":
        inner = hashlib.sha256(password).digest()
        twice = hashlib.sha256(inner).digest()
        return _xor(inner, hashlib.sha256(twice + nonce).digest())
    return None


def switch(payload: bytes) -> tuple[str, bytes]:
    """Another way to sign in, which the server asks for, and its nonce."""
    plugin, _, nonce = payload[1:].partition(b"\0")
    return plugin.decode("ascii", "replace"), nonce.rstrip(b"\0")[:_NONCE]


def check(payload: bytes) -> None:
    """Raise ``ServerError`` for the server's refusal, ``UpstreamMalformed`` for an empty packet."""
    if not payload:
        raise UpstreamMalformed("The server's answer was malformed.")
    if payload[0] != ERROR:
        return
    words = payload[3:]
    if words.startswith(b"#"):  # five characters of SQLSTATE, after the handshake
        words = words[6:]
    raise ServerError(int.from_bytes(payload[1:3], "little"), words.decode("utf-8", "replace"))


def _flags(database: str) -> int:
    return _NEEDED | (CONNECT_WITH_DB if database else 0)


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
