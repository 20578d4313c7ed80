"""What all connections of one process share: services, limits, request ids, and the sweep that looks at their deadlines.

No request arms a timer. Each connection keeps its deadlines as two floats; one timer per process looks at all of them every
half second, so that a deadline costs an assignment and is late by at most that.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

from keybearer.audit.gathering import Gathering
from keybearer.errors import Unavailable
from keybearer.gateway.client_address import TrustedProxies
from keybearer.gateway.exchange import leave_together
from keybearer.gateway.limits import BodyBudget, Limits

if TYPE_CHECKING:
    from keybearer.services import Services


_CLOSE_LIMIT_S = 5.0
"""Seconds for which the end of what was cancelled is waited for."""


PLANE = "keybearer.plane"
"""Where a server's state keeps its plane."""


class Swept(Protocol):
    """A connection with deadlines."""

    def on_sweep(self, now: float) -> None: ...


class Plane:
    """One process's side of the data plane."""

    def __init__(self, services: Services, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.services = services
        self.credentials = services.credentials
        self.counters = services.counters
        self.feed = services.feed
        self.journal = services.journal
        self.refusals = services.refusals
        self.objects = services.objects
        self.upstream = services.upstream
        self.proxies = TrustedProxies(services.options.trusted_proxies)
        self.budget = BodyBudget(services.options.max_buffered_bytes)
        self.answers = Gathering(leave_together)
        """Those that have come as a whole."""
        self.body_limit = services.options.max_body_bytes
        self._ids = RequestIds()
        self.request_id = self._ids.next
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Cancel what still waits, and wait until it has ended: after this come the services that it works with."""
        if self._sweep is not None:
            self._sweep.cancel()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_LIMIT_S)

    def spawn(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
        """Run the cold part of a request; the reference is kept until it ends."""
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def watch(self, loop: asyncio.AbstractEventLoop, connections: AbstractSet[Swept]) -> None:
        """Sweep over ``connections`` (uvicorn's own set) as long as there are any."""
        if self._sweep is None:
            self._sweep = loop.call_later(self.limits.sweep_seconds, self._on_sweep, loop, connections)

    def _on_sweep(self, loop: asyncio.AbstractEventLoop, connections: AbstractSet[Swept]) -> None:
        self._sweep = None
        now = time.monotonic()
        for connection in tuple(connections):
            connection.on_sweep(now)
        if connections:
            self.watch(loop, connections)


class RequestIds:
    """``req_`` and 24 hexadecimal digits: unique, cheap, and of no use to who guesses one (they authorise nothing).

    Eleven digits are the time in milliseconds, so that ids grow: the database's indexes over them take a record at their end for a
    third less than anywhere. Four are this process's own; nine are a counter mixed by an odd multiplier modulo 2**36, which is a
    bijection: no id comes twice, and one does not show how many there were before.
    """

    __slots__ = ("_count", "_multiplier", "_own")

    def __init__(self) -> None:
        self._own = secrets.token_hex(2)
        self._count = secrets.randbits(36)
        self._multiplier = secrets.randbits(36) | 1

    def next(self) -> str:
        """The next id."""
        self._count += 1
        return f"req_{int(time.time() * 1000):011x}{self._own}{self._count * self._multiplier & 0xFFFFFFFFF:09x}"


def plane_in(state: dict[str, Any]) -> Plane:
    """The process's plane, from an ASGI request's state. Raises ``Unavailable`` where no gateway runs in this process."""
    plane = state.get(PLANE)
    if not isinstance(plane, Plane):
        raise Unavailable("No gateway runs in this process.")
    return plane
