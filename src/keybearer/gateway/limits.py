"""The data plane's limits: durations in seconds, sizes in bytes, and the process-wide account of buffered bodies.

Nothing here measures or waits; the connections ask, and one coarse sweep (``plane``) looks at their deadlines.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from keybearer.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection and one request may take. The defaults are generous to slow people and short for slow attacks."""

    header_seconds: float = 20.0
    """From connection made, or from a request's first byte, to the end of its headers."""
    body_seconds: float = 30.0
    """For a body; every ``body_rate`` bytes that arrive earn another second, but never more than this is left."""
    body_rate: int = 4096
    stall_seconds: float = 60.0
    """A client that takes no byte of its answer for so long is cut off."""
    linger_seconds: float = 3.0
    """After an early answer, how long the rest of a request is read and thrown away, lest a reset swallow the answer."""
    linger_bytes: int = 4 * 2**20
    shutdown_seconds: float = 25.0
    """At shutdown, how long answers in flight may go on: less than the server waits, so that they are ended and not just lost."""
    sweep_seconds: float = 0.5
    """How often deadlines are looked at: they are late by at most this."""
    hold_seconds: float = 10.0
    """How long a request waits for a database that has gone away before it is answered 503."""
    head_bytes: int = 64 * 1024
    header_count: int = 128
    target_bytes: int = 16 * 1024
    queue: int = 16
    """Requests that may wait behind the one being answered on the same connection."""
    queued_bytes: int = 64 * 1024
    """Body bytes of waiting requests from which on the connection is read no further."""
    api_body_bytes: int = 512 * 1024
    """Largest request body outside the gateway's paths. It is decoded before anybody knows who sends it: of 16 MB of brackets
    Python made half a gigabyte of lists, and every stream stood still for seconds. A secret has 64 kB, its JSON at most six times."""


class BodyBudget:
    """Bytes of request bodies that this process holds at a time. ``take`` raises ``Overloaded`` rather than exceed ``limit``.

    Of the second half nobody gets more who has a quarter already in other bodies: who sends slowly, or to a provider of their own that
    never answers, holds up nobody else.
    """

    __slots__ = ("_shares", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._shares: dict[UUID, int] = {}
        """What people hold in bodies that came in pieces; small ones do not."""

    def take(self, size: int) -> None:
        """Account for ``size`` more bytes."""
        if self.held + size > self.limit:
            raise Overloaded("The server is holding too many large requests.", retry_after=1.0)
        self.held += size

    def take_for(self, user_id: UUID, size: int, before: int) -> None:
        """Say for whom ``size`` bytes were taken, of a body of which ``before`` were. Raises ``Overloaded``."""
        share = self._shares.get(user_id, 0)
        if share - before > self.limit // 4 and self.held > self.limit // 2:
            raise Overloaded("You are sending too many large requests at once.", retry_after=1.0)
        self._shares[user_id] = share + size

    def give_for(self, user_id: UUID, size: int) -> None:
        """They hold as much less."""
        left = self._shares.pop(user_id, 0) - size
        if left > 0:
            self._shares[user_id] = left
