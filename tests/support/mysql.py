"""A MySQL server as far as signing in: written from the protocol's description, not from the client under test.

It holds what a real one does, a hash of the password, and checks answers as that does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

USER, PASSWORD = "kbtest_user", "kbtest-p@ss/word:0123456789"
NATIVE, CACHING = "mysql_native_password", "caching_sha2_password"


@dataclass
class MysqlServer:
    """One way to answer."""

    tls: ssl.SSLContext | None = None
    plugin: str = CACHING
    """Named in the greeting."""
    wanted: str = ""
    """Switched to after the client's answer; empty: no switch."""
    in_full: bool = False
    """Whether the password itself is asked for, as after a restart."""
    refusal: tuple[int, str] | None = None
    """Said instead of a greeting."""
    after: tuple[int, str] | None = None
    """Said to whom signed in."""
    queries: list[bytes] = field(default_factory=list)
    was_tls: bool = False
    wrapped: list[socket.socket] = field(default_factory=list, repr=False)

    def converse(self, line: socket.socket) -> None:  # noqa: C901  # a protocol, told in its order
        sequence = 0

        def say(payload: bytes) -> None:
            nonlocal sequence
            line.sendall(len(payload).to_bytes(3, "little") + bytes([sequence % 256]) + payload)
            sequence += 1

        def exactly(size: int) -> bytes:
            found = b""
            while len(found) < size:
                piece = line.recv(size - len(found))
                if not piece:
                    raise ConnectionResetError
                found += piece
            return found

        def refuse(code: int, words: str, *, state: bool = True) -> None:
            say(b"\xff" + code.to_bytes(2, "little") + (b"#HY000" if state else b"") + words.encode())

        def hear() -> bytes:
            nonlocal sequence
            head = exactly(4)
            sequence = head[3] + 1
            return exactly(int.from_bytes(head[:3], "little"))

        if self.refusal is not None:
            refuse(*self.refusal, state=False)
            return
        nonce = bytes(byte % 127 + 1 for byte in os.urandom(20))
        flags = 0x8 | 0x200 | 0x8000 | 0x80000 | (0x800 if self.tls else 0)
        say(
            b"\x0a8.4.0-kbtest\0" + (7).to_bytes(4, "little") + nonce[:8] + b"\0" + (flags & 0xFFFF).to_bytes(2, "little")
            + b"\xff" + (2).to_bytes(2, "little") + (flags >> 16).to_bytes(2, "little") + bytes([21]) + bytes(10)
            + nonce[8:] + b"\0" + self.plugin.encode() + b"\0"
        )  # fmt: skip
        answer = hear()
        if len(answer) == 32:
            assert self.tls is not None
            line = self.tls.wrap_socket(line, server_side=True)
            self.wrapped.append(line)
            self.was_tls = True
            answer = hear()
        user, _, rest = answer[32:].partition(b"\0")
        proof, plugin = rest[1 : 1 + rest[0]], self.plugin
        if self.wanted:
            plugin, nonce = self.wanted, bytes(byte % 127 + 1 for byte in os.urandom(20))
            say(b"\xfe" + plugin.encode() + b"\0" + nonce + b"\0")
            proof = hear()
        if plugin == CACHING and self.in_full:
            say(b"\x01\x04")
            good = hear() == PASSWORD.encode() + b"\0"
        else:
            good = _fits(plugin, proof, nonce)
            if good and plugin == CACHING:
                say(b"\x01\x03")
        if not good or user != USER.encode():
            refuse(1045, f"Access denied for user '{user.decode()}'@'127.0.0.1' (using password: YES)")
            return
        if self.after is not None:
            refuse(*self.after)
            return
        say(b"\0\0\0\2\0\0\0")
        while (query := hear()) != b"\x01":
            self.queries.append(query)
            say(b"\x01")
            say(b"\x03def\0\0\0\x011\0\x0c\x3f\0\x01\0\0\0\x08\x81\0\0\0\0")
            say(b"\xfe\0\0\2\0")
            say(b"\x011")
            say(b"\xfe\0\0\2\0")


@contextlib.contextmanager
def running(server: MysqlServer) -> Iterator[int]:
    """Serve for the length of a block; gives the port. In threads: whoever asks for TLS speaks it at once, unread bytes included."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(10)
            with contextlib.suppress(OSError):
                server.converse(self.request)
            while server.wrapped:
                server.wrapped.pop().close()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads, listening.block_on_close = True, False
        thread = threading.Thread(target=lambda: listening.serve_forever(0.02), daemon=True)
        thread.start()
        try:
            yield int(listening.server_address[1])
        finally:
            listening.shutdown()
            thread.join(10)


def _fits(plugin: str, proof: bytes, nonce: bytes) -> bool:
    name = "sha1" if plugin == NATIVE else "sha256"

    def digest(data: bytes) -> bytes:
        return hashlib.new(name, data).digest()

    stored = digest(digest(PASSWORD.encode()))
    mixed = digest(nonce + stored) if plugin == NATIVE else digest(stored + nonce)
    return len(proof) == len(mixed) and digest(bytes(a ^ b for a, b in zip(proof, mixed, strict=True))) == stored
