"""Reading responses, without a socket: bytes in; head, body pieces and the end out.

llhttp (by way of httptools) does the lexing and is strict about line ends, white space, control characters, folding,
``Content-Length`` (repeated, signed, empty, overflowing, or beside ``Transfer-Encoding``) and chunk sizes. What it lets
pass and a proxy must not, is refused here. RFC 9112 is the law; where it leaves a choice, the choice is the one after
which no byte of one answer can be taken for part of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import compress
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import httptools

from keybearer.errors import UpstreamMalformed, UpstreamUnreachable

MAX_HEAD_BYTES = 64 * 1024
"""Status line and headers, interim responses included; also the most that may come between body bytes (trailers, extensions)."""
MAX_HEADERS = 100
MAX_INTERIM = 16
"""1xx responses before the final one."""

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# They would speak for the gateway's own origin: set its cookies, pin its transport, send its visitors elsewhere.
_ORIGIN_WIDE = frozenset(
    {
        b"set-cookie",
        b"set-cookie2",
        b"alt-svc",
        b"clear-site-data",
        b"refresh",
        b"strict-transport-security",
        b"nel",
        b"report-to",
    }
)
# Orders to a proxy or web server in front of us, which takes them for ours: to serve a file or an internal address of its own, or
# to keep the answer. nginx, Apache, lighttpd, LiteSpeed, Perlbal; shared caches (RFC 9213). X-Accel-Buffering is harmless and wanted.
_TO_PROXIES = frozenset(
    b"x-accel-redirect x-accel-expires x-accel-charset x-accel-limit-rate x-sendfile x-sendfile2 x-lighttpd-send-file "
    b"x-lighttpd-send-tempfile x-litespeed-location x-litespeed-cache-control x-litespeed-cache x-reproxy-url x-reproxy-file "
    b"x-reproxy-expected-size surrogate-control cdn-cache-control".split()
)
_SPECIAL = _HOP_BY_HOP | _ORIGIN_WIDE | _TO_PROXIES | {b"content-length"}
_USUAL_OPTIONS = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,\s])timeout=(\d{1,6})", re.IGNORECASE)
_VERSION, _VERSIONS = b"HTTP/1.", frozenset({"1.1", "1.0"})
_OURS = b"x-keybearer-"
_CONTINUE, _SWITCHING_PROTOCOLS, _FIRST_FINAL, _NO_CONTENT, _LAST_STATUS = 100, 101, 200, 204, 599
_NEVER_WITH_BODY = frozenset({100, 102, 103})
"""Interim responses of which llhttp knows that they have no body, whatever they state. Of all others it reads one."""
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_WITHOUT_BODY = frozenset({204, 304})
_REDIRECTS = range(300, 400)
_HEAD_END = b"\r\n\r\n"


# What ends a body (RFC 9112, section 6.3).
_NOTHING, _LENGTH, _CHUNKED, _EOF = range(4)


class _Layout(NamedTuple):
    """What becomes of headers with these names in this order."""

    names: tuple[bytes, ...]
    """In lower case."""
    is_passed_on: tuple[bool, ...]
    noted: tuple[int, ...]
    """The places of the others."""


# A provider's answers mostly have the same names in the same order, so one look-up tells of all of them. Bounded in number and size.
_LAYOUTS: dict[tuple[bytes, ...], _Layout] = {}
_MAX_LAYOUTS, _MAX_LAYOUT_BYTES = 256, 4096
_NAME, _VALUE = itemgetter(0), itemgetter(1)


def _layout(given: tuple[bytes, ...]) -> _Layout:
    names = tuple(map(bytes.lower, given))
    is_passed_on = tuple(not (name in _SPECIAL or name.startswith(_OURS)) for name in names)
    layout = _Layout(names, is_passed_on, tuple(at for at, passes in enumerate(is_passed_on) if not passes))
    if sum(map(len, given)) <= _MAX_LAYOUT_BYTES:
        if len(_LAYOUTS) >= _MAX_LAYOUTS:
            _LAYOUTS.clear()
        _LAYOUTS[given] = layout
    return layout


def _appender(raw: list[tuple[bytes, bytes]]) -> Callable[[bytes, bytes], None]:
    """A callback that costs llhttp a quarter of what a method that looks at names costs; 16 headers are 4 µs of a response."""
    append = raw.append

    def on_header(name: bytes, value: bytes) -> None:
        append((name, value))

    return on_header


class ResponseReader:
    """Reads the responses of one connection, one after the other. Feed it only between ``begin`` and ``is_complete``.

    ``status`` is 0 until the final head is complete; then ``headers`` holds what may be passed on (lower-case names;
    hop-by-hop, cookies, ``x-keybearer-*`` and a redirect's ``Location`` dropped; ``content-length`` only if it frames the
    body or describes what HEAD or 304 leave out). ``pieces`` gathers body bytes; whoever takes them clears the list.
    """

    __slots__ = (
        "_connection_options",
        "_fed",
        "_framing",
        "_has_length",
        "_head_only",
        "_interim",
        "_is_dirty",
        "_is_interim",
        "_is_version_open",
        "_parser",
        "_problem",
        "_raw",
        "_transfer_encoding",
        "headers",
        "is_complete",
        "is_reusable",
        "keep_alive_seconds",
        "on_body",
        "on_header",
        "pieces",
        "status",
    )

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append  # llhttp appends without a Python call in between
        self._raw: list[tuple[bytes, bytes]] = []
        self.on_header = _appender(self._raw)
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive_seconds: float | None = None
        """The idle time that the server announced, in seconds; it holds for the connection."""
        self._parser: Any = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self, *, head_only: bool = False) -> None:
        """Expect the next response; ``head_only`` after HEAD."""
        self.headers = []
        self._raw.clear()
        self.status = 0
        self.is_complete = False
        self.is_reusable = False
        self._has_length = False
        self._head_only = head_only
        self._fed = 0
        self._framing = _NOTHING
        self._interim = 0
        self._is_interim = False
        self._is_version_open = False
        self._is_dirty = False
        self._problem = ""
        self._transfer_encoding: bytes | None = None
        self._connection_options: bytes | None = None

    def close(self) -> None:
        """Read no more. The parser knows this and this the parser: with both hung up, up to a read's bytes would wait for the collector."""
        self._parser = None
        self._raw.clear()
        self.pieces.clear()

    def feed(self, data: bytes) -> None:
        """Read on. Raises ``UpstreamMalformed``; what was read before stays, and the connection is not to be used again."""
        before, in_head = self._fed, not self.status
        if in_head and not before and not data.startswith(_VERSION):
            if not _VERSION.startswith(data):
                raise UpstreamMalformed("The provider's answer is not HTTP/1.")
            self._is_version_open = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # After the end, an error means bytes that belong to no answer; the answer itself stands.
            if not self.is_complete:
                raise UpstreamMalformed(f"The provider's answer is malformed: {self._problem or error}.") from None
            self._is_dirty = True
        if (
            in_head
            and before + len(data) > MAX_HEAD_BYTES
            and (not self.status or before + data.find(_HEAD_END) > MAX_HEAD_BYTES)
        ):
            raise UpstreamMalformed(f"The provider's headers exceed {MAX_HEAD_BYTES} bytes.")
        if self.is_complete:
            self.is_reusable = self.is_reusable and not self._is_dirty and self._ends_exactly(data, in_head=in_head)
            if self._head_only:
                self.pieces.clear()
        elif self.pieces:
            self._fed = 0
        else:
            self._fed = before + len(data)
            if self._fed > MAX_HEAD_BYTES:
                raise UpstreamMalformed(f"The provider sent {MAX_HEAD_BYTES} bytes of framing without content.")

    def feed_eof(self) -> None:
        """Take the server's end of stream: completes a body that only this ends, else raises (nothing or half an answer)."""
        if self.status and self._framing == _EOF:
            self.is_complete = True
        elif self.status or self._fed:
            raise UpstreamMalformed("The provider's answer was cut off.")
        else:
            raise UpstreamUnreachable("The provider closed the connection without an answer.")

    def _ends_exactly(self, data: bytes, *, in_head: bool) -> bool:
        """Whether ``data`` ends where the response does. llhttp swallows line breaks between messages; in doubt: no."""
        if self._framing == _CHUNKED:
            return data.endswith(b"\r\n0\r\n\r\n") or data == b"0\r\n\r\n"
        body = len(self.pieces[-1]) if self.pieces else 0
        start = data.find(_HEAD_END) + len(_HEAD_END) if in_head else 0
        return start + body == len(data)

    # llhttp's callbacks; what they raise ends the feeding

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise UpstreamMalformed("Bytes after the end.")

    def on_headers_complete(self) -> None:
        status: int = self._parser.get_status_code()
        if status < _FIRST_FINAL:
            self._skip_interim(status)
            return
        if status > _LAST_STATUS:
            self._stop("its status is out of range")
        self._sort_headers()
        self._is_interim = False
        if self._is_version_open and self._parser.get_http_version() not in _VERSIONS:
            self._stop("its version is neither HTTP/1.1 nor HTTP/1.0")
        coding = self._transfer_encoding
        if coding is not None and (coding.strip().lower() != b"chunked" or self._parser.get_http_version() != "1.1"):
            self._stop("its transfer coding is not chunked")
        if status in _WITHOUT_BODY or self._head_only:
            self._framing = _NOTHING
        elif coding is not None:
            self._framing = _CHUNKED
        else:
            self._framing = _LENGTH if self._has_length else _EOF
        if self._connection_options is not None or status == _NO_CONTENT or status in _REDIRECTS:
            self._drop_more(status)
        self.status = status
        self.is_complete = self._head_only  # llhttp would wait for a body, so the connection is not used again

    def on_message_complete(self) -> None:
        if not self._is_interim:
            self.is_complete = True
            self.is_reusable = not self._head_only and self._parser.should_keep_alive()  # llhttp forgets it right after

    def _sort_headers(self) -> None:
        """Once per response: names in lower case, what is passed on apart from what is not. Later ones are trailers: dropped."""
        raw = self._raw
        if len(raw) > MAX_HEADERS:
            self._stop(f"it has more than {MAX_HEADERS} headers")
        given = tuple(map(_NAME, raw))
        names, is_passed_on, noted = _LAYOUTS.get(given) or _layout(given)
        self.headers = list(compress(zip(names, map(_VALUE, raw), strict=True), is_passed_on))
        for at in noted:
            self._note(names[at], raw[at][1])
        raw.clear()

    def _note(self, name: bytes, value: bytes) -> None:
        """Headers that frame or steer the connection, and those that are dropped."""
        if name == b"content-length":
            self._has_length = True
            self.headers.append((name, value.strip()))
        elif name == b"connection":
            before = self._connection_options
            if before is not None or value not in _USUAL_OPTIONS:
                self._connection_options = value if before is None else before + b"," + value
        elif name == b"transfer-encoding":
            before = self._transfer_encoding
            self._transfer_encoding = value if before is None else before + b"," + value
        elif name == b"keep-alive" and (found := _KEEP_ALIVE_TIMEOUT.search(value)):
            self.keep_alive_seconds = float(found[1])

    def _skip_interim(self, status: int) -> None:
        """1xx is for the connection, not for the client (RFC 9110, section 15.2)."""
        self._interim += 1
        if status < _CONTINUE:
            self._stop("its status is out of range")
        if status == _SWITCHING_PROTOCOLS:
            self._stop("it switches protocols without being asked")
        if self._interim > MAX_INTERIM:
            self._stop(f"it begins with more than {MAX_INTERIM} interim responses")
        if status not in _NEVER_WITH_BODY and any(name.lower() in _FRAMING for name, _ in self._raw):
            # Its bytes would come before our answer's head, and so speak for us: an answer to the next request, say.
            self._stop("an interim response states a body")
        self._is_interim = self._is_version_open = True
        self._raw.clear()

    def _drop_more(self, status: int) -> None:
        """Drop what ``Connection`` names, a 204's length, and where a redirect leads.

        SDKs would follow it with the caller's token in a header that HTTP libraries do not strip.
        """
        options = (self._connection_options or b"").lower().split(b",")
        dropped = {option.strip(b" \t") for option in options}
        if status == _NO_CONTENT:
            dropped.add(b"content-length")
        elif status in _REDIRECTS:
            dropped.add(b"location")
        self.headers = [header for header in self.headers if header[0] not in dropped]

    def _stop(self, problem: str) -> NoReturn:
        self._problem = problem
        raise UpstreamMalformed(problem)
