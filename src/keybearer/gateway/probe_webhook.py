"""The connection test of a webhook: its address is asked, or sent a signed message that says that it is a test.

A secret for the provider ``webhook`` is either the address itself, which gives the right to post there, or the secret that messages
are signed with (Standard Webhooks); then the address is named with the test, and is sent a signature, never the secret.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from keybearer import __version__
from keybearer.domain import SecretBytes
from keybearer.errors import FieldError, Invalid
from keybearer.gateway.asking import ask
from keybearer.gateway.egress import Origin, origin_of
from keybearer.gateway.probe import MAX_BODY_BYTES, failed, plain_text, redacted, refusal_status
from keybearer.gateway.standard_webhook import signed_headers
from keybearer.gateway.upstream import Target, Upstream, build_request
from keybearer.gateway.verdict import ProbeResult

Method = Literal["HEAD", "GET", "POST"]

_PATH = re.compile(r"/[!-~]*", re.ASCII)
_USER_AGENT = f"keybearer/{__version__}".encode()


def address_of(url: str) -> tuple[Origin, bytes]:
    """Origin and path, with its query, of an address. Raises ``Invalid``, which repeats nothing of it."""
    if not (url.isascii() and url.isprintable()) or "#" in url:
        raise _wrong()
    try:
        origin = origin_of(url.partition("?")[0])
    except Invalid as error:
        raise _wrong(error.message) from None
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _PATH.fullmatch(path):
        raise _wrong()
    return origin, path.encode("ascii")


async def probe_webhook(
    upstream: Upstream, value: SecretBytes, url: str, method: Method | None, owner: UUID | None, *, seconds: float
) -> ProbeResult:
    """Ask the address. ``url`` is empty where the value is the address; ``method``: HEAD by default, POST where it is signed.

    ``upstream`` holds to what users' addresses may be. Raises ``Invalid`` for what is no address.
    """
    text = value.reveal().decode("utf-8", "replace")
    is_address = text.startswith(("https://", "http://"))
    if not is_address and not url:
        raise Invalid(
            "A secret that signs webhooks is tested with an address.",
            hint='Name it: {"url": "https://…"}.',
            fields=(FieldError("url", "is required"),),
        )
    origin, path = address_of(text if is_address else url)
    method = method or ("HEAD" if is_address else "POST")
    body = b""
    headers = [(b"accept", b"*/*"), (b"accept-encoding", b"identity"), (b"user-agent", _USER_AGENT)]
    if method == "POST":
        now = datetime.now(UTC)
        body = json.dumps({"type": "keybearer.test", "timestamp": now.isoformat(), "data": {}}).encode()
        headers.append((b"content-type", b"application/json"))
        if not is_address:
            headers += signed_headers(value, f"msg_{uuid4().hex}", now, body)
    request = build_request(method.encode(), path, origin.authority, headers, body)
    # Whether this is a private host that may be reached is this upstream's policy; nobody shares the connection.
    target = Target(origin, owner or uuid4(), admin_defined=True)
    answer = await ask(upstream, target, request, seconds, most=MAX_BODY_BYTES, is_head=method == "HEAD")
    if answer.failure is not None:
        return failed(answer.failure, answer.latency_ms)
    if 200 <= answer.status < 300:  # noqa: PLR2004  # the class of success
        return ProbeResult("ok", answer.latency_ms, http_status=answer.status)
    words = plain_text(None, bytes(answer.body)) or f"The address answered {method} with status {answer.status}."
    hidden = redacted(words, SecretBytes(path) if is_address else value)
    if answer.status == 410:  # noqa: PLR2004  # RFC 9110: gone, and for good
        return ProbeResult("invalid", answer.latency_ms, message=hidden, http_status=answer.status)
    return ProbeResult(refusal_status(answer.status, None, words), answer.latency_ms, message=hidden, http_status=answer.status)


def _wrong(message: str = "The address of a webhook is https://host[:port][/path][?query].") -> Invalid:
    return Invalid(message, hint="", fields=(FieldError("url", "is no address"),))
