"""HTTP/1 requests from bytes, strictly. Knows no socket: bytes in, events out.

llhttp refuses most of what is malformed; sizes, repeated headers and ambiguous lengths are judged here.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from keybearer.mock.wire import Request

MOST_HEADER_BYTES = 64 * 1024
MOST_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Continue:
    """The client waits for ``100 Continue`` before it sends the body."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """What came cannot be understood: answer so and close. Nothing follows it."""

    status: int
    why: str


Event = Request | Continue | Malformed


class RequestParser:
    """Requests of one connection, as they come."""

    def __init__(self) -> None:
        self.in_message = False
        """Whether a request has begun and not ended."""
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[Event] = []
        self._is_broken = False
        self.on_message_begin()
        self.in_message = False

    def feed(self, data: bytes) -> list[Event]:
        """Return what ``data`` completes. After a ``Malformed`` nothing more is understood."""
        if self._is_broken:
            return []
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
            self._break(400, f"malformed HTTP: {error}")
        events, self._events = self._events, []
        return events

    # Called by the parser.

    def on_message_begin(self) -> None:
        self.in_message = True
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._header_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._in_headers = True

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._in_headers:  # trailers are nothing to a provider
            self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._in_headers = False
        problem = self._problem()
        if problem is not None:
            self._break(*problem)
            return
        expected = [value.lower() for name, value in self._headers if name == "expect"]
        if expected == ["100-continue"] and self._parser.get_http_version() == "1.1":
            self._events.append(Continue())
        elif expected and expected != ["100-continue"]:
            self._break(417, "only 100-continue is understood")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > MOST_BODY_BYTES:
            self._break(413, f"bodies may have {MOST_BODY_BYTES} bytes")
        elif not self._is_broken:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self.in_message = False
        if self._is_broken:
            return
        self._events.append(
            Request(
                self._parser.get_method().decode("latin-1"),
                self._target.decode("latin-1"),
                tuple(self._headers),
                b"".join(self._body),
                self._parser.get_http_version(),
                self._parser.should_keep_alive(),
            )
        )

    def _problem(self) -> tuple[int, str] | None:
        names = [name for name, _ in self._headers]
        version = self._parser.get_http_version()
        encodings = [value.strip().lower() for name, value in self._headers if name == "transfer-encoding"]
        if version not in {"1.0", "1.1"}:
            return 505, "HTTP/1.0 and HTTP/1.1 are spoken here"
        if self._parser.should_upgrade():
            return 400, "upgrades are not spoken here"
        if names.count("host") > 1 or (version == "1.1" and "host" not in names):
            return 400, "exactly one Host header is needed"
        if names.count("content-length") > 1:
            return 400, "more than one Content-Length"
        if encodings and (encodings != ["chunked"] or version == "1.0" or "content-length" in names):
            return 400, "only chunked is understood as Transfer-Encoding, in HTTP/1.1 and without Content-Length"
        if not self._target.startswith(b"/"):
            return 400, "the target must be a path"
        return None

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MOST_HEADER_BYTES:
            self._break(431, f"headers may have {MOST_HEADER_BYTES} bytes")

    def _break(self, status: int, why: str) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._events.append(Malformed(status, why))
