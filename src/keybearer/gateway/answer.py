"""Answers that Keybearer gives itself, as bytes: refusals and local results. What a provider answered is relayed in ``relay``."""

from __future__ import annotations

import json
import math
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from keybearer.errors import KeybearerError
from keybearer.gateway import dialect
from keybearer.gateway.fields import Headers

NOT_STORED = (b"cache-control", b"no-store")
JSON_HEADERS: Headers = [(b"content-type", b"application/json"), NOT_STORED]
PROBE_BODY = b"{}"
"""Says to whoever knocks at a dialect's base that somebody is there, and nothing else."""
_UNSEEN: Headers = [(b"content-security-policy", b"default-src 'none'"), (b"x-content-type-options", b"nosniff")]
"""An error is no page, whatever a browser thinks."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    """``HTTP/1.1 200 OK`` and its line end; statuses without a name have none."""
    return STATUS_LINE.get(status) or b"HTTP/1.1 %d \r\n" % status


def answer(
    status: int, headers: Headers, body: bytes, receipt: bytes = b"", *, is_head: bool = False, keep_alive: bool = True
) -> bytes:
    """One whole answer with its length; to HEAD without the body. ``receipt``: further header lines."""
    lines = [status_line(status)]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines += (receipt, b"content-length: %d\r\n" % len(body))
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    if not is_head:
        lines.append(body)
    return b"".join(lines)


def error_headers(error: KeybearerError, content_type: bytes) -> Headers:
    """The headers of an error: its type, when to come again, how to authenticate; never cached."""
    headers = [(b"content-type", content_type), NOT_STORED]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(0, math.ceil(error.retry_after))))
    if error.status == 401:  # noqa: PLR2004  # RFC 9110 §15.5.2 asks for the header
        headers.append((b"www-authenticate", b'Bearer realm="keybearer"'))
    return headers


def dialect_error(error: KeybearerError, name: str, request_id: str, default_headers: Headers, *, is_head: bool = False) -> bytes:
    """An error in a dialect's shape, for gateway requests whose head is refused; the connection ends."""
    status, content_type, body = dialect.error_body(name, error, request_id)
    receipt = b"x-keybearer-request-id: %b\r\n" % request_id.encode("ascii")
    return answer(status, default_headers + error_headers(error, content_type), body, receipt, is_head=is_head, keep_alive=False)


def problem(
    error: KeybearerError, default_headers: Headers, receipt: bytes = b"", *, is_head: bool = False, keep_alive: bool = False
) -> bytes:
    """An error as problem details (RFC 9457), as ``api.problems`` writes them, for what is refused outside the gateway's paths."""
    detail: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
    }
    if error.fields:
        detail["fields"] = [{"field": wrong.field, "message": wrong.message} for wrong in error.fields]
    body = json.dumps(detail, ensure_ascii=False).encode()
    headers = [*default_headers, *error_headers(error, b"application/problem+json"), *_UNSEEN]
    return answer(error.status, headers, body, receipt, is_head=is_head, keep_alive=keep_alive)
