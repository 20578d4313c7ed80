"""The way back: a provider's answer to the client, byte for byte as it comes; then meter, settle, note the outcome.

A ``Relay`` is the ``Sink`` of one upstream call. The head is held until the callback's end, so that head and body leave in one
write when both are at hand. What is not relayed as it came: errors (held, and scrubbed of the key), and the usage chunk that
the client did not ask for. A stream that breaks off ends with an error event in the dialect's own shape and a closed connection.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from keybearer.domain import OutcomeRecord, Usage
from keybearer.errors import Frozen, KeybearerError, TrustLost, Unavailable, UpstreamError, UpstreamMalformed
from keybearer.gateway import dialect
from keybearer.usage import prices
from keybearer.usage.meter import Meter

if TYPE_CHECKING:
    from keybearer.gateway.exchange import Exchange

_FIRST_ERROR = 400
_KEY_REFUSED = (401, 403)


class Overtaken(Unavailable):
    """What this call needs has changed while it was on its way."""


class Relay:
    """One answer on its way to the client."""

    __slots__ = (
        "_bytes_left",
        "_error_body",
        "_exchange",
        "_filter",
        "_first_byte",
        "_head",
        "_is_chunked",
        "_is_event_stream",
        "_is_over",
        "_meter",
        "_scrub",
        "_status",
    )
