"""A request's head, read strictly: what is malformed or ambiguous is refused here, before anything acts on it.

llhttp (strict mode) already refuses obs-fold, bare CR and LF, NUL and control characters in values, both lengths, repeated
or crooked Content-Length and white space before the colon; what it lets pass is refused in ``read_head`` and ``fields``: other
versions, absolute, authority and asterisk form, fragments, missing or repeated Host, codings before ``chunked``,
Transfer-Encoding on HTTP/1.0, Upgrade, and sizes (RFC 9112 §3, §5, §6). Tests hold both halves: a laxer parser is noticed.
"""

from __future__ import annotations

import re

from keybearer.errors import CredentialsConflict, InvalidRequest, TooLarge
from keybearer.gateway.fields import Fields, Headers
from keybearer.gateway.limits import Limits

_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*\Z")  # origin form, no fragment
_TOKEN = re.compile(rb"kb_[0-9A-Za-z]{12}_[0-9A-Za-z]")


class Head:
    """One request's head after the checks. Nothing changes it after headers-complete: trailers never reach it."""

    __slots__ = ("fields", "length", "method", "path", "query", "target")

    def __init__(self, method: bytes, target: bytes, fields: Fields, length: int | None) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.fields = fields
        self.length = length
        """Declared body length; ``None``: chunked."""

    def headers(self) -> Headers:
        """All headers for the ASGI app, as its own list: names lower-cased, in the order sent."""
        found = self.fields.headers.copy()
        if self.fields.length_at >= 0:
            found[self.fields.length_at] = (b"content-length", b"%d" % (self.length or 0))
        return found


def read_head(first: tuple[bytes, str, bytes], sent: Headers, known: Fields | None, limits: Limits) -> Head:
    """The head of a request from what the parser gave. Raises ``InvalidRequest`` or ``TooLarge``.

    ``first``: method, version, target; ``sent``: headers with names as sent; ``known``: what the last request's said.
    """
    method, version, target = first
    if version not in ("1.1", "1.0"):
        raise InvalidRequest("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if len(sent) > limits.header_count:
        raise TooLarge(f"The request has more than {limits.header_count} headers.")
    if len(target) > limits.target_bytes:
        raise TooLarge(f"The request target is longer than {limits.target_bytes} bytes.")
    if _TARGET.match(target) is None or method == b"CONNECT":
        raise InvalidRequest("The request target must be a path: absolute, authority and asterisk form are not served.")
    is_http10 = version == "1.0"
    fields = known if known is not None and known.says(sent, is_http10=is_http10) else Fields(sent, is_http10=is_http10)
    return Head(method, target, fields, fields.read_length(sent))


def refuse_token_in_target(target: bytes) -> None:
    """A token in the URL ends up in logs, and at the provider. Raises ``CredentialsConflict``."""
    if b"kb_" in target and _TOKEN.search(target) is not None:
        raise CredentialsConflict(
            "A token was sent in the URL.", hint="Send it in a header. URLs end up in logs: revoke this one."
        )
