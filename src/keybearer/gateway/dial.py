"""Where a connection string leads: resolved once, every answer checked, so that what is connected to is what was checked.

Hosts in connection strings and addresses of webhooks are named by whoever stored them: private ones are open to them only where
the operator said so (``KEYBEARER_CONNECTION_ALLOW``), to the system's also where providers may go (``KEYBEARER_EGRESS_ALLOW``).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keybearer.errors import UpstreamUnresolved
from keybearer.gateway import tls
from keybearer.gateway.egress import CONNECTION_ALLOW, EgressPolicy, Origin, deny_reason
from keybearer.gateway.resolve import OF_USERS, Resolver, SystemResolver, is_address


@dataclass(frozen=True, slots=True)
class Place:
    """A checked address of a host."""

    host: str
    port: int
    address: str
    is_public: bool
    """On a public network nothing goes there in clear."""


class NamedContext(ssl.SSLContext):
    """Verifies the server under its name while the library connects to an address that was checked."""

    host = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002  # the base's shape
        server_hostname: str | bytes | None = None,  # noqa: ARG002  # likewise
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.host, session)


class Dialer:
    """Finds places to connect to, and verifies who is there. One per process; ``ca_file``: PEM file of further authorities."""

    def __init__(
        self,
        allow: tuple[str, ...] = (),
        system_allow: tuple[str, ...] = (),
        *,
        ca_file: Path | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        """``allow``: private hosts that everybody's connection strings may name; ``system_allow``: the system's, too."""
        self._policy = EgressPolicy(allow, CONNECTION_ALLOW)
        self._system_policy = EgressPolicy.either(self._policy, EgressPolicy(system_allow))
        self._resolver = resolver or SystemResolver(at_once=OF_USERS)
        self.ca_file = ca_file

    async def find(self, host: str, port: int, *, is_systems: bool = False) -> Place:
        """The place to connect to. ``host`` in canonical form (``egress.canonical_host``).

        Raises ``UpstreamUnresolved``, and ``EgressRefused`` if *any* answer is denied: a mixed one is how a name is rebound.
        """
        addresses: Sequence[str] = [host] if is_address(host) else await self._resolver.resolve(host, port)
        if not addresses:
            raise UpstreamUnresolved(f"The name {host} has no address.")
        policy = self._system_policy if is_systems else self._policy
        origin = Origin("https", host, port)  # plain text is told apart by who connects: see ``Place.is_public``
        for address in addresses:
            policy.may_connect(origin, address, admin_defined=True)
        return Place(host, port, addresses[0], is_public=deny_reason(addresses[0]) is None)

    def named_tls(self, host: str) -> NamedContext:
        """TLS that verifies ``host``, for a library that is told its address."""
        context = tls.verifying(NamedContext(ssl.PROTOCOL_TLS_CLIENT), self.ca_file)
        context.host = host
        return context

    def tls(self, *, verify: bool = True, check_name: bool = True) -> ssl.SSLContext:
        """TLS 1.2 or newer. Unverified only where a connection string asks for no more than that."""
        context = tls.verified(self.ca_file)
        context.check_hostname = verify and check_name
        context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
        return context
