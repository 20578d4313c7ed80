"""The client side of the data plane: a request goes to a provider, its response comes to a sink.

``Upstream.send`` is synchronous and, where an idle connection waits, writes before it returns: no task, no future, no
parser made anew. Otherwise one task dials: resolve once, check every address against the egress policy, connect to an
address that was checked, verify the name. Time-outs are kept by one sweeper that looks at all connections a few times a
second; a chunk costs it one attribute.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from uuid import UUID

from keybearer.domain import SYSTEM_OWNER_ID
from keybearer.errors import (
    KeybearerError,
    Overloaded,
    Unavailable,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnreachable,
    UpstreamUnresolved,
)
from keybearer.gateway import tls
from keybearer.gateway.connection import Call, Connection, Request, Sink
from keybearer.gateway.egress import EgressPolicy, Origin
from keybearer.gateway.outgoing import build_head, build_request
from keybearer.gateway.pool import Limits, Pool
from keybearer.gateway.resolve import OF_USERS, Resolver, SystemResolver, is_address
from keybearer.gateway.steps import Steps

__all__ = ["Call", "Limits", "Request", "Sink", "Target", "Upstream", "build_head", "build_request"]

_SWEEPS_PER_TIMEOUT = 8
_SLOWEST_SWEEP = 1.0
_CLOSING_TURNS = 200
_MAX_ATTEMPTS = 4
"""Addresses of one name that are tried."""


class Target:
    """Where a request goes, and with whom it may share connections. Make it once and keep it: pools are found by its ``key``."""

    __slots__ = ("admin_defined", "key", "origin", "pool")

    def __init__(self, origin: Origin, pool: UUID | None = None, admin_defined: bool = False) -> None:  # noqa: FBT001, FBT002
        """``pool``: the owner of a user-defined origin, ``None`` for a predefined or system-owned provider's."""
        self.origin = origin
        self.pool = pool
        self.admin_defined = admin_defined
        self.key = f"{origin.text} {pool or '-'} {admin_defined}"

    @classmethod
    def of_owner(cls, origin: Origin, owner_id: UUID | None) -> Target:
        """Make the target for a provider's origin; ``owner_id`` is ``None`` for predefined providers."""
        if owner_id is None or owner_id == SYSTEM_OWNER_ID:
            return cls(origin, admin_defined=True)
        return cls(origin, owner_id)


class Upstream:
    """All connections of one process to providers. Times are in seconds; used within one event loop.

    ``connect_timeout`` covers name, connect and TLS together; ``read_timeout`` the wait for the first byte and between bytes.
    ``ca_file``: PEM file of further authorities. Raises ``SettingsInvalid`` for one that cannot be read.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        connect_timeout: float = 10.0,
        read_timeout: float = 600.0,
        ca_file: Path | None = None,
        resolver: Resolver | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._policy = policy
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._resolver: Resolver = resolver or SystemResolver()
        self.resolver_of_users: Resolver = resolver or SystemResolver(at_once=OF_USERS)
        """Of names that users chose: where there are several upstreams, one for all of them."""
        self._limits = limits or Limits()
        self._tls = tls.for_http(ca_file)
        self._pools: dict[str, Pool] = {}
        self._steps = Steps()
        self._connections: set[Connection] = set()
        self._dialing: set[Call] = set()
        self._sweep_seconds = min(_SLOWEST_SWEEP, read_timeout / _SWEEPS_PER_TIMEOUT)
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_closed = False

    def send(self, target: Target, request: Request, sink: Sink, *, head_only: bool = False) -> Call:
        """Send a whole request (see ``build_request``); ``head_only`` says that its method is HEAD.

        Never raises for what the network or the provider do: that comes to ``sink.on_failure``, after this returns.
        """
        call = Call(sink, request, head_only=head_only)
        pool = self._pools.get(target.key)
        connection = pool.take() if pool is not None else None
        if pool is None or connection is None:
            self._dial(target, call)
            return call
        try:
            connection.start(call)
        except KeybearerError as error:
            pool.put(connection)
            _fail_soon(call, error)
        return call

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def idle_connections(self) -> int:
        return sum(pool.idle for pool in self._pools.values())

    async def close(self) -> None:
        """Close everything at once; calls under way fail with ``Unavailable``."""
        self._is_closed = True
        stopping = Unavailable("The server is stopping.")
        for call in tuple(self._dialing):
            if call.dialing is not None:
                call.dialing.cancel()
            call.fail(stopping, sent=False)
        for connection in tuple(self._connections):
            connection.shut(stopping)
        for _ in range(_CLOSING_TURNS):  # cancelled tasks and lost connections come with the loop's next turns
            if not self._connections and not self._dialing:
                break
            await asyncio.sleep(0.005)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _dial(self, target: Target, call: Call) -> None:
        if self._is_closed:
            _fail_soon(call, Unavailable("The server is stopping."))
            return
        pool = self._pool_of(target)
        if not pool.has_room():
            _fail_soon(call, Overloaded(f"Too many requests to {target.origin.host} are under way.", retry_after=1.0))
        else:
            pool.dialing += 1
            task = asyncio.get_running_loop().create_task(self._connect(pool, target, call))
            call.dialing = task
            self._dialing.add(call)
            task.add_done_callback(lambda _: self._dialled(pool, call))  # also if cancelled before its first step

    def _dialled(self, pool: Pool, call: Call) -> None:
        call.dialing = None
        pool.dialing -= 1
        self._dialing.discard(call)
        self._forget_if_empty(pool)

    def _pool_of(self, target: Target) -> Pool:
        pool = self._pools.get(target.key)
        if pool is None:
            max_open = self._limits.open_per_pool if target.admin_defined else self._limits.open_per_owner_pool
            pool = self._pools[target.key] = Pool(target.key, self._limits, max_open, self)
        return pool

    async def _connect(self, pool: Pool, target: Target, call: Call) -> None:
        """Dial, then hand the call to the connection. Nothing has been sent while this runs."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._open(pool, target)
        except TimeoutError:
            call.fail(UpstreamTimeout(f"{target.origin.host} could not be connected to in time."), sent=False)
            return
        except KeybearerError as error:
            call.fail(error, sent=False)
            return
        if call.is_ended or connection.transport.is_closing():
            pool.put(connection)
            call.fail(UpstreamUnreachable("The provider closed the connection at once."), sent=False)
            return
        try:
            connection.start(call)
        except KeybearerError as error:
            pool.put(connection)
            call.fail(error, sent=False)

    async def _open(self, pool: Pool, target: Target) -> Connection:
        """Connect to the first address that answers, each within its share of the time that is left."""
        origin = target.origin
        deadline = monotonic() + self._connect_timeout
        addresses = await self._addresses(target)
        failure: KeybearerError = UpstreamUnresolved(f"The name {origin.host} has no address.")
        for index, address in enumerate(addresses):
            share = (deadline - monotonic()) / (len(addresses) - index)
            try:
                async with asyncio.timeout(share):
                    return await self._open_at(pool, origin, address)
            except TimeoutError:
                failure = UpstreamTimeout(f"{origin.host} could not be connected to in time.")
            except ssl.SSLCertVerificationError as error:
                raise UpstreamTls(f"The certificate of {origin.host} is not valid: {error.verify_message}.") from None
            except ssl.SSLError as error:
                raise UpstreamTls(f"No TLS connection to {origin.host}: {error.reason or 'it failed'}.") from None
            except OSError as error:
                failure = _connect_failure(origin, error)
        raise failure

    async def _addresses(self, target: Target) -> Sequence[str]:
        """Resolve once; refuse if any answer is denied, for a mixed answer is how a name is rebound."""
        host, port = target.origin.host, target.origin.port
        resolver = self._resolver if target.admin_defined else self.resolver_of_users
        addresses = [host] if is_address(host) else await resolver.resolve(host, port)
        for address in addresses:
            self._policy.may_connect(target.origin, address, admin_defined=target.admin_defined)
        return addresses[:_MAX_ATTEMPTS]

    async def _open_at(self, pool: Pool, origin: Origin, address: str) -> Connection:
        is_tls = origin.scheme == "https"
        connection, is_ours = Connection(pool, self._read_timeout, self._steps), False
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                address,
                origin.port,
                ssl=self._tls if is_tls else None,
                server_hostname=origin.host if is_tls else None,
            )
            is_ours = True
        finally:
            if not is_ours:
                connection.forsake()
        return connection

    # What pools tell

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        if self._sweeper is None:
            self._arm_sweeper()

    def gone(self, connection: Connection, pool: Pool) -> None:
        self._connections.discard(connection)
        self._forget_if_empty(pool)
        if not self._connections and self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _forget_if_empty(self, pool: Pool) -> None:
        if not pool.open and not pool.dialing and self._pools.get(pool.key) is pool:
            del self._pools[pool.key]

    def _arm_sweeper(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)

    def _sweep(self) -> None:
        self._arm_sweeper()  # first, so that a sink that raises does not end all time-outs
        now = monotonic()
        for connection in tuple(self._connections):
            connection.check(now)


def _fail_soon(call: Call, error: KeybearerError) -> None:
    asyncio.get_running_loop().call_soon(lambda: call.fail(error, sent=False))


def _connect_failure(origin: Origin, error: OSError) -> KeybearerError:
    """What went wrong, in our own words: the library's name the address, which is nobody's business."""
    if isinstance(error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError):
        if origin.scheme == "https":  # what is reset had been accepted: it happened in the handshake
            return UpstreamTls(f"{origin.host} broke off the TLS handshake.")
        problem = "the connection was reset"
    elif isinstance(error, ConnectionRefusedError):
        problem = "the connection was refused"
    elif error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        problem = "there is no route to it"
    else:
        problem = "connecting failed"
    return UpstreamUnreachable(f"{origin.host} could not be connected to: {problem}.")
