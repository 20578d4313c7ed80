"""Idle connections of one origin (of one owner, where users define origins), newest first."""

from __future__ import annotations

import select
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keybearer.gateway.connection import Connection

_RACE_MARGIN = 1.0
"""Seconds by which a connection is given up before the server's announced idle time ends."""
_LOOK = 0.0005
"""Seconds for which one look at all connections serves. What is under way in the network, which no look sees, takes longer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one process.

    There is no queue: what is over a bound is answered ``Overloaded`` at once, so that a stream that holds its connection for
    minutes never holds up strangers behind it.
    """

    idle_seconds: float = 30.0
    """Shorter where the server announces it with ``Keep-Alive: timeout=``."""
    max_age_seconds: float = 600.0
    """Connections are not used again after this, so that a provider's change of address is noticed."""
    idle_per_pool: int = 128
    open_per_pool: int = 4096
    """For predefined and system-owned providers, streams included."""
    open_per_owner_pool: int = 256
    """For an origin that a user defined."""


class Ears:
    """For which connections of one process the kernel holds something that was not read yet: bytes, or an end.

    Calls that leave together are told by one system call.
    """

    __slots__ = ("_heard", "_looked_at", "_poll")

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._heard: frozenset[int] = frozenset()
        self._looked_at = 0.0

    def attend(self, descriptor: int) -> None:
        """Listen to a connection until it is closed, which the kernel notices by itself."""
        self._poll.register(descriptor, select.EPOLLIN)

    def hear(self, descriptor: int, since: float, now: float) -> bool:
        """Whether there is something for a connection that is idle ``since`` then; monotonic times.

        A look from before that would tell of the answer to its last call.
        """
        if self._looked_at < since or now - self._looked_at > _LOOK:
            self._heard = frozenset(heard for heard, _ in self._poll.poll(0))
            self._looked_at = now
        return descriptor in self._heard


class Keeper(Protocol):
    """Who hears of every connection that opens and closes: the upstream."""

    ears: Ears

    def opened(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection, pool: Pool) -> None: ...


class Pool:
    """The connections to one origin for one owner."""

    __slots__ = ("_idle", "_keeper", "_limits", "_max_open", "dialing", "key", "open")

    def __init__(self, key: str, limits: Limits, max_open: int, keeper: Keeper) -> None:
        self.key = key
        self.open = 0
        self.dialing = 0
        """Connections being opened."""
        self._limits = limits
        self._max_open = max_open
        self._keeper = keeper
        self._idle: list[Connection] = []

    @property
    def idle(self) -> int:
        return len(self._idle)

    def has_room(self) -> bool:
        return self.open + self.dialing < self._max_open

    def take(self) -> Connection | None:
        """Find an idle connection that can be used now, the most recently used first; unusable ones are closed on the way.

        Bytes or an end that the kernel already holds make one unusable: they came before the request, so they are no answer to it.
        """
        idle = self._idle
        if idle:
            now = monotonic()
            ears = self._keeper.ears
            while idle:
                connection = idle.pop()
                if connection.is_usable(now, self._limits.max_age_seconds) and not ears.hear(
                    connection.descriptor, connection.idle_since, now
                ):
                    return connection
                connection.close()
        return None

    def put(self, connection: Connection) -> None:
        """Keep a connection for the next call, or close it."""
        seconds, announced = self._limits.idle_seconds, connection.reader.keep_alive_seconds
        if announced is not None:
            seconds = min(seconds, announced - _RACE_MARGIN)
        if seconds <= 0 or len(self._idle) >= self._limits.idle_per_pool or connection.transport.is_closing():
            connection.close()
            return
        connection.idle_since = now = monotonic()
        connection.idle_until = now + seconds
        self._idle.append(connection)

    def withdraw(self, connection: Connection) -> None:
        """No longer offer a connection that is being closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def opened(self, connection: Connection) -> None:
        self.open += 1
        self._keeper.ears.attend(connection.descriptor)
        self._keeper.opened(connection)

    def gone(self, connection: Connection) -> None:
        self.open -= 1
        self.withdraw(connection)
        self._keeper.gone(connection, self)
