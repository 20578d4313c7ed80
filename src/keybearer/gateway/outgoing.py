"""Requests as bytes: the strict writer. Nothing a caller hands over can end a line, add a header or change the framing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from keybearer.errors import InvalidRequest

_METHOD = re.compile(rb"[A-Z]{1,20}")
_NOT_IN_TARGET = bytes(range(0x21, 0x7F))
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VALUE = bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)) + b"\t"
_OURS = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"te", b"trailer", b"upgrade", b"expect"})
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


def build_head(method: bytes, path: bytes, host: bytes, headers: Iterable[tuple[bytes, bytes]], length: int) -> bytes:
    """Write the request's first line and headers, the empty line included.

    ``path`` is the request target in origin form (``/v1/models?limit=5``), ``host`` the ``Host`` header's value
    (``Origin.authority``), ``length`` the body's size in bytes. ``Host``, ``Content-Length`` and everything hop-by-hop are
    this module's to write. Raises ``InvalidRequest``; its message names the header, never the value.
    """
    if not _METHOD.fullmatch(method):
        raise InvalidRequest("The method is not valid.")
    if path[:1] != b"/" or path.translate(None, _NOT_IN_TARGET):
        raise InvalidRequest("The path has characters that do not belong in one.")
    if not host or host.translate(None, _NOT_IN_TARGET):
        raise InvalidRequest("The host is not valid.")
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, path, host)]
    for name, value in headers:
        if not name or name.translate(None, _TOKEN):
            raise InvalidRequest("A header's name is not valid.")
        if value.translate(None, _VALUE):
            raise InvalidRequest(f"The header {name.decode('ascii')} has control characters.")
        if name.lower() in _OURS:
            raise InvalidRequest(f"The header {name.decode('ascii')} is not the caller's to set.")
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"content-length: %d\r\n\r\n" % length if length or method in _WITH_BODY else b"\r\n")
    return b"".join(lines)


def build_request(method: bytes, path: bytes, host: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    """Write a whole request as one piece of bytes. For large bodies hand ``send`` a ``build_head`` and the body apart."""
    return build_head(method, path, host, headers, len(body)) + body
