"""Where a key may be sent: origins in canonical text, the table of denied addresses, the operator's exceptions.

Pure: text and addresses in, decisions out. Nothing here resolves a name, opens a socket or reads a clock; ``upstream``
resolves once, asks ``EgressPolicy.may_connect`` about every answer, and connects to the very address that was checked.

Sources: RFC 3986 (URI), RFC 6890 and the IANA special-purpose address registries, RFC 6052 and 8215 (NAT64),
RFC 3056 (6to4), RFC 4380 (Teredo), the metadata addresses as AWS, Azure, Google, Oracle and Alibaba document them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from keybearer.catalog import Provider, places
from keybearer.errors import EgressRefused, Invalid, SettingsInvalid

Address = IPv4Address | IPv6Address

DEFAULT_PORTS = {"https": 443, "http": 80}
_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?", re.ASCII | re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER_LIKE = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.ASCII)
_MAX_HOST, _MAX_URL, _MAX_PORT = 253, 2048, 65535


@dataclass(frozen=True, slots=True)
class Origin:
    """A scheme, host and port in canonical form: lower case, no trailing dot, the port always written out.

    ``host`` is a name or an address without brackets. Make one with ``origin_of``, which refuses what is not canonical
    or canonicalises it.
    """

    scheme: str
    host: str
    port: int

    @property
    def text(self) -> str:
        """``https://api.openai.com:443``: what egress sets hold and envelopes bind."""
        return f"{self.scheme}://{self._bracketed}:{self.port}"

    @property
    def authority(self) -> bytes:
        """The ``Host`` header's value: without the scheme's own port."""
        if self.port == DEFAULT_PORTS[self.scheme]:
            return self._bracketed.encode("ascii")
        return f"{self._bracketed}:{self.port}".encode("ascii")

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return self.text


def origin_of(url: str) -> Origin:
    """Take the origin of an ``http`` or ``https`` URL; a path is allowed and ignored. Raises ``Invalid``.

    Refused, because parsers disagree about them: user information, queries and fragments, percent-encoding and
    non-ASCII characters in the host (write ``xn--…``), white space, control characters and backslashes anywhere, IPv4
    in any form but four decimal numbers, IPv6 with a zone or an embedded IPv4 address, ports with signs or leading zeros.
    """
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Invalid(
            "A base URL has plain ASCII characters only, without spaces or backslashes.",
            hint="Write international names in their 'xn--…' form.",
        )
    matched = _URL.fullmatch(url)
    if matched is None:
        raise Invalid("A base URL has the form https://host[:port][/path], without query or fragment.", hint="")
    scheme = matched["scheme"].lower()
    if scheme not in DEFAULT_PORTS:
        raise Invalid("A base URL starts with https:// (or http://, for private hosts that an administrator allows).", hint="")
    host, port = _host_and_port(matched["authority"])
    return Origin(scheme, host, DEFAULT_PORTS[scheme] if port is None else port)


def canonical_host(text: str) -> str:
    """One name or address (IPv6 without brackets) in canonical form. Raises ``Invalid``."""
    if ":" in text:
        return _canonical_ipv6(text)
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if not host or len(host) > _MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid("The host name is not valid.", hint="Write it as letters, digits and hyphens, separated by dots.")
    # A last label that looks like a number is an IPv4 address to some resolvers, whatever comes before it:
    # 2130706433, 0x7f.1, 127.1 and 0177.0.0.1 are all loopback somewhere.
    if _NUMBER_LIKE.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise Invalid("An IPv4 address is written as four decimal numbers without leading zeros.", hint="") from None
    return host


def _host_and_port(authority: str) -> tuple[str, int | None]:
    if "@" in authority:
        raise Invalid("A base URL holds no user name or password.", hint="Put the key into the secret.")
    if authority.startswith("["):
        address, bracket, rest = authority[1:].partition("]")
        if not bracket or ":" not in address or (rest and not rest.startswith(":")):
            raise Invalid("The IPv6 address is not valid.", hint="Write it as [2001:db8::1], with its port after the bracket.")
        return canonical_host(address), _port(rest[1:]) if rest else None
    host, colon, port = authority.partition(":")
    return canonical_host(host), _port(port) if colon else None


def _port(text: str) -> int:
    if not text.isdecimal() or text.startswith("0") or len(text) > len(str(_MAX_PORT)) or int(text) > _MAX_PORT:
        raise Invalid("A port is a number from 1 to 65535.", hint="")
    return int(text)


def _canonical_ipv6(text: str) -> str:
    if "%" in text or "." in text:
        raise Invalid("An IPv6 address has neither a zone nor an embedded IPv4 address here.", hint="")
    try:
        address = IPv6Address(text)
    except ValueError:
        raise Invalid("The IPv6 address is not valid.", hint="Write it as [2001:db8::1].") from None
    if address.ipv4_mapped is not None:  # printed differently by different versions of Python; the text is bound for years
        raise Invalid("An IPv4 address is written as four decimal numbers.", hint="")
    return address.compressed


def egress_set(provider: Provider) -> tuple[str, ...]:
    """List the canonical origins a secret for this provider may be sent to, sorted: what is bound into its envelope.

    Raises ``Invalid`` where the address is not written out (``catalog.places.at`` does that). Empty for a provider that has none.
    """
    urls = {provider.base_url, provider.test.base_url if provider.test is not None else ""} - {""}
    return tuple(sorted({origin_of(url).text for url in urls}))


def placed(provider: Provider, egress: Iterable[str]) -> Provider | None:
    """The provider at the address that a secret of this egress set may go to, written out; ``None``: it may not go there.

    Providers without an address of their own are as they are: no call goes to them.
    """
    if not provider.base_url:
        return provider
    bound = tuple(egress)
    if places.is_fixed(provider):
        return provider if origin_of(provider.base_url).text in bound else None
    hosts = [origin.partition("://")[2].rpartition(":")[0] for origin in bound]
    found = (candidate for candidate in places.candidates(provider, hosts) if origin_of(candidate.base_url).text in bound)
    return next(found, None)


def require_bound(origin: Origin, egress: Iterable[str]) -> None:
    """Refuse an origin that is not in a secret's egress set, with ``EgressRefused``."""
    if origin.text not in egress:
        raise EgressRefused(
            f"The key is not bound to {origin}.",
            hint="The provider's address has changed since the key was stored: confirm it by entering the key again.",
        )


# Reasons why an address is denied. Those in _OPENABLE an operator may open, in the list for whoever named the host (ADR 21); the others
# never.
METADATA = "metadata"
_OPENABLE = frozenset({"loopback", "private", "shared", "unique-local", "translated", "benchmarking"})

_TABLE_V4: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("169.254.0.0/16", METADATA),  # link-local: AWS, Azure, Google, Oracle 169.254.169.254; ECS 169.254.170.2; EKS .23
        ("168.63.129.16/32", METADATA),  # Azure's WireServer: a public address that only answers inside
        ("100.100.100.200/32", METADATA),  # Alibaba
        ("192.0.0.192/32", METADATA),  # Oracle, older
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared"),
        ("127.0.0.0/8", "loopback"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_TABLE_V6: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("fd00:ec2::/32", METADATA),  # AWS: ::254 metadata, ::253 DNS, ::23 EKS
        ("fd20:ce::254/128", METADATA),  # Google
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fc00::/7", "unique-local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "reserved"),  # site-local, deprecated but still routed by some
        ("ff00::/8", "multicast"),
        ("2001::/23", "reserved"),  # IETF assignments: Teredo, benchmarking, ORCHID
        ("2001:db8::/32", "reserved"),
        ("3fff::/20", "reserved"),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_MAPPED = IPv6Network("::ffff:0:0/96")
_COMPATIBLE = IPv6Network("::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")


def deny_reason(address: str | Address) -> str | None:
    """Why keys do not go to this address, as one word, or ``None`` for an ordinary public address.

    IPv4 addresses inside IPv6 ones are unwrapped: metadata stays metadata in every wrapping. What is no address, or has a
    zone id, is ``reserved``.
    """
    if isinstance(address, str):
        try:
            address = ip_address(address)
        except ValueError:
            return "reserved"
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _TABLE_V4 if address in network), None)
    if address.scope_id is not None:
        return "reserved"
    embedded = _embedded_ipv4(address)
    if embedded is None:
        return next((reason for network, reason in _TABLE_V6 if address in network), _not_global(address))
    inner = deny_reason(embedded)
    if inner == METADATA or address in _MAPPED:
        return inner
    return "translated" if inner is None and address in _NAT64 else "reserved"


def _not_global(address: IPv6Address) -> str | None:
    """Only 2000::/3 has been given out for ordinary use."""
    return None if address in _GLOBAL_UNICAST else "reserved"


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    """Unwrap the IPv4 address that a gateway, tunnel or kernel would make of this one."""
    bits = int(address)
    if address in _SIX_TO_FOUR:
        return IPv4Address((bits >> 80) & 0xFFFFFFFF)
    if address in _TEREDO:
        return IPv4Address(~bits & 0xFFFFFFFF)
    if address in _MAPPED or address in _NAT64 or address in _NAT64_LOCAL or (address in _COMPATIBLE and bits > 1):
        return IPv4Address(bits & 0xFFFFFFFF)
    return None


@dataclass(frozen=True, slots=True)
class _Exception:
    """One of the operator's exceptions: a network, or a host with an optional port."""

    network: IPv4Network | IPv6Network | None = None
    host: str = ""
    port: int | None = None

    def covers(self, origin: Origin, address: Address) -> bool:
        if self.network is not None:
            return address in self.network
        return self.host == origin.host and self.port in (None, origin.port)


EGRESS_ALLOW = "KEYBEARER_EGRESS_ALLOW"
"""The setting with the exceptions for providers that administrators define (predefined or system-owned)."""
CONNECTION_ALLOW = "KEYBEARER_CONNECTION_ALLOW"
"""The setting with those for what everybody names: connection strings and webhooks."""


class EgressPolicy:
    """The operator's exceptions to the table: ``host``, ``host:port``, ``[v6]:port``, an address or a CIDR.

    They never open metadata, link-local, multicast or reserved addresses. ``setting`` is where they stand, for messages. Raises
    ``SettingsInvalid`` for an entry that is none of these.
    """

    def __init__(self, allow: tuple[str, ...] = (), setting: str = EGRESS_ALLOW) -> None:
        self._exceptions = tuple(_exception_of(entry, setting) for entry in allow)
        self._setting = setting

    @classmethod
    def either(cls, one: EgressPolicy, other: EgressPolicy) -> EgressPolicy:
        """A policy with the exceptions of both."""
        made = cls(setting=f"{one._setting} or {other._setting}")
        made._exceptions = one._exceptions + other._exceptions
        return made

    def may_connect(self, origin: Origin, address: str, *, admin_defined: bool) -> None:
        """Refuse, with ``EgressRefused``, to connect to ``address`` (one answer for ``origin.host``).

        ``admin_defined``: whoever named the host is one for whom the exceptions hold.
        Plain ``http`` goes to private addresses that the operator opened, and nowhere else: a key in clear text on a
        public network is a key given away.
        """
        reason = deny_reason(address)
        if reason is None:
            if origin.scheme == "https":
                return
            raise EgressRefused(f"Keys are not sent over plain http to {origin.host}.", hint="Use https://.")
        if reason in _OPENABLE and admin_defined:
            checked = ip_address(address)
            if any(exception.covers(origin, checked) for exception in self._exceptions):
                return
        raise EgressRefused(
            f"The host {origin.host} has an address that keys are not sent to ({reason}).",
            hint=self._way_out(reason, admin_defined=admin_defined),
        )

    def _way_out(self, reason: str, *, admin_defined: bool) -> str:
        if reason not in _OPENABLE:
            return "Name a public host: no setting opens addresses of this kind."
        if admin_defined:
            return f"The operator may allow private hosts with {self._setting}."
        return "Private hosts are for providers that an administrator defines."


def _exception_of(entry: str, setting: str) -> _Exception:
    text = entry.strip()
    try:
        return _Exception(network=ip_network(text))
    except ValueError:
        pass
    try:
        host, port = _host_and_port(text)
    except Invalid as error:
        raise SettingsInvalid(
            f"{setting}: {entry!r} is not a host, host:port or CIDR.",
            hint="For example: ollama.internal, 10.0.0.5:8000, [fd12::5]:8000, 10.1.0.0/16.",
        ) from error
    return _Exception(host=host, port=port)
