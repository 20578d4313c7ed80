"""Connection tests of databases and mail servers: each class of failure from a real or test server, told apart."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import UUID

import pytest
import sqlalchemy as sa
import trustme
from tests.support import mysql, smtp
from tests.support.mysql import CACHING, NATIVE, MysqlServer
from tests.support.postgresql import Server
from tests.upstream.scripted import HOST, Resolver

from keybearer.catalog import Catalog
from keybearer.domain import SYSTEM_OWNER_ID, SecretBytes
from keybearer.errors import Invalid
from keybearer.gateway.dial import Dialer
from keybearer.gateway.egress import EgressPolicy
from keybearer.gateway.prober import Prober, TestOptions
from keybearer.gateway.upstream import Upstream
from keybearer.gateway.verdict import ProbeResult

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
USER_ID = UUID(int=7)
KNOWN, KNOWN_PASSWORD = "kbtest_known", "kbtest-pg-p@ss/word 0123456789"


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(handler(reader, writer))
        tasks.add(task)
        await asyncio.wait([task])

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            if tasks:
                await asyncio.wait(tasks, timeout=5)  # clients are gone: handlers end by themselves
    await asyncio.sleep(0.05)  # uvloop closes sockets in its next turns, and does not end before


@contextlib.asynccontextmanager
async def prober_with(
    ca_file: Path | None = None,
    *,
    allow: tuple[str, ...] = ("127.0.0.1",),
    system_allow: tuple[str, ...] = (),
    answers: list[str] | None = None,
) -> AsyncIterator[Prober]:
    resolver = Resolver(["127.0.0.1"] if answers is None else answers)
    upstream = Upstream(EgressPolicy(system_allow), resolver=resolver, ca_file=ca_file)
    hooks = Upstream(EgressPolicy(allow), resolver=resolver, ca_file=ca_file)
    try:
        yield Prober(upstream, hooks, Dialer(allow, system_allow, ca_file=ca_file, resolver=resolver))
    finally:
        await upstream.close()
        await hooks.close()


async def tried(
    provider: str, text: str, ca_file: Path | None = None, *, seconds: float = 10, owner: UUID = USER_ID
) -> ProbeResult:
    async with prober_with(ca_file) as prober:
        return await prober.test(Catalog.load().get(provider), SecretBytes(text.encode()), (), owner, seconds=seconds)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# ---- PostgreSQL: the real one, reached over TCP ----------------------------------------------------------------------


@pytest.fixture
def postgresql(postgresql_server: Server) -> Iterator[Server]:
    def drop() -> None:
        with postgresql_server.connect() as connection:
            for name in (KNOWN, "kbtest_turned_away", "kbtest_no_login"):
                connection.execute(f"DROP ROLE IF EXISTS {name}")

    drop()
    with postgresql_server.connect() as connection:
        connection.execute(f"CREATE ROLE {KNOWN} LOGIN PASSWORD '{KNOWN_PASSWORD}'")
        connection.execute("CREATE ROLE kbtest_turned_away LOGIN")
        connection.execute("CREATE ROLE kbtest_no_login")
    yield postgresql_server
    drop()


@contextlib.asynccontextmanager
async def over_tcp(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """The server's port, which it has only in this test: a relay that answers to the request for TLS itself."""
    directory = unquote(str(sa.make_url(server.admin).query["host"]))
    firsts: list[bytes] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.readexactly(8)
            firsts.append(first)
            if first[4:] == b"\x04\xd2\x16\x2f":  # 80877103: the request for TLS
                writer.write(b"N" if tls is None else b"S")
                await writer.drain()
                if tls is not None:
                    await writer.start_tls(tls)
                first = await reader.readexactly(8)
            inner_reader, inner_writer = await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.5432")
            inner_writer.write(first)
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async with listening(relay) as port:
        yield port, firsts


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


def dsn(port: int, user: str = KNOWN, password: str = KNOWN_PASSWORD, more: str = "", database: str = "postgres") -> str:
    return f"postgresql://{user}:{quote(password, safe='')}@{HOST}:{port}/{database}{more}"


async def test_postgresql_lets_in(postgresql: Server) -> None:
    async with over_tcp(postgresql) as (port, _):
        found = await tried("postgresql", dsn(port))
        assert (found.status, found.message) == ("ok", "")
        assert found.latency_ms > 0
        keywords = f"host={HOST} port={port} user={KNOWN} password='{KNOWN_PASSWORD}' dbname=postgres"
        assert (await tried("postgresql", keywords)).status == "ok"
        assert (await tried("postgresql", dsn(port).replace("postgresql:", "postgresql+psycopg:"))).status == "ok"


@pytest.mark.parametrize(
    ("user", "password", "database", "status"),
    [
        (KNOWN, "kbtest-wrong-password", "postgres", "invalid"),
        ("kbtest_nobody", "kbtest-wrong-password", "postgres", "invalid"),
        ("kbtest_turned_away", "kbtest-any", "postgres", "forbidden"),
        ("kbtest_no_login", "kbtest-any", "postgres", "forbidden"),
        (KNOWN, KNOWN_PASSWORD, "kbtest_no_such_database", "error"),
    ],
)
async def test_postgresql_refuses(user: str, password: str, database: str, status: str, postgresql: Server) -> None:
    async with over_tcp(postgresql) as (port, _):
        found = await tried("postgresql", dsn(port, user, password, database=database))
    assert found.status == status
    assert found.message
    assert not any(part in found.message for part in (password, user, "kbtest_no_such_database", "127.0.0.1"))


async def test_postgresql_with_no_connection_left(postgresql: Server) -> None:
    with postgresql.connect() as connection:
        connection.execute(f"ALTER ROLE {KNOWN} CONNECTION LIMIT 0")
    async with over_tcp(postgresql) as (port, _):
        assert (await tried("postgresql", dsn(port))).status == "rate_limited"


async def test_postgresql_under_tls(postgresql: Server, server_tls: ssl.SSLContext, ca_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with over_tcp(postgresql, server_tls) as (port, firsts):
        assert (await tried("postgresql", dsn(port, more="?sslmode=verify-full"), ca_file)).status == "ok"
        assert (await tried("postgresql", dsn(port, more="?sslmode=require"))).status == "ok"
        assert (await tried("postgresql", dsn(port, more="?sslmode=verify-full"), other)).status == "tls"
        assert (await tried("postgresql", dsn(port, more="?sslmode=verify-full"))).status == "tls"
        assert all(first[4:] == b"\x04\xd2\x16\x2f" for first in firsts)
        elsewhere = dsn(port, more="?sslmode=verify-full").replace(HOST, "other.test")
        assert (await tried("postgresql", elsewhere, ca_file)).status == "tls"
    async with over_tcp(postgresql) as (port, _):
        assert (await tried("postgresql", dsn(port, more="?sslmode=require"))).status == "tls"


async def test_nothing_of_this_machine_goes_along(postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:*:{KNOWN_PASSWORD.replace(':', chr(92) + ':')}")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    async with over_tcp(postgresql) as (port, _):
        for more in ("", f"?passfile={quote(str(passwords), safe='')}"):
            assert (await tried("postgresql", f"postgresql://{KNOWN}@{HOST}:{port}/postgres{more}")).status == "invalid"


@pytest.mark.parametrize("provider", ["postgresql", "mysql", "smtp"])
async def test_what_the_network_does(provider: str) -> None:
    text = f"{provider}://kbtest:kbtest-password@{HOST}:{{}}/kbtest"
    assert (await tried(provider, text.format(unused_port()))).status == "unreachable"

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-kbtest\r\n")
        await writer.drain()
        writer.close()

    async with listening(silent) as port:
        assert (await tried(provider, text.format(port), seconds=0.3)).status == "timeout"
    async with listening(stranger) as port:
        assert (await tried(provider, text.format(port))).status == "error"


@pytest.mark.parametrize("provider", ["postgresql", "mysql", "smtp"])
@pytest.mark.parametrize(
    ("answers", "allow", "status"),
    [
        ([], ("127.0.0.1",), "dns"),
        (["127.0.0.1"], (), "unreachable"),
        (["169.254.169.254"], ("127.0.0.1", "169.254.0.0/16"), "unreachable"),
        (["93.184.216.34", "127.0.0.1"], (), "unreachable"),
    ],
)
async def test_where_it_may_not_go(provider: str, answers: list[str], allow: tuple[str, ...], status: str) -> None:
    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async with listening(count) as port, prober_with(allow=allow, answers=answers) as prober:
        text = f"{provider}://kbtest:kbtest-password@{HOST}:{port}/kbtest"
        found = await prober.test(Catalog.load().get(provider), SecretBytes(text.encode()), (), USER_ID)
    assert (found.status, connections) == (status, 0)
    assert "169.254" not in found.message


async def test_what_providers_may_reach_is_open_to_the_systems_strings_alone() -> None:
    text = SecretBytes(f"mysql://kbtest:kbtest-password@{HOST}:{unused_port()}/kbtest".encode())
    provider = Catalog.load().get("mysql")
    async with prober_with(allow=(), system_allow=("127.0.0.1",)) as prober:
        assert "not sent to" in (await prober.test(provider, text, (), USER_ID)).message
        assert "not sent to" in (await prober.test(provider, text, (), None)).message
        assert "could not be connected to" in (await prober.test(provider, text, (), SYSTEM_OWNER_ID)).message


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        ("postgresql", "kbtest not a string"),
        ("postgresql", "postgresql:///kbtest"),
        ("postgresql", "postgresql://%2Fvar%2Frun/kbtest"),
        ("postgresql", "postgresql://one.test,two.test/kbtest"),
        ("postgresql", "postgresql://one.test:0/kbtest"),
        ("postgresql", "postgresql://one.test/kbtest?sslmode=sometimes"),
        ("postgresql", "host=one.test port=kbtest"),
        pytest.param("postgresql", f"host=one.test port={'9' * 5000}", id="a port of 5,000 digits"),
        ("mysql", "mysql://one.test:99999/kbtest"),
        ("mysql", "mysql://one.test/kbtest?ssl-mode=sometimes"),
        ("mysql", "mysql://u:kbtest%zz%ff@one.test/"),
        ("mysql", "mysql:///kbtest"),
        ("mysql", "mysql://u:p@0x7f.1/kbtest"),
        ("smtp", "smtp+kbtest://one.test"),
        ("smtp", "smtp://u:kbtest#x@one.test"),
    ],
)
async def test_what_cannot_be_read(provider: str, text: str) -> None:
    with pytest.raises(Invalid) as error:
        await tried(provider, text)
    assert "kbtest" not in f"{error.value.message}{error.value.hint}"


# ---- MySQL -----------------------------------------------------------------------------------------------------------


def url(port: int, password: str = mysql.PASSWORD, more: str = "", user: str = mysql.USER) -> str:
    return f"mysql://{user}:{quote(password, safe='')}@{HOST}:{port}/shop{more}"


@pytest.mark.parametrize("wanted", ["", NATIVE, CACHING], ids=["no switch", "to native", "to caching"])
@pytest.mark.parametrize("plugin", [NATIVE, CACHING, "client_ed25519"])
async def test_mysql_lets_in(plugin: str, wanted: str) -> None:
    server = MysqlServer(plugin=plugin, wanted=wanted or (CACHING if plugin == "client_ed25519" else ""))
    with mysql.running(server) as port:
        assert (await tried("mysql", url(port))).status == "ok"
        assert server.queries == [b"\x03SELECT 1"]
        wrong = await tried("mysql", url(port, "kbtest-wrong"))
        assert (wrong.status, wrong.message) == ("invalid", "The server refused the user name or the password.")
        assert (await tried("mysql", url(port, user="kbtest_nobody"))).status == "invalid"


async def test_mysql_under_tls(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    server = MysqlServer(server_tls, in_full=True)
    with mysql.running(server) as port:
        assert (await tried("mysql", url(port))).status == "ok", "taken where offered"
        assert server.was_tls
        assert (await tried("mysql", url(port, more="?ssl-mode=VERIFY_IDENTITY"), ca_file)).status == "ok"
        assert (await tried("mysql", url(port, more="?ssl-mode=VERIFY_IDENTITY"))).status == "tls"
        assert (await tried("mysql", url(port, more="?ssl-mode=VERIFY_CA"), ca_file)).status == "ok"
        assert (await tried("mysql", url(port, more="?tls=skip-verify"))).status == "ok"
        in_clear = await tried("mysql", url(port, more="?ssl-mode=DISABLED"))
        assert (in_clear.status, "TLS only" in in_clear.message) == ("tls", True), "the password itself goes under TLS only"
        elsewhere = url(port, more="?ssl-mode=VERIFY_IDENTITY").replace(HOST, "other.test")
        assert (await tried("mysql", elsewhere, ca_file)).status == "tls"
    with mysql.running(MysqlServer()) as port:
        assert (await tried("mysql", url(port, more="?ssl-mode=REQUIRED"))).status == "tls"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (1040, "rate_limited"),
        (1044, "forbidden"),
        (1049, "error"),
        (1130, "forbidden"),
        (1226, "rate_limited"),
        (1862, "invalid"),
        (3118, "forbidden"),
    ],
)
async def test_mysql_refuses(code: int, status: str) -> None:
    for server in (MysqlServer(refusal=(code, "shop is closed")), MysqlServer(after=(code, f"shop for {mysql.USER}"))):
        with mysql.running(server) as port:
            found = await tried("mysql", url(port))
            assert found.status == status
            assert "shop" not in found.message
            assert mysql.USER not in found.message


# ---- mail ------------------------------------------------------------------------------------------------------------


def mail_url(port: int, scheme: str = "smtp", password: str = smtp.PASSWORD) -> str:
    return f"{scheme}://{smtp.USER}:{password}@{HOST}:{port}"


async def test_smtp_lets_in(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    with smtp.running() as server:
        assert (await tried("smtp", mail_url(server.port))).status == "ok"
        assert (await tried("smtp", mail_url(server.port, password="kbtest-wrong"))).status == "invalid"
        assert (await tried("smtp", f"smtp://{HOST}:{server.port}")).status == "ok", "without a user there is no sign-in"
        assert (await tried("smtp", mail_url(server.port, "smtp+starttls"))).status == "tls"
    with smtp.running(smtp.MailServer(server_tls)) as server:
        assert (await tried("smtp", mail_url(server.port, "smtp+starttls"), ca_file)).status == "ok"
        assert "STARTTLS" in server.heard
        assert (await tried("smtp", mail_url(server.port))).status == "tls", "verified where it is offered"
        elsewhere = mail_url(server.port).replace(HOST, "other.test")
        assert (await tried("smtp", elsewhere, ca_file)).status == "tls"
    with smtp.running(smtp.MailServer(server_tls, is_implicit=True)) as server:
        assert (await tried("smtp", mail_url(server.port, "smtps"), ca_file)).status == "ok"
        assert (await tried("smtp", mail_url(server.port, "smtps"))).status == "tls"
        assert (await tried("smtp", mail_url(server.port, "smtps").replace(HOST, "other.test"), ca_file)).status == "tls"


@pytest.mark.parametrize(
    ("greeting", "sign_in", "status"),
    [
        ("421 too busy for kbtest-mailer", "", "rate_limited"),
        ("554 go away", "", "forbidden"),
        ("220 ready", "454 later", "rate_limited"),
        ("220 ready", "534 5.7.9 use another password", "invalid"),
        ("220 ready", "538 5.7.11 encryption required", "tls"),
    ],
)
async def test_smtp_refuses(greeting: str, sign_in: str, status: str) -> None:
    with smtp.running(smtp.MailServer(greeting=greeting, sign_in=sign_in)) as server:
        found = await tried("smtp", mail_url(server.port))
    assert found.status == status
    assert "kbtest-mailer" not in found.message


# ---- webhooks and other HTTP ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answering(status: int, body: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        requests.append(head + await reader.readexactly(size))
        length = 0 if head.startswith(b"HEAD ") else len(body)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, length, body[:length]))
        await writer.drain()
        writer.close()

    async with listening(answer) as port:
        yield port, requests


@pytest.mark.parametrize("method", [None, "HEAD", "GET", "POST"])
async def test_a_webhooks_address_is_asked_as_configured(method: str | None) -> None:
    webhook = Catalog.load().get("webhook")
    async with answering(200, b"fine") as (port, requests), prober_with() as prober:
        text = SecretBytes(f"http://{HOST}:{port}/hooks/kbtest-capability?sig=kbtest-1".encode())
        found = await prober.test(webhook, text, (), USER_ID, TestOptions(method))  # type: ignore[arg-type]
    assert found.status == "ok"
    assert requests[0].startswith(f"{method or 'HEAD'} /hooks/kbtest-capability?sig=kbtest-1 HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "invalid"),
        (403, "forbidden"),
        (410, "invalid"),
        (404, "error"),
        (429, "rate_limited"),
        (500, "error"),
        (302, "error"),
    ],
)
async def test_a_webhooks_address_refuses(status: int, expected: str) -> None:
    webhook = Catalog.load().get("webhook")
    async with answering(status, b"no hook at /hooks/kbtest-capability") as (port, _), prober_with() as prober:
        text = SecretBytes(f"http://{HOST}:{port}/hooks/kbtest-capability".encode())
        found = await prober.test(webhook, text, (), USER_ID, TestOptions("POST"))
    assert found.status == expected
    assert "capability" not in found.message


@pytest.mark.parametrize(
    "url", ["https://[", "https://[::1/hook", "https://host:99999/", "https://a b/", "https://host/#x", "https://hö/"]
)
async def test_what_is_no_webhooks_address(url: str) -> None:
    webhook = Catalog.load().get("webhook")
    async with prober_with() as prober:
        for value, options in ((url, TestOptions()), ("kbtest-signing-secret", TestOptions(url=url))):
            with pytest.raises(Invalid):
                await prober.test(webhook, SecretBytes(value.encode()), (), USER_ID, options)


async def test_a_signing_secret_signs_and_stays() -> None:
    from standardwebhooks.webhooks import Webhook

    secret = "whsec_a2J0ZXN0LXNpZ25pbmctc2VjcmV0LTAxMjM0NTY3ODk="
    webhook = Catalog.load().get("webhook")
    async with answering(204) as (port, requests), prober_with() as prober:
        with pytest.raises(Invalid, match="address"):
            await prober.test(webhook, SecretBytes(secret.encode()), (), USER_ID)
        options = TestOptions(url=f"http://{HOST}:{port}/in")
        assert (await prober.test(webhook, SecretBytes(secret.encode()), (), USER_ID, options)).status == "ok"
    head, _, body = requests[0].partition(b"\r\n\r\n")
    headers = dict(line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:])
    headers["webhook-signature"] = head.decode().partition("webhook-signature: ")[2].partition("\r\n")[0]
    assert Webhook(secret).verify(body.decode(), headers)["type"] == "keybearer.test"
    assert secret.encode() not in requests[0]
    assert secret.removeprefix("whsec_").encode() not in requests[0]


async def test_private_webhooks_are_for_those_that_the_operator_opened() -> None:
    webhook = Catalog.load().get("webhook")
    async with answering(200) as (port, requests), prober_with(allow=(), system_allow=("127.0.0.1",)) as prober:
        text = SecretBytes(f"http://{HOST}:{port}/".encode())
        assert (await prober.test(webhook, text, (), USER_ID)).status == "unreachable"
    assert not requests
