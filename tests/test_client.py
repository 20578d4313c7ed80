"""What a mistyped address or token is answered with: an error that says what to do, and never the token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from keybearer.client import Client
from keybearer.client.kv import Kv
from keybearer.errors import Forbidden, Invalid, KeybearerError, SettingsInvalid, TokenInvalid

TOKEN = "kb_kbtestclient_0123456789abcdefghijklmnopqrstuv"


@contextmanager
def answering(status: int, content_type: str, body: bytes) -> Iterator[str]:
    """A server that is none of ours: one answer to all."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base's name
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("wrong", ["kb_…", TOKEN + "\r", TOKEN + "\n", "kb_ " + TOKEN, ""])
def test_a_token_that_no_header_carries_is_refused_unseen(wrong: str) -> None:
    with pytest.raises(TokenInvalid) as refused:
        Client("http://127.0.0.1:1", wrong)
    with pytest.raises(Forbidden) as refused_there:
        Kv("https://127.0.0.1:1", wrong)
    for told in (refused.value, refused_there.value):
        assert told.hint
        assert "kbtest" not in told.message + told.hint


@pytest.mark.parametrize(
    "wrong", ["127.0.0.1:8787", "keys.example.com", "http://[::1", "ftp://host", "http://ada:kbtest@host", ""]
)
def test_what_is_no_address_is_told_as_that(wrong: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        Client(wrong, TOKEN)
    assert "KEYBEARER_URL" in refused.value.message
    assert "kbtest" not in refused.value.message


@pytest.mark.parametrize("wrong", ["https://[", "http://bao.example.com", ""])
def test_what_is_no_address_of_a_kv_engine_is_told_as_that(wrong: str) -> None:
    with pytest.raises(Invalid):
        Kv(wrong, TOKEN)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "message"),
    [
        (200, "text/html", b"<html>", "does not speak JSON"),
        (200, "application/json", b'{"items": [', "does not speak JSON"),
        (301, "text/html", b"", "answered 301"),
        (404, "application/json", b'{"fields": null}', "answered 404"),
    ],
)
def test_a_server_that_is_another_is_told_as_that(status: int, content_type: str, body: bytes, message: str) -> None:
    with answering(status, content_type, body) as url, Client(url, TOKEN) as api, pytest.raises(KeybearerError) as told:
        api.request("GET", "/me")
    assert message in told.value.message
    assert "KEYBEARER_URL" in told.value.hint
