"""The way back: a provider's answer to the client, byte for byte as it comes; then meter, settle, note the outcome.

A ``Relay`` is the ``Sink`` of one upstream call, which has taken cookies, hop-by-hop and ``x-keybearer-*`` headers out. Head, body and
the end of the body leave in one write when they come together: a write is a system call. Answers that came so leave right after those
of the same turn of the event loop and the next. What is not relayed as it came: errors, which are scrubbed of the key, and the usage
event that the client did not ask for. A stream that breaks off between two events ends with an error event in the dialect's own shape,
and the connection is closed without the last chunk, so that nobody takes it for whole.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from keybearer.domain import Credential, Usage
from keybearer.errors import (
    Frozen,
    KeybearerError,
    TrustLost,
    Unavailable,
    UpstreamError,
    UpstreamMalformed,
    UpstreamUnreachable,
)
from keybearer.gateway import dialect
from keybearer.gateway.answer import NOT_STORED, status_line
from keybearer.gateway.dialect import UsageHider
from keybearer.gateway.fields import Headers
from keybearer.gateway.health import KEY_REFUSED, TOO_MANY
from keybearer.gateway.leftover import leave
from keybearer.gateway.plan import Plan
from keybearer.gateway.ring import PASSING
from keybearer.gateway.scrubber import Scrubber
from keybearer.gateway.upstream import Call
from keybearer.gateway.use import CLIENT_GONE
from keybearer.usage.meter import Meter, usage_of

if TYPE_CHECKING:
    from keybearer.gateway.exchange import Exchange
    from keybearer.gateway.ready import Ready

_FIRST_ERROR = 400
_ANOTHER_KEY = KEY_REFUSED | {TOO_MANY}
"""Statuses of a client's error, by their number, that are the key's: another may do. So it may after any error of the server's."""
_FIRST_OF_SERVER = 500
_WITHOUT_BODY = (204, 304)
_FOR_CACHES = frozenset({b"cache-control", b"expires", b"pragma"})
NO_USAGE = Usage()
_field = b": ".join


class Overtaken(Unavailable):
    """What this call needs has changed while it was on its way."""


class Relay:
    """One answer on its way to the client."""

    __slots__ = (
        "_body",
        "_dialect",
        "_exchange",
        "_filter",
        "_first_byte",
        "_has_written",
        "_head",
        "_is_chunked",
        "_is_event_stream",
        "_is_metered",
        "_is_over",
        "_meter",
        "_metering",
        "_operation",
        "_status",
        "_streamed",
        "_usage",
        "call",
    )

    def __init__(self, exchange: Exchange, planned: Plan, *, hides_usage: bool) -> None:
        self.call: Call | None = None
        """Set by the exchange as soon as ``send`` returns; nothing but ``may_send`` is called before."""
        self._exchange = exchange
        self._dialect = planned.dialect
        self._operation = planned.operation
        self._streamed = planned.streamed
        self._meter: Meter | None = None
        """Of an answer that comes in pieces."""
        self._usage = NO_USAGE
        self._metering = planned.metering
        self._is_metered = self._metering == "answer"
        self._filter: UsageHider | Scrubber | None = UsageHider() if hides_usage else None
        self._head = b""
        """The answer's head, as long as it is not written."""
        self._body: bytes | None = None
        """The body of an answer that came in one piece, until it leaves."""
        self._status = 0
        """What the client was answered; 0: nothing yet."""
        self._first_byte: float | None = None
        self._is_chunked = False
        self._is_event_stream = False
        self._has_written = False
        self._is_over = False

    # --- the sink -------------------------------------------------------------------------------------------------------

    def may_send(self) -> None:
        """The last look before the key leaves, at the very moment its bytes are written. Raises why it must not."""
        exchange = self._exchange
        plane, ready = exchange.plane, exchange.ready
        if not plane.feed.is_trusted():
            raise TrustLost
        is_frozen = plane.credentials.is_frozen
        if is_frozen:
            raise Frozen
        if is_frozen is None or ready is None or ready.is_stale():
            raise Overtaken

    def on_response(self, status: int, headers: Headers) -> None:
        exchange, ready = self._exchange, self._exchange.ready
        if ready is None:
            return
        self._first_byte = time.monotonic()
        ready.health.last_status = status
        if status < _FIRST_ERROR:
            if exchange.buffered:
                exchange.release_body()
            if ready.health.marks:
                exchange.plane.credentials.served(ready)
            self._begin(status, headers)
            if self._metering == "events":
                self._is_metered = self._is_event_stream
        else:
            self._on_error(status, headers, ready)

    def on_wait(self) -> None:
        head, self._head = self._head, b""
        self._exchange.connection.write(head)

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001  # the seam's shape
        if self._is_metered:
            if self._meter is not None:
                self._meter.feed(data)
            elif ended and not (self._streamed or self._is_event_stream):
                self._usage = usage_of(self._dialect, self._operation, data)
            else:
                self._meter = Meter(self._dialect, self._operation, self._streamed or self._is_event_stream)
                self._meter.feed(data)
        if self._filter is not None:
            data = self._filter.feed(data)
            if ended:
                data += self._filter.finish()
                self._filter = None
        if ended and self._head:
            self._body = data
        elif data or ended:
            self._write(data, ended=ended)

    def on_complete(self) -> None:
        if self._body is None:
            self.leave()
        else:
            self._exchange.plane.answers.add(self._exchange)

    def leave(self) -> None:
        """The rest of the answer, or all of it, goes to the client, if there still is one."""
        if self._is_over:
            return
        exchange, body = self._exchange, self._body
        if body is not None:
            self._write(body, ended=True)
        rest = self._filter.finish() if self._filter is not None else b""
        if rest or self._head or self._is_chunked:
            self._write(rest, ended=True)
        self._is_over = True
        self._settle(self._how())
        exchange.finish(keep_alive=exchange.keep_alive)

    def on_failure(self, error: KeybearerError, sent: bool) -> None:  # noqa: FBT001  # the seam's shape
        exchange = self._exchange
        self.call = None  # it has ended; held on to, it and this would keep each other until the collector looks
        if not sent:
            exchange.release()
        if isinstance(error, TrustLost | Overtaken) and not sent:
            self._is_over = True
            exchange.restart()
        elif self._may_repeat(error, sent=sent) and exchange.may_fail_over():
            self._is_over = True
            exchange.fail_over(error.status)
        elif not self._status or self._head:
            self._is_over = True
            exchange.refuse(error)
        else:
            self._break_off(error, "upstream_error")

    def _may_repeat(self, error: KeybearerError, *, sent: bool) -> bool:
        """Whether a call that brought no answer at all may be sent again: if nothing was sent, or no harm comes of it.

        What was sent and timed out is not repeated: the provider may still be at it.
        """
        if self._status or not isinstance(error, UpstreamError):
            return False
        return not sent or (type(error) is UpstreamUnreachable and self._operation in PASSING)

    # --- from the client's side -----------------------------------------------------------------------------------------

    def pause(self) -> None:
        """The client is slow: read no further from the provider."""
        if self.call is not None and not self._is_over:
            self.call.pause_reading()

    def resume(self) -> None:
        if self.call is not None and not self._is_over:
            self.call.resume_reading()

    def on_client_gone(self) -> None:
        """End the upstream call; what was used up to here counts."""
        if not self._is_over:
            self._is_over = True
            if self.call is not None:
                self.call.abort()
            self._settle("aborted" if self._body is None else self._how())  # else it had its answer, but for a moment

    def cut_off(self, error: KeybearerError) -> None:
        """The server stops."""
        if self._body is not None:
            self.leave()
            return
        call, self.call = self.call, None
        if call is not None:
            call.abort()
        if self._status:
            self._break_off(error, "aborted")
        else:
            self._is_over = True
            self._exchange.refuse(error)

    # --- writing --------------------------------------------------------------------------------------------------------

    def _begin(self, status: int, headers: Headers) -> None:
        """The answer's head; the body is framed by its length, else by chunks, for HTTP/1.0 by the close."""
        exchange = self._exchange
        self._status = status
        if exchange.is_cacheable:
            # A cache in front of us would give it to whoever asks next: it does not know that x-api-key names the caller, and what a
            # provider of one person's says of caching would hold for everybody.
            headers = [*(pair for pair in headers if pair[0] not in _FOR_CACHES), NOT_STORED]
        named = dict(headers)
        has_length = b"content-length" in named
        if has_length and self._filter is not None:
            has_length = False
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        self._is_event_stream = named.get(b"content-type", b"")[:17].lower() == b"text/event-stream"
        lines = [status_line(status), b"\r\n".join(map(_field, headers)), b"\r\n" if headers else b""]
        if self._is_event_stream and self.call is not None:
            self.call.is_events = True
        lines.append(exchange.receipt())
        if not (has_length or exchange.is_http10 or status in _WITHOUT_BODY or exchange.is_head):
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if not exchange.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def _on_error(self, status: int, headers: Headers, ready: Ready) -> None:
        """A provider's error: another key may do better; if there is none, the client gets it as it came."""
        exchange = self._exchange
        exchange.plane.credentials.failed(ready, status, headers)
        if (status in _ANOTHER_KEY or status >= _FIRST_OF_SERVER) and exchange.may_fail_over():
            self._leave()
            exchange.fail_over(status, self._first_byte)
        elif status == TOO_MANY and exchange.refuse_resting(status, self._first_byte):
            self._leave()
        else:
            if exchange.buffered:
                exchange.release_body()
            self._begin_error(status, headers, ready.credential)

    def _leave(self) -> None:
        """The rest of this answer is nobody's."""
        self._is_over = True
        call, self.call = self.call, None
        if call is not None:
            leave(call)

    def _begin_error(self, status: int, headers: Headers, credential: Credential) -> None:
        """It may quote the key, and says nothing of what was used."""
        exchange = self._exchange
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
            # It cannot be read, hence not scrubbed, so it is not shown; identity was asked for.
            self._is_over = True
            if self.call is not None:
                self.call.abort()
            exchange.refuse(UpstreamMalformed(f"The provider answered {status} in an encoding that was not asked for."))
            return
        scrubber = self._filter = Scrubber(credential.value)
        self._is_metered = False
        self._begin(status, [(name, scrubber.whole(value)) for name, value in headers])

    def _write(self, data: bytes, *, ended: bool = False) -> None:
        head, self._head = self._head, b""
        if self._is_chunked:
            if data:
                self._has_written = True
                data = b"%b%x\r\n%b\r\n" % (head, len(data), data)
            else:
                data = head
            if ended:
                self._is_chunked = False
                data += b"0\r\n\r\n"
        else:
            self._has_written = True
            data = head + data if head else data
        if data:
            self._exchange.connection.transport.write(data)

    def _break_off(self, error: KeybearerError, outcome: str) -> None:
        """The answer has begun and cannot be finished."""
        self._is_over = True
        exchange = self._exchange
        is_between_events = not self._has_written or (self._meter is not None and self._meter.is_between_events)
        if self._is_event_stream and is_between_events and (self._is_chunked or exchange.is_http10):
            self._write(dialect.error_event(self._dialect, self._operation, error, exchange.request_id))
            self._settle(outcome)
            exchange.finish(keep_alive=False)
        else:
            self._settle(outcome)
            exchange.abort()

    def _how(self) -> str:
        """The outcome of an answer that came as a whole."""
        return "ok" if self._status < _FIRST_ERROR else "upstream_error"

    def _settle(self, outcome: str) -> None:
        """6. Meter, settle, note the outcome."""
        self.call = None
        usage = self._usage if self._meter is None else self._meter.finish()
        self._exchange.note_outcome(self._status or CLIENT_GONE, outcome, self._first_byte, usage)
