"""Names to addresses, once per connection attempt: what is checked is what is connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from time import monotonic
from typing import Protocol

from keybearer.errors import Overloaded, UpstreamUnresolved

CACHE_SECONDS = 30.0
MAX_NAMES = 1024
"""Names remembered, and names being looked up."""


OF_USERS = 2
"""Lookups at once of names that users chose: they must not occupy every thread of the loop."""


class Resolver(Protocol):
    """Where addresses come from; tests bring their own."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """List the addresses of a name as text, in the order to try them. Raises ``UpstreamUnresolved``."""


def is_address(host: str) -> bool:
    """Whether a host is an address already, and needs no looking up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class SystemResolver:
    """The operating system's resolver, with a small positive cache. Lookups of the same name at once share one thread.

    ``at_once`` bounds the lookups that run: names that users chose must not occupy every thread of the loop (uvloop has four)
    with servers that never answer. A lookup keeps its place until it ends, whether or not anybody still waits for it.
    """

    def __init__(self, *, cache_seconds: float = CACHE_SECONDS, at_once: int = MAX_NAMES) -> None:
        self._cache_seconds = cache_seconds
        self._places = asyncio.Semaphore(at_once)
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._running: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        known = self._known.get(host)
        if known is not None and monotonic() < known[0]:
            return known[1]
        task = self._running.get(host)
        if task is None:
            if len(self._running) >= MAX_NAMES:
                raise Overloaded("Too many names are being looked up.", retry_after=1.0)
            task = self._running[host] = asyncio.get_running_loop().create_task(self._look_up(host, port))
        return await asyncio.shield(task)  # a caller who leaves must not take the answer from the others

    async def _look_up(self, host: str, port: int) -> tuple[str, ...]:
        try:
            async with self._places:
                answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise UpstreamUnresolved(f"The name {host} could not be resolved.") from None
        finally:
            del self._running[host]
        addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
        self._known[host] = (monotonic() + self._cache_seconds, addresses)
        return addresses
