"""TLS to providers: 1.2 or newer, the name sent and verified, one more authority by choice. Nothing is sent before."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from tests.upstream.scripted import HOST, MakeUpstream, Resolver, Serve, Sink, answering, ask, until

from keybearer.errors import KeybearerError, SettingsInvalid, UpstreamTls
from keybearer.gateway.egress import EgressPolicy, origin_of
from keybearer.gateway.upstream import Target, Upstream

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def scheme() -> str:
    return "https"


def context_for(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def refused(serve: Serve, upstream: Upstream, context: ssl.SSLContext) -> KeybearerError:
    provider = await serve(answering(ANSWER), tls=context)
    sink = await ask(upstream, provider)
    assert sink.sent is False
    assert sink.events == ["failure"]
    assert sink.error is not None
    return sink.error


async def test_the_name_is_sent_and_verified(serve: Serve, make_upstream: MakeUpstream, server_tls: ssl.SSLContext) -> None:
    names: list[str | None] = []
    server_tls.sni_callback = lambda connection, name, _: names.append(name)
    provider = await serve(answering(ANSWER))
    upstream = make_upstream()
    assert (await ask(upstream, provider)).error is None
    server_tls.sni_callback = None
    versions = [connection.transport.get_extra_info("ssl_object").version() for connection in upstream._connections]
    assert names == [HOST]
    assert versions == ["TLSv1.3"]


async def test_a_certificate_for_another_name(serve: Serve, make_upstream: MakeUpstream, authority: trustme.CA) -> None:
    error = await refused(serve, make_upstream(), context_for(authority.issue_cert("other.test")))
    assert isinstance(error, UpstreamTls)
    assert "certificate" in error.message


async def test_a_certificate_for_the_address_instead_of_the_name(
    serve: Serve, make_upstream: MakeUpstream, authority: trustme.CA
) -> None:
    assert isinstance(await refused(serve, make_upstream(), context_for(authority.issue_cert("127.0.0.1"))), UpstreamTls)


async def test_an_unknown_authority(serve: Serve, make_upstream: MakeUpstream) -> None:
    assert isinstance(await refused(serve, make_upstream(), context_for(trustme.CA().issue_cert(HOST))), UpstreamTls)


async def test_an_expired_certificate(serve: Serve, make_upstream: MakeUpstream, authority: trustme.CA) -> None:
    expired = authority.issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC))
    error = await refused(serve, make_upstream(), context_for(expired))
    assert isinstance(error, UpstreamTls)


async def test_tls_older_than_1_2(serve: Serve, make_upstream: MakeUpstream, authority: trustme.CA) -> None:
    context = context_for(authority.issue_cert(HOST))
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert isinstance(await refused(serve, make_upstream(), context), UpstreamTls)


async def test_tls_1_2_is_enough(serve: Serve, make_upstream: MakeUpstream, authority: trustme.CA) -> None:
    context = context_for(authority.issue_cert(HOST))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    provider = await serve(answering(ANSWER), tls=context)
    assert (await ask(make_upstream(), provider)).error is None


async def test_without_the_extra_authority_nothing_is_trusted(serve: Serve) -> None:
    provider = await serve(answering(ANSWER))
    upstream = Upstream(EgressPolicy(("127.0.0.1",)), resolver=Resolver())
    sink = await ask(upstream, provider)
    await upstream.close()
    assert isinstance(sink.error, UpstreamTls)


async def test_a_server_that_hangs_up_in_the_handshake(make_upstream: MakeUpstream) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    origin = origin_of(f"https://{HOST}:{server.sockets[0].getsockname()[1]}")
    sink = Sink()
    upstream = make_upstream()
    upstream.send(Target(origin, None, admin_defined=True), b"GET / HTTP/1.1\r\n\r\n", sink)
    await asyncio.wait_for(sink.ended.wait(), 5)
    server.close()
    assert isinstance(sink.error, UpstreamTls)
    assert sink.sent is False
    await until(lambda: upstream.open_connections == 0)


def test_a_missing_authority_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid):
        Upstream(EgressPolicy(), ca_file=tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("no certificate")
    with pytest.raises(SettingsInvalid):
        Upstream(EgressPolicy(), ca_file=tmp_path / "empty.pem")


def test_session_keys_are_never_written(ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    upstream = Upstream(EgressPolicy(), ca_file=ca_file)
    assert upstream._tls.keylog_filename is None
    assert upstream._tls.check_hostname
    assert upstream._tls.verify_mode is ssl.CERT_REQUIRED
