"""An event stream that comes faster than anybody reads is passed on in steps.

Each event that is relayed alone costs two system calls and wakes a process, here and at the client's. So where events come within
less than a millisecond of each other, several in a row, the connection is not read until the next step; then what has gathered meanwhile
leaves in one write. Streams of the usual pace never wait, nor do first events, and none of a fast one waits longer than ``STEP``.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keybearer.gateway.connection import Connection

STEP: Final = 0.004
"""Seconds; an event waits half of that on the average."""
FAST: Final = 1000
"""Events a second from which on a stream is fast."""
IN_A_ROW: Final = 2
"""Reads that must have come so fast."""
LARGE: Final = 32 * 1024
"""Bytes of one read that is not worth to wait for more."""


class Steps:
    """The connections that wait for the next step: one timer for all."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Connection] = []

    def wait(self, connection: Connection) -> None:
        """Read this connection on at the next step. It has stopped reading."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(STEP, self._step)

    def _step(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.read_on()
