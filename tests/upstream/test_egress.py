"""Where keys may go: URLs to origins, addresses to verdicts, the operator's exceptions. A table each."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keybearer.catalog import custom
from keybearer.errors import EgressRefused, Invalid, SettingsInvalid
from keybearer.gateway.egress import EgressPolicy, Origin, deny_reason, egress_set, origin_of, require_bound


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://api.openai.com", "https://api.openai.com:443"),
        ("https://api.openai.com/", "https://api.openai.com:443"),
        ("HTTPS://API.OpenAI.com/v1", "https://api.openai.com:443"),
        ("https://api.openai.com.", "https://api.openai.com:443"),
        ("https://api.openai.com:443/v1", "https://api.openai.com:443"),
        ("https://api.openai.com:8443", "https://api.openai.com:8443"),
        ("http://ollama:11434/v1", "http://ollama:11434"),
        ("http://my_service.internal", "http://my_service.internal:80"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example:443"),
        ("https://192.168.1.20:8000", "https://192.168.1.20:8000"),
        ("https://[2001:0DB8:0:0::1]/v1", "https://[2001:db8::1]:443"),
        ("https://[::1]:8080", "https://[::1]:8080"),
        ("https://1password.example", "https://1password.example:443"),
        ("https://0xabc.example", "https://0xabc.example:443"),
    ],
)
def test_urls_that_have_an_origin(url: str, text: str) -> None:
    origin = origin_of(url)
    assert origin.text == text
    assert origin_of(origin.text) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.openai.com",
        "//api.openai.com",
        "ftp://api.openai.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https:api.openai.com",
        "https:/api.openai.com",
        "https://",
        "https:///v1",
        "https://:443",
        "https://.",
        "https://..",
        "https://a..b",
        "https://api.openai.com..",
        "https://-api.example",
        "https://api-.example",
        "https://" + "a" * 64 + ".example",
        "https://" + ".".join(["a" * 60] * 5),
        "https://" + "a" * 3000,
        # user information, queries, fragments, what parsers disagree about
        "https://user@api.openai.com",
        "https://user:pass@api.openai.com",
        "https://api.openai.com@evil.example",
        "https://@api.openai.com",
        "https://api.openai.com?x=1",
        "https://api.openai.com/?x=1",
        "https://api.openai.com#x",
        "https://evil.example#@api.openai.com",
        "https://evil.example\\@api.openai.com",
        "https://api.openai.com\\.evil.example",
        "https:\\\\api.openai.com",
        "https://api.openai.com /v1",
        " https://api.openai.com",
        "https://api.openai.com\n",
        "https://api.openai.com\r\nHost: evil.example",
        "https://api.openai.com\t",
        "https://api.openai.com\x00.evil.example",
        "https://api%2eopenai.com",
        "https://127%2e0.0.1",
        "https://*.openai.com",
        # not ASCII: names, digits and dots that some library maps to ASCII
        "https://bücher.example",
        "https://ⓐpi.openai.com",
        "https://127。0。0。1",
        "https://１２７.0.0.1",  # noqa: RUF001  # full-width digits, on purpose
        "https://аpi.openai.com",  # noqa: RUF001  # a Cyrillic letter, on purpose
        "https://api.openai.com\u200b",
        # spellings of 127.0.0.1 that some resolver takes
        "https://2130706433",
        "https://0x7f000001",
        "https://0x7f.0.0.1",
        "https://0177.0.0.1",
        "https://017700000001",
        "https://127.1",
        "https://127.0.1",
        "https://127.0.0.01",
        "https://127.0.0.1.1",
        "https://127.0.0.256",
        "https://0",
        "https://0x",
        "https://1.2.3.0x4",
        "https://example.1",
        "https://[127.0.0.1]",
        "https://[::ffff:127.0.0.1]",
        "https://[::ffff:7f00:1]",
        "https://[::1%25eth0]",
        "https://[fe80::1%eth0]",
        "https://[::1",
        "https://::1",
        "https://[::1]x",
        "https://[::1]:",
        "https://[]",
        "https://[v1.x]",
        "https://[[::1]]",
        # ports
        "https://api.openai.com:",
        "https://api.openai.com:0",
        "https://api.openai.com:00443",
        "https://api.openai.com:65536",
        "https://api.openai.com:99999999999999",
        "https://api.openai.com:-1",
        "https://api.openai.com:+443",
        "https://api.openai.com:44a",
        "https://api.openai.com:443:443",
        "https://api.openai.com:٤٤٣",
    ],
)
def test_urls_that_have_none(url: str) -> None:
    with pytest.raises(Invalid):
        origin_of(url)


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=60))
def test_any_text_after_https_gives_a_canonical_origin_or_invalid(text: str) -> None:
    try:
        origin = origin_of("https://" + text)
    except Invalid:
        return
    assert origin_of(origin.text) == origin
    assert origin.text.isascii()
    assert origin.host == origin.host.lower()


def test_the_host_header_leaves_the_usual_port_out() -> None:
    assert origin_of("https://api.openai.com").authority == b"api.openai.com"
    assert origin_of("https://api.openai.com:8443").authority == b"api.openai.com:8443"
    assert origin_of("http://[fd12::5]:80").authority == b"[fd12::5]"
    assert origin_of("http://[fd12::5]:443").authority == b"[fd12::5]:443"


def test_a_secret_is_bound_to_the_origin_of_its_provider() -> None:
    egress = egress_set(custom("x", "", "https://api.openai.com/v1", "bearer", "", (), UUID(int=7)))
    assert egress == ("https://api.openai.com:443",)
    require_bound(origin_of("https://API.openai.com"), egress)
    for other in ("http://api.openai.com:443", "https://api.openai.com:444", "https://api.openai.co", "https://x.api.openai.com"):
        with pytest.raises(EgressRefused):
            require_bound(origin_of(other), egress)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("8.8.8.8", None),
        ("104.18.7.192", None),
        ("172.15.255.255", None),
        ("172.32.0.0", None),
        ("100.63.255.255", None),
        ("100.128.0.0", None),
        ("168.63.129.15", None),
        ("2606:4700::6812:7c0", None),
        ("2a00:1450:4001::200a", None),
        ("::ffff:8.8.8.8", None),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.0.1", "private"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("100.64.0.1", "shared"),
        ("100.127.255.255", "shared"),
        ("198.18.0.1", "benchmarking"),
        ("192.0.0.1", "reserved"),
        ("192.0.2.1", "reserved"),
        ("198.51.100.1", "reserved"),
        ("203.0.113.1", "reserved"),
        ("192.88.99.1", "reserved"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("169.254.1.1", "metadata"),
        ("169.254.169.254", "metadata"),
        ("169.254.170.2", "metadata"),
        ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"),
        ("192.0.0.192", "metadata"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("fe80::1%eth0", "reserved"),
        ("2606:4700::1%1", "reserved"),
        ("fec0::1", "reserved"),
        ("fc00::1", "unique-local"),
        ("fd12:3456::1", "unique-local"),
        ("fd00:ec2::254", "metadata"),
        ("fd00:ec2::23", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "reserved"),
        ("3fff::1", "reserved"),
        ("2001:2::1", "reserved"),
        ("2001:10::1", "reserved"),
        ("100::1", "reserved"),
        ("5f00::1", "reserved"),
        ("4000::1", "reserved"),
        # IPv4 inside IPv6
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:169.254.169.254", "metadata"),
        ("::ffff:168.63.129.16", "metadata"),
        ("::127.0.0.1", "reserved"),
        ("::8.8.8.8", "reserved"),
        ("::169.254.169.254", "metadata"),
        ("64:ff9b::8.8.8.8", "translated"),
        ("64:ff9b::10.0.0.1", "reserved"),
        ("64:ff9b::169.254.169.254", "metadata"),
        ("64:ff9b:1::8.8.8.8", "reserved"),
        ("64:ff9b:1::a9fe:a9fe", "metadata"),
        ("2002:0808:0808::1", "reserved"),
        ("2002:7f00:1::1", "reserved"),
        ("2002:a9fe:a9fe::1", "metadata"),
        ("2001:0:808:808:0:0:f7f7:f7f7", "reserved"),  # Teredo to 8.8.8.8
        ("2001:0:808:808:0:0:5601:5601", "metadata"),  # Teredo to 169.254.169.254
        # no address
        ("", "reserved"),
        ("localhost", "reserved"),
        ("127.1", "reserved"),
    ],
)
def test_the_table_of_addresses(address: str, reason: str | None) -> None:
    assert deny_reason(address) == reason


@settings(deadline=None)  # the machine may be busy
@given(st.ip_addresses())
def test_no_address_passes_that_python_does_not_call_global(address: IPv4Address | IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    judged = mapped or address
    if not judged.is_global or judged.is_multicast:
        assert deny_reason(address) is not None


@settings(deadline=None)  # the machine may be busy
@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_never_judged_better_than_itself(address: IPv4Address) -> None:
    low, reason = int(address), deny_reason(address)
    assert deny_reason(IPv6Address((0xFFFF << 32) | low)) == reason
    for wrapped in (
        low,
        (0x64FF9B << 96) | low,
        (0x64FF9B0001 << 80) | low,
        (0x2002 << 112) | (low << 80),
        (0x20010000 << 96) | (~low & 0xFFFFFFFF),
    ):
        if wrapped > 1:
            assert deny_reason(IPv6Address(wrapped)) in ({"metadata"} if reason == "metadata" else {"reserved", "translated"})


PUBLIC, PRIVATE, METADATA = "8.8.8.8", "10.0.0.5", "169.254.169.254"


@pytest.mark.parametrize(
    ("url", "address", "allow", "admin_defined", "allowed"),
    [
        ("https://api.example", PUBLIC, (), True, True),
        ("https://api.example", PUBLIC, (), False, True),
        ("https://api.example", PRIVATE, (), True, False),
        ("https://api.example", PRIVATE, (), False, False),
        ("https://api.example", PRIVATE, ("api.example",), True, True),
        ("https://api.example", PRIVATE, ("API.example.",), True, True),
        ("https://api.example", PRIVATE, ("api.example",), False, False),
        ("https://api.example", PRIVATE, ("other.example",), True, False),
        ("https://x.api.example", PRIVATE, ("api.example",), True, False),
        ("https://api.example", PRIVATE, ("api.example:443",), True, True),
        ("https://api.example", PRIVATE, ("api.example:8443",), True, False),
        ("https://api.example:8443", PRIVATE, ("api.example:8443",), True, True),
        ("https://api.example", PRIVATE, ("10.0.0.0/8",), True, True),
        ("https://api.example", PRIVATE, ("10.0.0.5",), True, True),
        ("https://10.0.0.5:8000", PRIVATE, ("10.0.0.5:8000",), True, True),
        ("https://10.0.0.5:8001", PRIVATE, ("10.0.0.5:8000",), True, False),
        ("https://api.example", PRIVATE, ("10.0.0.0/8",), False, False),
        ("https://api.example", PRIVATE, ("192.168.0.0/16",), True, False),
        ("https://[fd12::5]:8000", "fd12::5", ("[fd12::5]:8000",), True, True),
        ("https://api.example", "fd12::5", ("fd12::/16",), True, True),
        ("https://api.example", "fd12::5", ("0.0.0.0/0",), True, False),
        ("https://api.example", "64:ff9b::8.8.8.8", (), True, False),
        ("https://api.example", "64:ff9b::8.8.8.8", ("64:ff9b::/96",), True, True),
        ("https://api.example", "64:ff9b::10.0.0.5", ("64:ff9b::/96",), True, False),
        # never, whatever is allowed
        ("https://api.example", METADATA, ("api.example", "0.0.0.0/0", METADATA), True, False),
        ("https://api.example", "168.63.129.16", ("168.63.129.16",), True, False),
        ("https://api.example", "100.100.100.200", ("100.64.0.0/10",), True, False),
        ("https://api.example", "fd00:ec2::254", ("::/0", "fc00::/7"), True, False),
        ("https://api.example", "::ffff:169.254.169.254", ("::/0", "0.0.0.0/0"), True, False),
        ("https://api.example", "fe80::1", ("::/0",), True, False),
        ("https://api.example", "0.0.0.0", ("0.0.0.0/0",), True, False),
        ("https://api.example", "224.0.0.1", ("0.0.0.0/0",), True, False),
        # plain http: to allowed private hosts of admin-defined providers, and nowhere else
        ("http://api.example", PUBLIC, (), True, False),
        ("http://api.example", PUBLIC, ("api.example", "0.0.0.0/0"), True, False),
        ("http://api.example", PRIVATE, (), True, False),
        ("http://api.example", PRIVATE, ("api.example",), True, True),
        ("http://api.example", PRIVATE, ("api.example",), False, False),
        ("http://ollama:11434", "127.0.0.1", ("ollama:11434",), True, True),
    ],
)
def test_the_policy(url: str, address: str, allow: tuple[str, ...], admin_defined: bool, allowed: bool) -> None:  # noqa: FBT001
    policy, origin = EgressPolicy(allow), origin_of(url)
    if allowed:
        policy.may_connect(origin, address, admin_defined=admin_defined)
    else:
        with pytest.raises(EgressRefused):
            policy.may_connect(origin, address, admin_defined=admin_defined)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.example",
        "10.0.0.0/33",
        "10.0.0.5/8",
        "10.0.0.0/8:80",
        "http://ollama",
        "a b",
        "ollama:0",
        "0x7f.1",
        "[::1",
        "ö.de",
    ],
)
def test_an_exception_that_is_none_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        EgressPolicy((entry,))
    assert "KEYBEARER_EGRESS_ALLOW" in caught.value.message
    with pytest.raises(SettingsInvalid, match="KEYBEARER_CONNECTION_ALLOW"):
        EgressPolicy((entry,), "KEYBEARER_CONNECTION_ALLOW")


def test_a_refusal_says_what_would_open_the_host() -> None:
    origin, connections = origin_of("https://db.example"), EgressPolicy(("10.0.0.5",), "KEYBEARER_CONNECTION_ALLOW")
    both = EgressPolicy.either(connections, EgressPolicy(("10.0.0.6",)))

    def hint(policy: EgressPolicy, address: str = "10.0.0.9", *, admin_defined: bool = True) -> str:
        with pytest.raises(EgressRefused) as refused:
            policy.may_connect(origin, address, admin_defined=admin_defined)
        return refused.value.hint

    assert "KEYBEARER_EGRESS_ALLOW" in hint(EgressPolicy())
    assert hint(connections).endswith(" KEYBEARER_CONNECTION_ALLOW.")
    assert hint(both).endswith(" KEYBEARER_CONNECTION_ALLOW or KEYBEARER_EGRESS_ALLOW.")
    assert "KEYBEARER" not in hint(both, "169.254.169.254")
    assert "KEYBEARER" not in hint(EgressPolicy(("10.0.0.9",)), admin_defined=False)
    for address in ("10.0.0.5", "10.0.0.6"):
        both.may_connect(origin, address, admin_defined=True)


def test_origins_compare_by_value() -> None:
    assert Origin("https", "a.example", 443) == origin_of("https://a.example/x")
