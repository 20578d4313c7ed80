"""The client's address: the first from the right that is no declared proxy."""

from __future__ import annotations

import pytest

from keybearer.errors import SettingsInvalid
from keybearer.gateway.client_address import TrustedProxies, parse_address

PROXY = "10.0.0.1"

CASES = [
    # peer, X-Forwarded-For, client
    (PROXY, [], PROXY),
    (PROXY, [b"203.0.113.5"], "203.0.113.5"),
    (PROXY, [b"1.1.1.1, 203.0.113.5"], "203.0.113.5"),
    (PROXY, [b"1.1.1.1", b"203.0.113.5"], "203.0.113.5"),
    (PROXY, [b"203.0.113.5, 10.9.9.9"], "203.0.113.5"),
    (PROXY, [b"203.0.113.5:4711"], "203.0.113.5"),
    (PROXY, [b"[2001:db8::1]:443"], "2001:db8::1"),
    (PROXY, [b"2001:db8::1"], "2001:db8::1"),
    (PROXY, [b"::ffff:203.0.113.5"], "203.0.113.5"),
    (PROXY, [b"10.2.3.4"], "10.2.3.4"),  # everybody is a proxy: the farthest stands
    (PROXY, [b"1.1.1.1, unknown"], PROXY),  # cannot be attributed
    (PROXY, [b"1.1.1.1, "], PROXY),
    (PROXY, [b"1.1.1.1, 10.2.3.4, nonsense"], PROXY),
    (PROXY, [b"nonsense, 10.2.3.4"], "10.2.3.4"),
    (PROXY, [b"\xff\xfe"], PROXY),
    ("::ffff:10.0.0.1", [b"203.0.113.5"], "203.0.113.5"),
    ("198.51.100.1", [b"203.0.113.5"], "198.51.100.1"),  # no proxy of ours
    ("", [b"203.0.113.5"], ""),  # a Unix socket has no address
]


@pytest.mark.parametrize(("peer", "forwarded_for", "client"), CASES)
def test_the_client_is_who_the_nearest_declared_proxy_saw(peer: str, forwarded_for: list[bytes], client: str) -> None:
    assert TrustedProxies(["10.0.0.0/8"]).client_address(peer, forwarded_for) == client


def test_without_declared_proxies_nobody_is_believed() -> None:
    assert TrustedProxies([]).client_address(PROXY, [b"203.0.113.5"]) == PROXY


def test_a_wrong_declaration_is_told_at_the_start() -> None:
    with pytest.raises(SettingsInvalid, match="KEYBEARER_TRUSTED_PROXIES"):
        TrustedProxies(["proxy.internal"])


def test_zones_and_ports_are_no_part_of_an_address() -> None:
    assert str(parse_address("fe80::1%eth0")) == "fe80::1"
    assert parse_address("1.2.3.4.5") is None
