"""The caches: what they hold, for how long, and that no read from before a change outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from tests.plane.conftest import KEY, USER, Vault, credential

from keybearer.access.tokens import generate
from keybearer.catalog import ANTHROPIC, OPENAI, Auth, Catalog, Registry, custom
from keybearer.domain import Grant, Role, Scope, SecretBytes
from keybearer.errors import EgressRefused, KeyMissing, KeyUnreadable, Overloaded, TokenInvalid, Unavailable
from keybearer.gateway import credentials as module
from keybearer.gateway.credentials import Credentials
from keybearer.gateway.ready import Admission, Ready, Wanted, now
from keybearer.store.changes import Change

OTHER = UUID(int=8)


def set_clock(monkeypatch: pytest.MonkeyPatch, at: float) -> None:
    """Stop the caches' clock at that time."""
    monkeypatch.setattr("keybearer.gateway.credentials.now", lambda: at)
    monkeypatch.setattr("keybearer.gateway.ready.now", lambda: at)


class Bench:
    """Caches over a vault whose reads can be held, and a feed that says what it is told to."""

    def __init__(self) -> None:
        self.vault = Vault()
        self.listeners: list[Callable[[Change], None]] = []
        feed: Any = SimpleNamespace(subscribe=self.listeners.append)
        vault: Any = self.vault
        self.credentials = Credentials(vault, feed, vault, vault, vault)
        self.token = generate().encode()
        self.grant = Grant(self.token[3:15].decode(), USER, Role.MEMBER, frozenset({Scope.GATEWAY_USE}), None, None, (), None)
        self.vault.grants[self.token] = self.grant
        self.vault.providers = Registry(Catalog.load().providers.values())
        self.openai = self.vault.providers.get("openai")
        self.vault.keys = {name: credential(found) for name, found in self.vault.providers.providers.items()}
        self.wanted = Wanted(self.openai, OPENAI, "gpt-4o-mini")

    def tell(self, subject: str, subject_id: str = "x", user_id: UUID | None = None) -> None:
        for listener in self.listeners:
            listener(Change(1, subject, subject_id, user_id))

    async def admission(self) -> Admission:
        await self.credentials.fill_admission(self.token)
        found = self.credentials.admission(sha256(self.token).digest())
        assert found is not None
        return found

    async def ready(self) -> Ready:
        admission = await self.admission()
        await self.credentials.fill_ready(admission, self.wanted)
        found = self.credentials.ready(admission, self.wanted)
        assert found is not None
        return found


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.credentials.close()


class Latch:
    """Holds reads, after they have read, until opened."""

    def __init__(self, vault: Vault) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        vault.latch = self

    async def __call__(self, what: str) -> None:
        self.reached.set()
        await self.opened.wait()


def mistyped(token: bytes) -> bytes:
    return token[:-1] + (b"x" if token[-1:] != b"x" else b"y")


# --- what is held ----------------------------------------------------------------------------------------------------------


async def test_a_token_is_known_as_a_whole_only(bench: Bench) -> None:
    await bench.admission()
    for similar in (bench.token[:-1], mistyped(bench.token), bench.token[:15], bench.token + b"x", b""):
        assert bench.credentials.admission(sha256(similar).digest()) is None


async def test_a_mistyped_token_is_refused_without_a_read(bench: Bench) -> None:
    with pytest.raises(TokenInvalid):
        await bench.credentials.fill_admission(mistyped(bench.token))
    assert bench.vault.reads == []


async def test_an_unknown_token_is_not_remembered(bench: Bench) -> None:
    del bench.vault.grants[bench.token]
    for _ in range(2):
        with pytest.raises(TokenInvalid):
            await bench.credentials.fill_admission(bench.token)
    assert bench.vault.reads == ["token", "token"]


async def test_a_ready_key_has_its_header_and_receipt_made_and_shows_neither(bench: Bench) -> None:
    ready = await bench.ready()
    assert ready.head.reveal() == (
        b" HTTP/1.1\r\nhost: api.openai.com\r\naccept-encoding: identity\r\nauthorization: Bearer " + KEY.encode()
    )
    assert ready.receipt.startswith(b"x-keybearer-key-source: user\r\nx-keybearer-secret-id: ")
    admission = bench.credentials.admission(sha256(bench.token).digest())
    for thing in (ready, admission, bench.credentials, ready.credential):
        assert KEY not in repr(thing)
        assert bench.token.decode() not in repr(thing)


async def test_an_own_auth_header_and_wanted_headers(bench: Bench) -> None:
    made = custom("mine", "Mine", "https://mine.example/v1", "header", "X-Token", (), USER)
    bench.vault.keys["mine"] = credential(made)
    admission = await bench.admission()
    wanted = Wanted(made, OPENAI, "m")
    await bench.credentials.fill_ready(admission, wanted)
    ready = bench.credentials.ready(admission, wanted)
    assert ready is not None
    assert ready.head.reveal().endswith(b"\r\nx-token: " + KEY.encode())
    assert ready.auth_name == b"\r\nx-token: "
    assert (ready.target.pool, ready.target.admin_defined) == (USER, False)
    anthropic = bench.vault.providers.get("anthropic")
    await bench.credentials.fill_ready(admission, Wanted(anthropic, ANTHROPIC, "m"))
    ready = bench.credentials.ready(admission, Wanted(anthropic, ANTHROPIC, "m"))
    assert ready is not None
    assert (b"\r\nanthropic-version: ", b"2023-06-01") in ready.defaults


async def test_a_provider_without_authentication_gets_no_key(bench: Bench) -> None:
    made = custom("open", "Open", "https://open.example/v1", "none", "", (), USER)
    assert made.apis[OPENAI].auth == Auth("none", "")
    bench.vault.keys["open"] = credential(made)
    admission = await bench.admission()
    await bench.credentials.fill_ready(admission, Wanted(made, OPENAI, "m"))
    ready = bench.credentials.ready(admission, Wanted(made, OPENAI, "m"))
    assert ready is not None
    assert KEY.encode() not in ready.head.reveal()


async def test_a_key_for_another_host_is_never_made_ready(bench: Bench) -> None:
    bench.vault.keys["openai"] = credential(bench.openai, egress=("https://api.openai.com.evil.example:443",))
    with pytest.raises(EgressRefused):
        await bench.ready()


# --- fills -----------------------------------------------------------------------------------------------------------------


async def test_many_ask_and_one_reads(bench: Bench) -> None:
    await asyncio.gather(*(bench.credentials.fill_admission(bench.token) for _ in range(50)))
    admission = await bench.admission()
    await asyncio.gather(*(bench.credentials.fill_registry(USER) for _ in range(50)))
    await asyncio.gather(*(bench.credentials.fill_ready(admission, bench.wanted) for _ in range(50)))
    assert bench.vault.reads == ["token", "token", "registry", "key"]


async def test_a_waiter_that_is_cancelled_takes_nobody_along(bench: Bench) -> None:
    latch = Latch(bench.vault)
    first = asyncio.create_task(bench.credentials.fill_admission(bench.token))
    second = asyncio.create_task(bench.credentials.fill_admission(bench.token))
    await latch.reached.wait()
    first.cancel()
    latch.opened.set()
    await second
    assert bench.credentials.admission(sha256(bench.token).digest()) is not None
    with pytest.raises(asyncio.CancelledError):
        await first


TOUCHING: list[tuple[str, Callable[[Bench], tuple[str, str, UUID | None]]]] = [
    ("token", lambda bench: ("token", bench.grant.token_id, USER)),
    ("user", lambda bench: ("user", str(USER), USER)),
    ("everybody", lambda bench: ("everything", "", None)),
    ("deployment", lambda bench: ("deployment", "", None)),
]


@pytest.mark.parametrize(("name", "change"), TOUCHING)
async def test_a_token_that_changes_while_it_is_read_is_read_again(
    bench: Bench, name: str, change: Callable[[Bench], tuple[str, str, UUID | None]]
) -> None:
    latch = Latch(bench.vault)
    filling = asyncio.create_task(bench.credentials.fill_admission(bench.token))
    await latch.reached.wait()
    bench.vault.grants.clear()  # revoked after it was read, and the feed tells of it before the fill is done
    bench.tell(*change(bench))
    latch.opened.set()
    with pytest.raises(TokenInvalid):
        await filling
    assert bench.credentials.admission(sha256(bench.token).digest()) is None
    assert bench.vault.reads == ["token", "token"]


@pytest.mark.parametrize("subject", ["secret", "provider", "model", "user"])
@pytest.mark.parametrize("user_id", [USER, None])
async def test_a_key_that_changes_while_it_is_read_is_read_again(bench: Bench, subject: str, user_id: UUID | None) -> None:
    admission = await bench.admission()
    latch = Latch(bench.vault)
    filling = asyncio.create_task(bench.credentials.fill_ready(admission, bench.wanted))
    await latch.reached.wait()
    bench.vault.keys.clear()
    bench.tell(subject, "x", user_id)
    latch.opened.set()
    with pytest.raises(KeyMissing):
        await filling
    assert bench.credentials.ready(admission, bench.wanted) is None


async def test_a_key_is_not_kept_for_a_token_that_ended_meanwhile(bench: Bench) -> None:
    admission = await bench.admission()
    latch = Latch(bench.vault)
    filling = asyncio.create_task(bench.credentials.fill_ready(admission, bench.wanted))
    await latch.reached.wait()
    bench.tell("token", bench.grant.token_id, USER)
    latch.opened.set()
    await filling
    assert bench.credentials.admission(sha256(bench.token).digest()) is None
    assert admission.rings == {}


async def test_what_was_missing_and_is_added_meanwhile_is_found(bench: Bench) -> None:
    key = bench.vault.keys.pop("openai")
    admission = await bench.admission()
    latch = Latch(bench.vault)
    filling = asyncio.create_task(bench.credentials.fill_ready(admission, bench.wanted))
    await latch.reached.wait()
    bench.vault.keys["openai"] = key
    bench.tell("secret", "x", USER)
    # the user's change dropped the admission: a new one, as the request that starts again would get
    latch.opened.set()
    await filling
    assert admission.is_dropped
    assert (await bench.ready()).credential is key


async def test_others_changes_disturb_nobody(bench: Bench) -> None:
    ready = await bench.ready()
    for subject in ("secret", "user", "provider"):
        bench.tell(subject, "x", OTHER)
    bench.tell("token", "0" * 12, OTHER)
    assert not ready.is_stale()
    latch = Latch(bench.vault)
    filling = asyncio.create_task(bench.credentials.fill_registry(USER))
    await latch.reached.wait()
    bench.tell("secret", "x", OTHER)
    latch.opened.set()
    await filling
    assert bench.vault.reads.count("registry") == 1


async def test_what_never_comes_to_rest_is_given_up(bench: Bench) -> None:
    async def change(what: str) -> None:
        bench.tell("user", str(USER), USER)

    bench.vault.latch = change
    with pytest.raises(Unavailable):
        await bench.credentials.fill_admission(bench.token)
    assert len(bench.vault.reads) == 5


async def test_too_many_reads_at_once_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FILLS", 3)
    latch = Latch(bench.vault)
    filling = [asyncio.create_task(bench.credentials.fill_admission(generate().encode())) for _ in range(3)]
    await latch.reached.wait()
    with pytest.raises(Overloaded):
        await bench.credentials.fill_admission(bench.token)
    latch.opened.set()
    await asyncio.gather(*filling, return_exceptions=True)
    await bench.admission()


async def test_who_waits_for_many_slow_reads_leaves_room_for_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own token endpoint that never answers, and a thousand calls that wait for it, stopped everybody's cold calls."""
    monkeypatch.setattr(module, "_FILLS", 8)
    admission = await bench.admission()
    latch = Latch(bench.vault)
    wanted = [bench.wanted._replace(model=f"m{number}") for number in range(9)]
    filling = [asyncio.create_task(bench.credentials.fill_ready(admission, one)) for one in wanted]
    await latch.reached.wait()
    others = asyncio.create_task(bench.credentials.fill_registry(OTHER))
    await asyncio.sleep(0)
    latch.opened.set()
    await others
    outcomes = await asyncio.gather(*filling, return_exceptions=True)
    assert [isinstance(outcome, Overloaded) for outcome in outcomes] == [False] * 4 + [True] * 5
    assert bench.credentials.registry(OTHER) is not None


# --- the end of what is held -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "subject_id", "user_id"),
    [
        ("user", "x", USER),
        ("secret", "x", USER),
        ("secret", "x", None),
        ("provider", "x", None),
        ("everything", "", None),
        ("deployment", "", None),
    ],
)
async def test_a_change_drops_what_it_concerns_and_tells_who_holds_it(
    bench: Bench, subject: str, subject_id: str, user_id: UUID | None
) -> None:
    ready = await bench.ready()
    await bench.credentials.fill_registry(USER)
    bench.tell(subject, subject_id, user_id)
    assert ready.is_stale()
    assert bench.credentials.admission(sha256(bench.token).digest()) is None
    assert bench.credentials.registry(USER) is None


async def test_a_revoked_token_drops_its_keys_and_no_others(bench: Bench) -> None:
    ready = await bench.ready()
    mine, bench.token = bench.token, generate().encode()
    bench.vault.grants[bench.token] = replace(bench.grant, token_id=bench.token[3:15].decode())
    other = await bench.ready()
    bench.tell("token", bench.grant.token_id, USER)
    assert ready.is_stale()
    assert not other.is_stale()
    assert bench.credentials.admission(sha256(mine).digest()) is None
    assert bench.credentials.admission(sha256(bench.token).digest()) is not None


async def test_nothing_is_kept_for_more_than_a_minute_even_if_nobody_asks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PURGE_SECONDS", 0.01)
    ready = await bench.ready()
    await bench.credentials.fill_registry(USER)
    began = now()
    set_clock(monkeypatch, began + 50)
    assert not ready.is_stale()
    set_clock(monkeypatch, began + 56)
    assert ready.is_stale()
    assert bench.credentials.admission(sha256(bench.token).digest()) is None
    assert bench.credentials.registry(USER) is None
    bench.credentials._purge()
    held = bench.credentials
    assert (held._admissions, held._by_token, held._by_user, held._registries) == ({}, {}, {}, {})


@pytest.mark.parametrize("what", ["token", "key"])
async def test_nothing_is_kept_past_its_expiry(bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=10)
    if what == "token":
        bench.vault.grants[bench.token] = replace(bench.grant, expires_at=soon)
    else:
        bench.vault.keys["openai"] = credential(bench.openai, expires_at=soon)
    ready = await bench.ready()
    admission = bench.credentials.admission(sha256(bench.token).digest())
    assert admission is not None
    began = now()
    set_clock(monkeypatch, began + 10.1)
    if what == "token":
        assert bench.credentials.admission(sha256(bench.token).digest()) is None
        assert ready.is_stale()  # who holds the key of a token that ended does not send it
    else:
        assert bench.credentials.ready(admission, bench.wanted) is None


async def test_the_number_of_entries_is_bounded_and_what_is_evicted_counts_as_dropped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ENTRIES", 3)
    monkeypatch.setattr(module, "_READY_PER_TOKEN", 2)
    ready = await bench.ready()
    for _ in range(5):
        other = generate().encode()
        bench.vault.grants[other] = replace(
            bench.grant, token_id=other[3:15].decode(), user_id=UUID(int=int.from_bytes(other[:8]))
        )
        await bench.credentials.fill_admission(other)
        await bench.credentials.fill_registry(UUID(int=int.from_bytes(other[:9])))
    held = bench.credentials
    assert (len(held._admissions), len(held._by_token), len(held._registries)) == (3, 3, 3)
    assert ready.is_stale()
    first = await bench.ready()
    admission = held.admission(sha256(bench.token).digest())
    assert admission is not None
    for model in ("a", "b"):
        await held.fill_ready(admission, bench.wanted._replace(model=model))
    assert len(admission.rings) <= 2
    assert first.is_stale()


async def test_a_key_that_opens_to_nonsense_is_unreadable(bench: Bench) -> None:
    for value in (b"", b"a\nb", b"a\r\nx: y", "ключ".encode(), b" a", b"a\0"):
        bench.vault.keys["openai"] = replace(credential(bench.openai), value=SecretBytes(value))
        bench.tell("secret", "x", USER)
        with pytest.raises(KeyUnreadable) as caught:
            await bench.ready()
        assert "key" in caught.value.message


async def test_a_key_goes_where_its_own_egress_set_says() -> None:
    """To the account's own Azure resource, to the host that the key's prefix chose; and not at all where it says something else."""
    bench = Bench()
    azure, voyage = (bench.vault.providers.get(name) for name in ("azure", "voyage"))
    bench.wanted = Wanted(azure, OPENAI, "my-deployment")
    ready = await bench.ready()
    assert ready.target.origin.text == "https://my-resource.openai.azure.com:443"
    assert ready.target.admin_defined
    assert b"\r\nhost: my-resource.openai.azure.com\r\n" in ready.head.reveal()
    assert b"\r\napi-key: " + KEY.encode() in ready.head.reveal()
    bench.vault.keys["voyage"] = credential(voyage, "al-kbtest-0123456789")
    bench.wanted = Wanted(voyage, OPENAI, "voyage-4")
    assert (await bench.ready()).target.origin.text == "https://ai.mongodb.com:443"
    bench.vault.keys["azure"] = replace(bench.vault.keys["azure"], egress=("https://my-resource.openai.azure.example:443",))
    bench.wanted = Wanted(azure, OPENAI, "another")
    with pytest.raises(EgressRefused, match="Azure OpenAI"):
        await bench.ready()
