"""A deployment with something of everything, and how to tell in another database that all of it is there."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import sqlalchemy as sa
from tests.audit.audit_samples import Person, outcome
from tests.crypto import make_vectors
from tests.support.vault import ANTHROPIC_KEY, OPENAI_KEY, OTHER_OPENAI_KEY, PASSWORD, World, value, world_on

from keybearer.access.tokens import NewToken
from keybearer.audit import verify
from keybearer.audit.journal import Journal
from keybearer.audit.seal import Sealer
from keybearer.audit.sealed import verify_tree
from keybearer.audit.ship import Shipper
from keybearer.catalog import Catalog
from keybearer.crypto.kms import Wrapper, env, passphrase
from keybearer.domain import (
    SYSTEM_OWNER_ID,
    BudgetKind,
    BudgetSubject,
    Caller,
    Grade,
    KeySource,
    Role,
    Scope,
    SecretBytes,
    SecretType,
)
from keybearer.gateway.objects import Objects
from keybearer.gateway.sharing import Asked
from keybearer.store.db import Actor, Database
from keybearer.store.queries import secrets as rows
from keybearer.store.schema import metadata
from keybearer.vault.budgets import Budgets, NewBudget
from keybearer.vault.descriptions import NewModel
from keybearer.vault.external import External
from keybearer.vault.hooks import Hooks
from keybearer.vault.oauth import PARTS
from keybearer.vault.providers import NewProvider
from keybearer.vault.references import Leaves
from keybearer.vault.reminders import Reminders
from keybearer.vault.secrets import NewSecret, Secrets
from keybearer.vault.stores import Environment

ROOT = make_vectors.draw("wrapping key of backups' tests")
COSTS = passphrase.Costs(64, 1, 1)
OAUTH = {
    "client_id": "kbtest-client",
    "client_secret": "kbtest-client-secret-0123456789",
    "refresh_token": "kbtest-refresh-0123456789abcd",
    "token_endpoint": "https://accounts.example.com/token",
    "scopes": "read write",
}
PHRASE = "kbtest correct horse battery staple"


def quiet(_what: str, _done: int, _total: int) -> None:
    return


def wrapper(root: bytes = ROOT) -> Wrapper:
    return env.parse(base64.b64encode(root).decode())


def find(provider: str) -> Wrapper:
    assert provider == "env"
    return wrapper()


def phrase(text: str = PHRASE) -> Wrapper:
    return passphrase.parse(text, COSTS)


@dataclass
class Story:
    """A deployment with something of everything."""

    world: World
    ada: Caller
    bob: Caller
    values: dict[UUID, str]
    token: str
    pointer: UUID
    """A secret that is kept elsewhere."""
    refreshed: UUID
    """An OAuth token with what refreshing it takes."""

    async def check(self, world: World) -> None:
        """All of it is as it was, in another database."""
        pointing = replace(world, secrets=Secrets(world.db, world.keyring, Catalog.load(), external=elsewhere()))
        held = await pointing.secrets.credential(self.ada, self.pointer)
        assert held.value.reveal() == b"kbtest-elsewhere-0123456789"
        async with world.db.read(Actor.user(self.ada.user_id)) as tx:
            content = await world.secrets._keeper.sealer.open(tx, await rows.get(tx, self.refreshed, (self.ada.user_id,)))
        assert content.oauth is not None
        assert {name: part.reveal().decode() for name in PARTS if (part := getattr(content.oauth, name))} == OAUTH
        (limit,), _ = await Budgets(world.db, world.keyring, Catalog.load(), alone).page(self.ada)
        assert (limit.amount, limit.is_tampered) == (5_000_000, False)
        posted: list[str] = []
        await Hooks(world.db, world.keyring, Posted(posted)).tell(self.ada.user_id, "msg_kbtest", "keybearer.test", {})
        assert posted == ["https://hooks.example.com/kbtest whsec_"]
        named = frozenset({("file", "file-kbtest")})
        await Objects(world.db, world.keyring).find(asked_by(self.ada), named)
        for secret_id, text in self.values.items():
            assert (await world.secrets.credential(self.ada, secret_id)).value.reveal().decode() == text
        first = next(iter(self.values))
        assert [each.version for each in (await world.secrets.versions.list(self.ada, first))[0]] == [2, 1]
        rolled = await world.secrets.versions.rollback(self.ada, first)
        assert rolled.version == 3
        assert (await world.secrets.credential(self.ada, first)).value.reveal().decode() == OPENAI_KEY
        registry = await world.providers.registry(self.bob.user_id)
        (lent, *_) = await world.resolver.resolve(self.bob.user_id, None, registry.get("anthropic"), "claude-haiku-4-5")
        assert (lent.source, lent.value.reveal().decode()) == (KeySource.TEAM, ANTHROPIC_KEY)
        mine = await world.providers.registry(self.ada.user_id)
        (own, *_) = await world.resolver.resolve(self.ada.user_id, None, mine.locate("best")[0], "gpt-5")
        assert own.value.reveal() == b"kbtest-model-0123456789"
        assert (await world.tokens.verify(self.token.encode())).user_id == self.ada.user_id
        _, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, self.ada.client)
        assert cookie
        await Sealer(world.db, world.keyring).seal()
        assert (await verify.verify(world.db, Path("/nonexistent"))).ok
        assert not (await verify_tree(world.db, await Sealer(world.db, world.keyring).verifier())).problems


async def furnished(db: Database) -> Story:
    world = await world_on(db, ROOT)
    return await _furnish(world, await world.person("ada", Role.ADMIN), await world.person("bob"))


async def _furnish(world: World, ada: Caller, bob: Caller) -> Story:
    first = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), tags=("ü", "b"), description="x\ny"))
    await world.secrets.versions.rotate(ada, first.id, value(OTHER_OPENAI_KEY))
    oauth = {name: value(text) for name, text in OAUTH.items()} | {"scopes": OAUTH["scopes"].split()}
    token = await world.secrets.create(
        ada, NewSecret("slack", value("kbtest-slack-0123456789"), SecretType.OAUTH_TOKEN, oauth=oauth, save_anyway=True)
    )
    gone = await world.secrets.create(ada, NewSecret("groq", value("kbtest-gone-0123456789"), save_anyway=True))
    await world.secrets.delete(ada, gone.id)
    await world.secrets.create(ada, NewSecret("xai", value("kbtest-system-0123456789"), system=True, save_anyway=True))
    await world.models.create(
        ada,
        NewModel(
            "openai", "gpt-5", base_url="https://llm.example/v1", api_key=value("kbtest-model-0123456789"), aliases=("best",)
        ),
    )
    team = await world.teams.create(ada, "Workshop")
    await world.teams.invite(ada, team.team_id, "bob@example.com")
    if not (await world.teams.get(bob, team.team_id)).accepted_at:  # an administrator adds people at once
        await world.teams.accept(bob, team.team_id)
    lent = await world.secrets.create(ada, NewSecret("anthropic", value(ANTHROPIC_KEY)))
    await world.shares.share(ada, lent.id, team.team_id, Grade.USE)
    _, text = await world.tokens.create(ada, NewToken("app", frozenset({Scope.GATEWAY_USE})))
    await world.sessions.sign_in("bob@example.com", PASSWORD, bob.client)
    pointer = await _furnish_more(world, ada, team.team_id)
    await Sealer(world.db, world.keyring).seal()
    values = {first.id: OTHER_OPENAI_KEY, token.id: "kbtest-slack-0123456789", lent.id: ANTHROPIC_KEY}
    return Story(world, ada, bob, values, text, pointer, token.id)


async def _furnish_more(world: World, ada: Caller, team_id: UUID) -> UUID:
    """What is left of the tables, by who writes them; rows of calls and rotations as such would leave them."""
    now = datetime.now(UTC)
    pointing = Secrets(world.db, world.keyring, Catalog.load(), external=elsewhere())
    pointer = await pointing.create(ada, NewSecret("cohere", system=True, reference="env:KBTEST_ELSEWHERE", save_anyway=True))
    await world.providers.create(ada, NewProvider("acme", "https://llm.example.com/v1", models=("m",), team_id=team_id))
    limit = NewBudget(BudgetSubject.USER, BudgetKind.USD_MONTH, Decimal(5))
    await Budgets(world.db, world.keyring, Catalog.load(), alone).create(ada, limit)
    await Hooks(world.db, world.keyring, None).put(ada, value("https://hooks.example.com/kbtest"), ["expiry"])
    await world.secrets.create(
        ada, NewSecret("mistral", value("kbtest-ends-0123456789"), expires_at=now + timedelta(days=3), save_anyway=True)
    )
    await Reminders(world.db, None, (7,), "https://keys.example.com").find()
    assert await Objects(world.db, world.keyring).record(asked_by(ada), frozenset({("file", "file-kbtest")}))
    with TemporaryDirectory() as journals:
        journal = await Journal.open(world.db, Path(journals), "journal")
        journal.use(Person(ada.user_id, pointer.id, "kbtestkbtest").use("r1"))
        journal.outcome(outcome("r1"))
        await journal.close()
        await Shipper(world.db, Path(journals), None).ship_once()
    rotated = {
        "kind": "root",
        "state": "finished",
        "step": "",
        "provider": "env",
        "done": 1,
        "total": 1,
        "unreadable": 0,
        "problem": "",
    }
    async with world.db.write(Actor.system()) as tx:
        for name, columns in {
            "reservation": {"request_id": "r2", "at": now, "tokens": 5, "micro_usd": 9},
            "key_rotation": rotated | {"id": uuid4(), "created_at": now, "updated_at": now},
        }.items():
            await tx.execute(sa.insert(metadata.tables[name]).values(**columns))
    return pointer.id


def asked_by(ada: Caller) -> Asked:
    return Asked(SYSTEM_OWNER_ID, "https://api.openai.com:443", "openai", ada.user_id, "kbtestkbtest")


def elsewhere() -> External:
    """A server with a variable that system secrets may point to."""
    return External(
        Leaves((), ("KBTEST_ELSEWHERE",), ()), {"env": Environment({"KBTEST_ELSEWHERE": value("kbtest-elsewhere-0123456789")})}
    )


async def alone() -> None:
    """One process keeps the limits."""


class Posted:
    def __init__(self, found: list[str]) -> None:
        self._found = found

    async def post(self, url: str, key: SecretBytes, message_id: str, body: bytes, owner_id: UUID) -> None:
        del message_id, body, owner_id
        self._found.append(f"{url} {key.reveal().decode()[:6]}")
