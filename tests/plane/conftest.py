"""A real uvicorn server running the data plane on loopback, a scripted provider behind it, everything else real but small."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import trustme
import uvicorn
from tests.plane.wire import Answer, Connection, Provider, connect, fixed, until
from tests.support.vault import World, world_on

from keybearer.access.tokens import generate
from keybearer.audit.journal import Durability, Journal
from keybearer.audit.refusals import Refusals
from keybearer.audit.ship import Shipper
from keybearer.catalog import Catalog, Registry, places, with_base_url
from keybearer.catalog.openrouter import StandIn
from keybearer.crypto.keyring import Keyring
from keybearer.domain import Caller, Credential, Grant, KeySource, Owner, OwnerKind, Role, Scope, SecretBytes
from keybearer.errors import KeyMissing, TokenInvalid
from keybearer.gateway.counters import Counters
from keybearer.gateway.counts import Records
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.egress import EgressPolicy, egress_set
from keybearer.gateway.limits import Limits
from keybearer.gateway.objects import Objects
from keybearer.gateway.own_counts import OwnCounts
from keybearer.gateway.plane import Plane
from keybearer.gateway.protocol import PLANE, GatewayProtocol
from keybearer.gateway.upstream import Upstream
from keybearer.store import changes
from keybearer.store.changes import Feed
from keybearer.store.db import Actor, Database
from keybearer.usage import prices
from keybearer.vault.holders import KeyHolder

USER = UUID(int=7)
KEY = "sk-kbtest-0123456789abcdefghijklmnopqrstuvwxyz"
CHAT = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3},
    }
).encode()
PROMPT = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}'
STREAM = b'{"model":"gpt-4o-mini","stream":true,"stream_options":{"include_usage":true},"messages":[]}'


@pytest.fixture(scope="session", params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: the server runs on uvloop, and on asyncio where that is not to be had."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@dataclass
class Vault:
    """What tokens, registries and keys there are: the three reads of the vault, with a latch to hold one in mid-read."""

    grants: dict[bytes, Grant] = field(default_factory=dict)
    providers: Registry = field(default_factory=lambda: Registry(()))
    keys: dict[str, Credential] = field(default_factory=dict)
    further: dict[str, tuple[Credential, ...]] = field(default_factory=dict)
    """By provider, the keys behind the first."""
    reads: list[str] = field(default_factory=list)
    latch: Callable[[str], Any] | None = None

    async def _read(self, what: str) -> None:
        self.reads.append(what)

    async def _answered(self, what: str) -> None:
        if self.latch is not None:
            await self.latch(what)

    async def verify(self, token: bytes) -> Grant:
        await self._read("token")
        found = self.grants.get(token)
        await self._answered("token")
        if found is None:
            raise TokenInvalid
        return found

    async def registry(self, user_id: UUID) -> Registry:
        await self._read("registry")
        found = self.providers
        await self._answered("registry")
        return found

    async def resolve(
        self,
        user_id: UUID,
        token_id: str,
        provider: Any,
        model: str,
        stand_in: StandIn | None = None,
        *,
        is_past_own: bool = False,
    ) -> tuple[Credential, ...]:
        await self._read("key")
        found = self.keys.get(provider.name)
        await self._answered("key")
        if found is None:
            raise KeyMissing
        return (found, *self.further.get(provider.name, ()))


class App:
    """The ASGI app behind the gateway: keeps what it saw, answers by path."""

    def __init__(self, services: SimpleNamespace, plane: Callable[[], Plane]) -> None:
        self.services = services
        self.plane = plane
        self.seen: list[dict[str, Any]] = []
        self.disconnects = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        self.seen.append(scope)
        path = scope["path"]
        body = b""
        if path != "/early":
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.disconnects += 1
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        if path == "/slow":
            await asyncio.sleep(0.5)
        if path == "/crash":
            msg = "kbtest: the app crashes"
            raise RuntimeError(msg)
        answer = json.dumps({"path": path, "body": len(body), "client": scope["client"][0], "scheme": scope["scheme"]}).encode()
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
            await send({"type": "http.response.body", "body": answer, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 401 if path == "/early" else 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                scope["state"]["services"] = self.services
                scope["state"][PLANE] = self.plane()
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return


@dataclass
class House:
    """A running server and everything around it."""

    vault: Vault
    db: Database
    feed: Feed
    journal_dir: Path
    provider: Provider
    credentials: Credentials
    services: SimpleNamespace
    token: str
    grant: Grant
    app: App = None  # type: ignore[assignment]
    server: uvicorn.Server = None  # type: ignore[assignment]
    plane: Plane = None  # type: ignore[assignment]
    port: int = 0
    tls: ssl.SSLContext | None = None
    connections: list[Connection] = field(default_factory=list)

    async def connect(self) -> Connection:
        connection = await connect(self.port, self.tls)
        self.connections.append(connection)
        return connection

    def request(self, body: bytes = PROMPT, *headers: str, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
        """A gateway request with the token."""
        lines = [f"{method} {path} HTTP/1.1", "Host: gw", f"Authorization: Bearer {self.token}", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

    async def ask(self, data: bytes, method: bytes = b"POST") -> Answer:
        """One request on a connection of its own."""
        connection = await self.connect()
        await connection.send(data)
        answer = await connection.answer(method)
        await connection.close()
        return answer

    async def note(self, subject: str, subject_id: str, user_id: UUID | None = None) -> None:
        """Commit a change, and wait until the feed has told of it."""
        async with self.db.write(Actor.system()) as tx:
            await changes.note(self.db, tx, subject, subject_id, user_id)
        position = self.feed.position
        await until(lambda: self.feed.position != position)

    def lines(self) -> list[dict[str, Any]]:
        """The journal's uses and outcomes, in order."""
        self.services.journal.flush()
        found = [
            json.loads(line)["line"]
            for path in sorted(self.journal_dir.rglob("*.jsonl"))
            for line in path.read_bytes().splitlines()
        ]
        return [line for line in found if line["kind"] in ("use", "outcome")]

    def sent(self) -> list[dict[str, Any]]:
        """The lines of uses that left: on a busy machine some may stay, because trust was lost, and be made anew."""
        lines = self.lines()
        stayed = {line["request_id"] for line in lines if line["kind"] == "outcome" and line["outcome"] == "refused"}
        return [line for line in lines if line["request_id"] not in stayed]

    async def outcome(self) -> dict[str, Any]:
        """The only use's outcome, as soon as it is there; uses that did not leave, because trust was lost, may stand before it."""
        await until(lambda: len(self.lines()) >= 2 and self.lines()[-1]["kind"] == "outcome")
        *stayed, use, outcome = self.lines()
        assert (use["kind"], outcome["kind"]) == ("use", "outcome")
        assert all(line["outcome"] == "refused" for line in stayed if line["kind"] == "outcome")
        assert use["request_id"] == outcome["request_id"]
        return outcome


@dataclass
class TwoProcesses:
    """A deployment of two processes before one provider, with real vaults; ``root`` is its administrator."""

    here: House
    there: House
    vault: World
    root: Caller

    async def ask(self, house: House) -> tuple[int, str]:
        """One call: its status, and the key that the provider got or the error's code."""
        return self.told(house, await house.ask(house.request()))

    @staticmethod
    def told(house: House, answer: Answer) -> tuple[int, str]:
        """What an answer says; see ``ask``."""
        if answer.status == 200:
            return 200, str(house.provider.received[-1]["authorization"]).removeprefix("Bearer ")
        return answer.status, json.loads(answer.body)["error"]["code"]

    async def asks_until(self, house: House, expected: tuple[int, str]) -> float:
        """Ask again and again until the answer is ``expected``; the age, in seconds, at which the last other one was asked for."""
        began = asked = time.monotonic()
        last = 0.0
        while (found := await self.ask(house)) != expected:
            last = asked - began
            assert last < 5, found
            await asyncio.sleep(0.01)
            asked = time.monotonic()
        return last


@asynccontextmanager
async def two_processes(database_urls: tuple[str, str], open_house: Opener) -> AsyncIterator[TwoProcesses]:
    """Open a house for each of two processes on one database; ``token`` of both is to be set."""
    root_key = os.urandom(32)
    first, second = await Database.open(*database_urls), await Database.open(*database_urls)
    vault, other = await world_on(first, root_key), await world_on(second, root_key)
    async with (
        open_house(world=vault.allowing("127.0.0.1"), interval=0.25) as here,
        open_house(world=other, interval=0.25) as there,
    ):
        root = await vault.person("root", Role.ADMIN)
        there.provider.script = here.provider.script
        await vault.allowing("127.0.0.1").providers.update(root, "openai", {"base_url": f"http://127.0.0.1:{here.provider.port}"})
        there.provider = here.provider
        yield TwoProcesses(here, there, vault, root)
    await first.close()
    await second.close()


def credential(provider: Any, key: str = KEY, **changed: Any) -> Credential:
    """A user's own key for a provider."""
    made = Credential(
        secret_id=uuid4(),
        secret_version=1,
        owner=Owner(OwnerKind.USER, USER),
        provider=provider.name,
        source=KeySource.USER,
        value=SecretBytes(key.encode()),
        egress=egress_set(places.at(provider, key, {known.name: known.example for known in provider.parameters})),
        allowed_models=None,
        expires_at=None,
    )
    return replace(made, **changed)


Opener = Callable[..., Any]


@pytest.fixture
def open_house(sqlite_template: Path, tmp_path: Path) -> Opener:
    """Open a house: ``async with open_house(limits=…, tls=True, proxies=("127.0.0.1",), …) as house``.

    With a ``world``, tokens, providers and keys are those of a real vault on its database; without, they stand in
    ``house.vault``, on SQLite: what is tested so does not depend on the kind of database.
    """

    @asynccontextmanager
    async def opened(
        *,
        limits: Limits | None = None,
        tls: bool = False,
        proxies: tuple[str, ...] = (),
        body: int = 1024 * 1024,
        buffered: int = 8 * 1024 * 1024,
        durability: Durability = "journal",
        interval: float = 0.05,
        world: World | None = None,
        **config: Any,
    ) -> AsyncIterator[House]:
        home = tmp_path / uuid4().hex
        home.mkdir()
        prices.load()  # as a server does before it serves
        async with AsyncExitStack() as stack:
            if world is not None:
                db = world.db
            else:
                shutil.copyfile(sqlite_template, home / "keybearer.db")
                db = await Database.open(f"sqlite+aiosqlite:///{home / 'keybearer.db'}")
                stack.push_async_callback(db.close)
            provider = Provider(fixed(b"200 OK", CHAT, b"content-type: application/json"))
            await provider.start()
            stack.push_async_callback(provider.stop)
            vault = Vault()
            feed = Feed(db, interval=interval, **config.pop("feed", {}))
            journal = await Journal.open(db, home / "journal", durability)
            stack.push_async_callback(journal.close)
            timeouts = {"connect_timeout": 2, "read_timeout": 5, **config.pop("upstream", {})}
            upstream = Upstream(EgressPolicy(("127.0.0.1",)), **timeouts)
            stack.push_async_callback(upstream.close)
            rooms: Any = (vault, vault, vault) if world is None else (world.tokens, world.providers, world.resolver)
            credentials = Credentials(db, feed, *rooms)
            stack.callback(credentials.close)
            keyring: Any = None  # there are no limits, hence none to check
            records = Records(db, journal, Shipper(db, home / "journal", journal))
            counters = Counters(db, feed, keyring, OwnCounts(records, KeyHolder(db).claim))
            await feed.start()
            stack.push_async_callback(feed.stop)
            await counters.catch_up()
            services = SimpleNamespace(
                options=SimpleNamespace(trusted_proxies=proxies, max_body_bytes=body, max_buffered_bytes=buffered),
                db=db,
                feed=feed,
                journal=journal,
                refusals=Refusals(db),
                upstream=upstream,
                credentials=credentials,
                counters=counters,
                # Without a vault there are no people who could have made an object: none is found.
                objects=Objects(db, world.keyring if world is not None else Keyring.__new__(Keyring)),
            )
            predefined = Catalog.load().providers
            base = f"http://127.0.0.1:{provider.port}"
            vault.providers = Registry([with_base_url(predefined[name], base) for name in ("openai", "anthropic", "gemini")])
            for found in vault.providers.providers.values():
                vault.keys[found.name] = credential(found)
            token = generate()
            grant = Grant(token[3:15], USER, Role.MEMBER, frozenset({Scope.GATEWAY_USE}), None, None, (), None)
            vault.grants[token.encode()] = grant
            house = House(vault, db, feed, home / "journal", provider, credentials, services, token, grant)
            house.app = App(services, lambda: Plane(services, limits))  # type: ignore[arg-type]
            await stack.enter_async_context(serve(house, home, tls=tls, **config))
            try:
                yield house
            finally:
                for connection in house.connections:
                    await connection.close()

    return opened


@asynccontextmanager
async def serve(house: House, home: Path, *, tls: bool, **config: Any) -> AsyncIterator[None]:
    """Run uvicorn on a free port, as ``keybearer serve`` configures it."""
    files: dict[str, Any] = {}
    if tls:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(home / "server.pem")
        house.tls = ssl.create_default_context()
        authority.configure_trust(house.tls)
        files = {"ssl_certfile": str(home / "server.pem")}
    settings = uvicorn.Config(
        house.app,
        host="127.0.0.1",
        port=0,
        http=GatewayProtocol,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        log_config=None,
        access_log=False,
        **{"timeout_graceful_shutdown": 3, **files, **config},
    )
    house.server = uvicorn.Server(settings)
    running = asyncio.create_task(house.server._serve())
    await until(lambda: house.server.started)
    house.port = house.server.servers[0].sockets[0].getsockname()[1]
    house.plane = house.server.lifespan.state[PLANE]
    try:
        yield
    finally:
        for connection in house.connections:
            await connection.close()
        if house.server.should_exit or not await _ended(house.server, running):
            house.server.should_exit = True
            await running


async def _ended(server: uvicorn.Server, running: asyncio.Task[None]) -> bool:
    """End a server as uvicorn does, but for its naps of a tenth of a second: over hundreds of tests they are minutes.

    Tells whether it could be: where requests are still served, uvicorn's own way is left, which waits and then cancels.
    Tests of how a server ends set ``should_exit`` themselves.
    """
    for listening in server.servers:
        listening.close()
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()
    with suppress(TimeoutError):
        await until(lambda: not state.connections and not state.tasks, 0.5)
    if state.connections or state.tasks:
        return False
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await server.lifespan.shutdown()
    return True


@pytest.fixture
async def house(open_house: Opener) -> AsyncIterator[House]:
    """A house with the usual settings."""
    async with open_house() as opened:
        yield opened
