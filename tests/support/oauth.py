"""A provider with an OAuth token endpoint, over TLS: each refresh token grants once, and who calls it is kept with their token."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import trustme


@dataclass
class OAuthProvider:
    """What it was asked, and how it answers."""

    authority: Path
    port: int = 0
    granted: int = 0
    """Which access token it gave last; the one that was entered is number 0."""
    refused: list[str] = field(default_factory=list)
    """Refresh tokens that came a second time."""
    asked: int = 0
    """Requests at the token endpoint."""
    is_over: bool = False
    """The grant was revoked: invalid_grant."""
    called: list[str] = field(default_factory=list)
    """The access tokens of calls, in their order."""
    gate: threading.Event = field(default_factory=threading.Event)
    """Closed: whoever asks for a token waits, and is granted nothing."""

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @staticmethod
    def access(number: int) -> str:
        return f"xoxp-kbtest-access-{number:020}"

    @staticmethod
    def refresh(number: int) -> str:
        return f"kbtest-refresh-{number:020}"

    def grant(self, form: dict[str, list[str]]) -> tuple[int, dict[str, object]]:
        """Answer the token endpoint, as RFC 6749 has it, with a rotated refresh token."""
        if self.is_over:
            return 400, {"error": "invalid_grant"}
        if form.get("refresh_token") != [self.refresh(self.granted)]:
            self.refused.append(str(form.get("refresh_token")))
            return 400, {"error": "invalid_grant"}
        self.granted += 1
        return 200, {
            "access_token": self.access(self.granted),
            "refresh_token": self.refresh(self.granted),
            "token_type": "Bearer",
            "expires_in": 3600,
        }


@contextmanager
def running(directory: Path) -> Iterator[OAuthProvider]:
    """A provider for the length of a block; its authority's certificate lies in ``directory``."""
    authority = trustme.CA()
    found = OAuthProvider(directory / "authority.pem")
    found.gate.set()
    authority.cert_pem.write_to_path(str(found.authority))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.path != "/token":
                with lock:
                    found.called.append(self.headers["authorization"].removeprefix("Bearer "))
                self._answer(200, {"ok": True})
                return
            was_open = found.gate.is_set()
            with lock:
                found.asked += 1
            found.gate.wait(30)
            if was_open:
                with lock:
                    self._answer(*found.grant(parse_qs(body.decode())))

        def _answer(self, status: int, document: dict[str, object]) -> None:
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Whoever is killed in mid-request is no error of this server's."""

    server = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    found.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="oauth")
    thread.start()
    try:
        yield found
    finally:
        found.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
