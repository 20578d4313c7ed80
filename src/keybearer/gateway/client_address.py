"""Where a request comes from: the one function that decides it, for the gateway and the ASGI app alike.

Forwarding headers are believed only from peers that the operator declared as proxies (``KEYBEARER_TRUSTED_PROXIES``),
and ``X-Forwarded-For`` is read from the right: the first address that is no declared proxy is the client. What stands
further left was written by the client itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from keybearer.errors import SettingsInvalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The declared proxies, as addresses or CIDRs. Raises ``SettingsInvalid`` for anything else."""

    __slots__ = ("_networks",)

    def __init__(self, declared: Iterable[str]) -> None:
        try:
            self._networks: tuple[Network, ...] = tuple(ipaddress.ip_network(item.strip(), strict=False) for item in declared)
        except ValueError as error:
            message = f"KEYBEARER_TRUSTED_PROXIES: {error}"
            raise SettingsInvalid(message) from None

    def trusts(self, peer: str) -> bool:
        """Whether ``peer`` (the socket's address) is a declared proxy."""
        address = parse_address(peer)
        return address is not None and any(address in network for network in self._networks)

    def client_address(self, peer: str, forwarded_for: Sequence[bytes]) -> str:
        """The client's address as text; ``forwarded_for`` are the values of ``X-Forwarded-For`` in the order sent.

        An entry that is no address ends the search: what is left of it cannot be attributed, so its proxy's address stands.
        """
        if not forwarded_for or not self.trusts(peer):
            return peer
        client = peer
        for entry in reversed(b",".join(forwarded_for).split(b",")):
            address = parse_address(entry.decode("latin-1"))
            if address is None:
                return client
            client = str(address)
            if not self.trusts(client):
                return client
        return client


def parse_address(text: str) -> Address | None:
    """An address with or without port or brackets, IPv4-mapped IPv6 unwrapped; ``None`` if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
