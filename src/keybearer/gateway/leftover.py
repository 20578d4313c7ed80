"""The rest of an answer that nobody wants, once another key was asked instead.

It is read to its end if that is near, so that the connection can be used again; else it is cut off.
"""

from __future__ import annotations

import asyncio

from keybearer.errors import KeybearerError
from keybearer.gateway.connection import Call

_BYTES = 64 * 1024
_SECONDS = 5.0


class Leftover:
    """The sink for it."""

    __slots__ = ("_call", "_left")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._left = _BYTES

    def may_send(self) -> None: ...

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...

    def on_wait(self) -> None: ...

    def on_data(self, data: bytes, ended: bool) -> None:  # noqa: FBT001  # the seam's shape
        self._left -= len(data)
        if self._left < 0 and not ended:
            self._call.abort()

    def on_complete(self) -> None: ...

    def on_failure(self, error: KeybearerError, sent: bool) -> None: ...  # noqa: FBT001  # likewise


def leave(call: Call) -> None:
    """Take over a call whose answer has begun."""
    call.sink = Leftover(call)
    if call.is_paused:
        call.resume_reading()
    asyncio.get_running_loop().call_later(_SECONDS, call.abort)
