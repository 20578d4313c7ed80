"""Idle connections of one origin (of one owner, where users define origins), newest first."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keybearer.gateway.connection import Connection

_RACE_MARGIN = 1.0
"""Seconds by which a connection is given up before the server's announced idle time ends."""


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


class Keeper(Protocol):
    """Who hears of every connection that opens and closes: the upstream."""

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
        """Find an idle connection that can be used now, the most recently used first; unusable ones are closed on the way."""
        idle = self._idle
        if idle:
            now = monotonic()
            while idle:
                connection = idle.pop()
                if connection.is_usable(now, self._limits.max_age_seconds):
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
        connection.idle_until = monotonic() + seconds
        self._idle.append(connection)

    def withdraw(self, connection: Connection) -> None:
        """No longer offer a connection that is being closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def opened(self, connection: Connection) -> None:
        self.open += 1
        self._keeper.opened(connection)

    def gone(self, connection: Connection) -> None:
        self.open -= 1
        self.withdraw(connection)
        self._keeper.gone(connection, self)
