"""A request's head, read strictly: what is malformed or ambiguous is refused here, before anything acts on it.

llhttp (strict mode) already refuses obs-fold, bare CR and LF, NUL and control characters in values, both lengths, repeated
or crooked Content-Length and white space before the colon; what it lets pass is refused in ``read_head`` and ``fields``: other
versions, absolute, authority and asterisk form, fragments, missing or repeated Host, codings before ``chunked``,
Transfer-Encoding on HTTP/1.0, Upgrade, and sizes (RFC 9112 §3, §5, §6). Tests hold both halves: a laxer parser is noticed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from keybearer.errors import CredentialsConflict, InvalidRequest, TooLarge
from keybearer.gateway.endpoints import Route
from keybearer.gateway.fields import Fields, Headers
from keybearer.gateway.limits import Limits

if TYPE_CHECKING:
    from keybearer.gateway.course import Course, CourseKey
    from keybearer.gateway.ready import Admission

_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*\Z")  # origin form, no fragment
_TOKEN = re.compile(rb"kb_[0-9A-Za-z]{12}_[0-9A-Za-z]")


class Head:
    """A request's head after the checks, all but the body's length. Nothing changes what it says: trailers never reach it.

    Programs send the same head over and over, so a connection keeps the last one, and with it what the gateway found out for it:
    which token this is, where its calls go. None of that is secret, and none is followed without a look at whether it still holds.
    """

    __slots__ = ("admission", "courses", "fields", "method", "path", "query", "route", "target")

    def __init__(self, method: bytes, target: bytes, fields: Fields) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.fields = fields
        self.admission: Admission | None = None
        self.route: Route | None = None
        self.courses: dict[CourseKey, Course] = {}

    def headers(self, length: int | None) -> Headers:
        """All headers for the ASGI app, as its own list: names lower-cased, in the order sent. ``length``: the body's, declared."""
        found = self.fields.headers.copy()
        if self.fields.length_at >= 0:
            found[self.fields.length_at] = (b"content-length", b"%d" % (length or 0))
        return found


def read_head(first: tuple[bytes, str, bytes], sent: Headers, known: Head | None, limits: Limits) -> Head:
    """The head of a request from what the parser gave. Raises ``InvalidRequest`` or ``TooLarge``.

    ``first``: method, version, target; ``sent``: headers with names as sent; ``known``: the last request's, which is given again if
    this one says the same.
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
    if known is None or not known.fields.says(sent, is_http10=is_http10):
        return Head(method, target, Fields(sent, is_http10=is_http10))
    return known if known.target == target and known.method == method else Head(method, target, known.fields)


_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*(?=\r\n)", re.IGNORECASE)
_MAX_DIGITS = 8


class Spelling:
    """How a head that was read and acted on was spelled: the same bytes, but for the length, mean the same again.

    Recognising them costs five look-ups in C instead of some twenty callbacks of the parser.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    @classmethod
    def of(cls, data: bytes, length: int) -> Spelling | None:
        """The spelling of the head in ``data`` if that is one whole request with a body of ``length`` bytes, framed by its length."""
        end = data.find(b"\r\n\r\n") + 4
        found = _LENGTH.search(data, 0, end)
        if found is None or int(found[1]) != length or end + length != len(data):
            return None
        return cls(data[: found.start(1)], data[found.end(1) : end])

    def body(self, data: bytes) -> bytes | None:
        """The body, if ``data`` is one whole request with this head; ``None``: read it."""
        before = self._before
        if not data.startswith(before):
            return None
        at = len(before)
        end = data.find(b"\r", at, at + _MAX_DIGITS + 1)
        digits = data[at:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        body = data[end + len(self._after) :]
        return body if len(body) == int(digits) else None


def refuse_token_elsewhere(target: bytes, forwarded: bytes) -> None:
    """A token in the URL ends up in logs, and at the provider; so does one in a header that goes on. Raises ``CredentialsConflict``."""
    if b"kb_" in target and _TOKEN.search(target) is not None:
        raise CredentialsConflict(
            "A token was sent in the URL.", hint="Send it in a header. URLs end up in logs: revoke this one."
        )
    if b"kb_" in forwarded and _TOKEN.search(forwarded) is not None:
        raise CredentialsConflict(
            "A token was sent in a header that the provider would be sent, too.",
            hint="Send it as Bearer, x-api-key, x-goog-api-key or api-key, and nowhere else.",
        )
