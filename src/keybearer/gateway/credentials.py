"""What the hot path finds without a database: token → grant, user → registry, (grant, provider, model) → a key ready to send.

Rules of these caches (docs/adr/0003-revocation-bound.md):

* An entry lives at most ``SECONDS``, and never past the expiry of its token or secret.
* It is dropped, and marked so for whoever holds it, as soon as the change feed names its token, its user, or something of the
  system's. Bytes are written only while the feed is trusted, so a revocation is heard in time everywhere.
* A fill whose subject changed while it read is read again. One fill a subject at a time; others wait for it.
* Tokens are found by the SHA-256 of the whole token, never by a part of it, and compared in constant time.
* Sizes are bounded; what is evicted is marked as dropped too, because nobody would tell it of changes any more.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Container, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol, TypeVar
from uuid import UUID

from keybearer.access import tokens as access_tokens
from keybearer.access.tokens import Tokens
from keybearer.catalog import Registry
from keybearer.catalog.openrouter import OPENROUTER, StandIn, stand_in
from keybearer.domain import Asked, Credential, Fetched, Grant, KeySource
from keybearer.errors import (
    Frozen,
    KeybearerError,
    KeyMissing,
    ModelNotAllowed,
    Overloaded,
    Unavailable,
)
from keybearer.gateway.fields import Headers
from keybearer.gateway.handout import Handout
from keybearer.gateway.health import KEY_REFUSED, TOO_MANY, Health, Healths, Report, stated_wait
from keybearer.gateway.ready import SECONDS, Admission, Ready, Wanted, ends_at, now, prepare
from keybearer.gateway.ring import Ring
from keybearer.store.changes import Change, Feed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import deployment
from keybearer.vault.drafts import provider_named

if TYPE_CHECKING:
    from keybearer.vault.providers import Providers
    from keybearer.vault.resolve import Resolver

_PURGE_SECONDS = 5.0
_ENTRIES = 10_000
_READY_PER_TOKEN = 256
_HANDOUTS_PER_TOKEN = 64
_FILLS = 1024
_ATTEMPTS = 5
T = TypeVar("T")


class Lists(Protocol):
    """Knows which models OpenRouter has: ``openrouter.Listing``."""

    async def has(self, found: StandIn) -> bool: ...


@dataclass(slots=True, eq=False)
class _Fill:
    """A read that is under way for everybody who waits for it."""

    token_id: str
    user_id: UUID | None
    is_dirty: bool = False
    task: asyncio.Task[None] | None = None

    def concerns(self, change: Change) -> bool:
        """Whether what is being read may have changed."""
        if change.subject == "token":
            return change.subject_id == self.token_id
        return self.user_id is None or change.user_id is None or change.user_id == self.user_id


class Credentials:
    """The caches of one process. All look-ups are synchronous; ``fill_…`` are the cold paths."""

    openrouter: Lists | None = None
    """What OpenRouter can stand in for, where the deployment offers that."""

    def __init__(self, db: Database, feed: Feed, tokens: Tokens, providers: Providers, resolver: Resolver) -> None:
        self._db = db
        self._tokens = tokens
        self._providers = providers
        self._resolver = resolver
        self._admissions: dict[bytes, Admission] = {}
        self._by_token: dict[str, Admission] = {}
        self._by_user: dict[UUID, set[Admission]] = {}
        self._registries: dict[UUID, tuple[float, Registry]] = {}
        self._frozen: bool | None = None
        self._fills: dict[Hashable, _Fill] = {}
        self._purge_timer: asyncio.TimerHandle | None = None
        self.healths = Healths()
        """How the keys of this process fare; it outlives the entries of these caches."""
        self.on_key_refused: Callable[[Credential, int], None] | None = None
        """Told when a provider answered 401, 402 or 403 to a key."""
        feed.subscribe(self._on_change)

    # --- look-ups -------------------------------------------------------------------------------------------------------

    def admission(self, digest: bytes) -> Admission | None:
        """The verified grant of the token whose SHA-256 is ``digest``, if it is known."""
        found = self._admissions.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            return None
        if found.until <= now():
            self._drop(found)
            return None
        return found

    def registry(self, user_id: UUID) -> Registry | None:
        """The providers and models that a user sees, if known."""
        found = self._registries.get(user_id)
        if found is None or found[0] <= now():
            return None
        return found[1]

    def ready(self, admission: Admission, wanted: Wanted, tried: Container[Health] = ()) -> Ready | None:
        """The key that is wanted, if it is ready; of several the one whose turn it is. ``tried``: those that failed this call.

        Raises ``RateLimited`` where all of them rest.
        """
        ring, at = admission.rings.get(wanted), now()
        if ring is None or ring.until <= at:
            return None
        found = ring.pick(at, tried) if tried else ring.next(at)
        if found is None:
            raise ring.problem(at)
        return found

    def try_out(self, ready: Ready) -> None:
        """A call goes out with a key against which there is a mark: if its time is over, this is the call that tries it."""
        ready.health.begin_trial(ready.wanted.model, now())

    def handout(self, admission: Admission, asked: Asked) -> Handout | None:
        """The value that is asked for, if it is at hand."""
        found = admission.handouts.get(asked)
        return None if found is None or found.until <= now() else found

    def other(self, admission: Admission, ready: Ready, tried: Container[Health]) -> bool:
        """Whether there is a key at hand beside ``ready``, in its scope, that this call has not tried."""
        ring = admission.rings.get(ready.wanted)
        return ring is not None and not admission.is_dropped and ring.pick(now(), tried) is not None

    def resting(self, admission: Admission, ready: Ready) -> KeybearerError | None:
        """What to tell a caller if the last of several keys was asked too often."""
        ring = admission.rings.get(ready.wanted)
        return None if ring is None or len(ring.keys) < 2 else ring.problem(now())  # noqa: PLR2004  # several

    def failed(self, ready: Ready, status: int, headers: Headers) -> None:
        """A provider answered a call with an error: what that says of the key."""
        if status in KEY_REFUSED or status == TOO_MANY:
            ready.health.failed(status, ready.wanted.model, now(), stated_wait(headers, datetime.now(UTC)))
        if status in KEY_REFUSED and self.on_key_refused is not None:
            self.on_key_refused(ready.credential, status)

    def health(self, secret_id: UUID, version: int) -> Report:
        """How a key fares, as far as this process knows; for people."""
        return self.healths.report(secret_id, version, now())

    def served(self, ready: Ready) -> None:
        """A provider took a key against which there is a mark."""
        ready.health.served(ready.wanted.model, now())

    @property
    def is_frozen(self) -> bool | None:
        """Whether an administrator stopped all use; ``None``: not known at the moment."""
        return self._frozen

    # --- cold paths -----------------------------------------------------------------------------------------------------

    async def fill_admission(self, token: bytes) -> None:
        """Verify ``token`` against the database. Raises ``TokenInvalid``."""
        token_id = access_tokens.parse(token)
        digest = sha256(token).digest()

        async def read() -> Grant:
            return await self._tokens.verify(token)

        def install(grant: Grant, started: float) -> None:
            networks = tuple(ipaddress.ip_network(item, strict=False) for item in grant.ip_allowlist)
            admission = Admission(digest, grant, ends_at(started, grant.expires_at), networks)
            self._keep(admission)

        await self._fill(("token", digest), _Fill(token_id, None), read, install)

    async def admit(self, session_id: UUID, user_id: UUID, read: Callable[[], Awaitable[Grant]]) -> Admission:
        """The admission of a person who is signed in; ``read`` says, from the database, what they may. Dropped as a token's is."""
        digest = sha256(b"session " + session_id.bytes).digest()  # no token begins so
        found = self.admission(digest)
        if found is not None:
            return found

        def install(grant: Grant, started: float) -> None:
            self._keep(Admission(digest, grant, ends_at(started, grant.expires_at), ()))

        await self._fill(("session", session_id), _Fill("", user_id), read, install)
        found = self.admission(digest)
        if found is None:
            raise Unavailable(retry_after=1.0)
        return found

    async def fill_registry(self, user_id: UUID) -> None:
        """Read a user's providers and models."""

        def install(registry: Registry, started: float) -> None:
            _make_room(self._registries, _ENTRIES)
            self._registries[user_id] = (started + SECONDS, registry)

        await self._fill(("user", user_id), _Fill("", user_id), lambda: self._providers.registry(user_id), install)

    async def fill_ready(self, admission: Admission, wanted: Wanted) -> None:
        """Resolve, open and prepare a key. Raises why there is none: ``KeyUnusable`` and its kinds, ``EgressRefused``."""
        grant = admission.grant

        async def read() -> tuple[tuple[Credential, ...], StandIn | None]:
            return await self._resolved(grant, wanted)

        def install(found: tuple[tuple[Credential, ...], StandIn | None], started: float) -> None:
            if admission.is_dropped:
                return  # the request starts again with the token
            if len(admission.rings) >= _READY_PER_TOKEN:
                _drop_ready(admission)
            ring = Ring(self._prepared(found, wanted, started))
            previous = admission.rings.get(wanted)
            if previous is not None:
                previous.drop()
            admission.rings[wanted] = ring
            ring.until = min(ring.until, admission.until)

        await self._fill((admission.digest, wanted), _Fill(grant.token_id, grant.user_id), read, install)

    async def _resolved(self, grant: Grant, wanted: Wanted) -> tuple[tuple[Credential, ...], StandIn | None]:
        """The keys of the scope that serves; and where the call goes instead, if they are for OpenRouter."""
        who = (grant.user_id, grant.token_id)
        instead = None
        # A token that is limited to providers reaches no other by a detour.
        may_reach = grant.allowed_providers is None or OPENROUTER in grant.allowed_providers
        if self.openrouter is not None and wanted.kind == "chat" and may_reach:
            registry = self.registry(grant.user_id) or await self._providers.registry(grant.user_id)
            instead = stand_in(wanted.provider, wanted.model, registry.get(OPENROUTER))
        past_own = wanted.is_past_own
        found = await self._resolver.resolve(*who, wanted.provider, wanted.model, instead, is_past_own=past_own)
        if instead is None or self.openrouter is None or found[0].source is not KeySource.OPENROUTER:
            return found, None
        if await self.openrouter.has(instead):
            return found, instead
        # Which says what is missing.
        return await self._resolver.resolve(*who, wanted.provider, wanted.model, is_past_own=past_own), None

    def _prepared(self, found: tuple[tuple[Credential, ...], StandIn | None], wanted: Wanted, started: float) -> list[Ready]:
        """Those of the keys that may be used for this model and can be sent. Raises what is wrong with the first if none can."""
        candidates, instead = found
        called = wanted if instead is None else wanted._replace(provider=instead.provider, model=instead.model)
        problem: KeybearerError | None = None
        keys = []
        for credential in _allowed(candidates, called):
            health = self.healths.of(credential.secret_id, credential.secret_version)
            try:
                made = prepare(credential, called, health, started)
            except KeybearerError as error:
                problem = problem or error
            else:
                made.wanted, made.stand_in = wanted, instead
                keys.append(made)
        if problem is not None and not keys:
            raise problem
        return keys

    async def fill_handout(self, admission: Admission, asked: Asked) -> None:
        """Resolve and open a value to be fetched. Raises why there is none, or why this token does not get it."""
        grant = admission.grant

        async def read() -> Fetched:
            wanted = asked
            if asked.id is None and asked.secret_type is None:
                registry = await self._providers.registry(grant.user_id)
                wanted = asked._replace(secret_type=provider_named(registry, asked.provider).secret_type)
            return await self._resolver.fetch(grant, wanted)

        def install(found: Fetched, started: float) -> None:
            if admission.is_dropped:
                return  # the request starts again with the token
            while len(admission.handouts) >= _HANDOUTS_PER_TOKEN:
                admission.handouts.pop(next(iter(admission.handouts))).is_dropped = True
            until = min(ends_at(started, found.credential.expires_at), admission.until)
            admission.handouts[asked] = Handout(found, until)

        await self._fill((admission.digest, asked), _Fill(grant.token_id, grant.user_id), read, install)

    async def check_not_frozen(self) -> None:
        """For what uses a key outside the gateway's paths. Raises ``Frozen``."""
        if self._frozen is None:
            await self.fill_frozen()
        if self._frozen:
            raise Frozen

    async def fill_frozen(self) -> None:
        """Read whether the deployment is frozen."""

        async def read() -> bool:
            async with self._db.read(Actor.system()) as tx:
                return await deployment.is_frozen(tx)

        def install(is_frozen: bool, started: float) -> None:  # noqa: ARG001, FBT001  # the form of all installs
            self._frozen = is_frozen

        await self._fill("deployment", _Fill("", None), read, install)

    # --- fills ----------------------------------------------------------------------------------------------------------

    async def _fill(
        self, key: Hashable, fill: _Fill, read: Callable[[], Awaitable[T]], install: Callable[[T, float], None]
    ) -> None:
        """Read once for everybody who asks for ``key`` meanwhile, and install. Raises what the read raises."""
        running = self._fills.get(key)
        if running is None:
            self._check_room(fill)
            running = self._fills[key] = fill
            fill.task = asyncio.get_running_loop().create_task(_read_steadily(fill, read, install))
            fill.task.add_done_callback(lambda task: self._on_filled(key, task))
        if running.task is not None:
            await asyncio.shield(running.task)  # a waiter that is cancelled takes nobody else along

    def _check_room(self, fill: _Fill) -> None:
        """Of the second half of the room nobody gets more who has a quarter already, waiting for a slow token endpoint of theirs, say."""
        held = len(self._fills)
        if held < _FILLS // 2:
            return
        theirs = 0 if fill.user_id is None else sum(other.user_id == fill.user_id for other in self._fills.values())
        if held >= _FILLS or theirs > _FILLS // 4:
            raise Overloaded(retry_after=1.0)

    def _on_filled(self, key: Hashable, task: asyncio.Task[None]) -> None:
        del self._fills[key]
        if not task.cancelled():
            task.exception()  # every waiter has it; if all are gone, nobody misses it

    # --- keeping and dropping -------------------------------------------------------------------------------------------

    def _keep(self, admission: Admission) -> None:
        previous = self._admissions.get(admission.digest)
        if previous is not None:
            self._drop(previous)
        while len(self._admissions) >= _ENTRIES:
            self._drop(next(iter(self._admissions.values())))
        grant = admission.grant
        self._admissions[admission.digest] = admission
        self._by_token[grant.token_id] = admission
        self._by_user.setdefault(grant.user_id, set()).add(admission)
        if self._purge_timer is None:
            self._purge_timer = asyncio.get_running_loop().call_later(_PURGE_SECONDS, self._purge)

    def _drop(self, admission: Admission) -> None:
        admission.is_dropped = True
        _drop_ready(admission)
        for handout in admission.handouts.values():
            handout.is_dropped = True
        admission.handouts.clear()
        grant = admission.grant
        if self._admissions.get(admission.digest) is admission:
            del self._admissions[admission.digest]
        if self._by_token.get(grant.token_id) is admission:
            del self._by_token[grant.token_id]
        of_user = self._by_user.get(grant.user_id, set())
        of_user.discard(admission)
        if not of_user:
            self._by_user.pop(grant.user_id, None)

    def _purge(self) -> None:
        """Let go of what is past its time even if nobody asks for it: keys stay in memory for a minute at most."""
        self._purge_timer = None
        at = now()
        for admission in tuple(self._admissions.values()):
            if admission.until <= at:
                self._drop(admission)
                continue
            for wanted, ring in tuple(admission.rings.items()):
                if ring.until <= at:
                    ring.drop()
                    del admission.rings[wanted]
            for asked, handout in tuple(admission.handouts.items()):
                if handout.until <= at:
                    del admission.handouts[asked]
        for user_id, (until, _) in tuple(self._registries.items()):
            if until <= at:
                del self._registries[user_id]
        if self._admissions or self._registries:
            self._purge_timer = asyncio.get_running_loop().call_later(_PURGE_SECONDS, self._purge)

    def forget(self) -> None:
        """Drop everything: keys, tokens, registries."""
        for admission in tuple(self._admissions.values()):
            self._drop(admission)
        self._registries.clear()
        self._frozen = None

    def close(self) -> None:
        """Drop everything and stop the purge; for the end of the process."""
        self.forget()
        if self._purge_timer is not None:
            self._purge_timer.cancel()
            self._purge_timer = None

    def _on_change(self, change: Change) -> None:
        """Called by the feed for each change, in order. Coarse on purpose: changes are rare, a forgotten case would be a hole."""
        for fill in self._fills.values():
            if fill.concerns(change):
                fill.is_dirty = True
        if change.subject == "token":
            admission = self._by_token.get(change.subject_id)
            if admission is not None:
                self._drop(admission)
        elif change.user_id is None:  # the system's: a provider, a system key, the deployment itself
            self.forget()
        else:
            for admission in tuple(self._by_user.get(change.user_id, ())):
                self._drop(admission)
            self._registries.pop(change.user_id, None)


async def _read_steadily(fill: _Fill, read: Callable[[], Awaitable[T]], install: Callable[[T, float], None]) -> None:
    """Read until nothing changed meanwhile: what was read before a change must not be kept after it."""
    for _ in range(_ATTEMPTS):
        fill.is_dirty = False
        started = now()
        try:
            value = await read()
        except KeybearerError:
            if fill.is_dirty:
                continue
            raise
        if not fill.is_dirty:
            install(value, started)
            return
    raise Unavailable("What this call needs is being changed too often.", retry_after=1.0)


def _drop_ready(admission: Admission) -> None:
    for ring in admission.rings.values():
        ring.drop()
    admission.rings.clear()


def _make_room(cache: dict[UUID, tuple[float, Registry]], limit: int) -> None:
    while len(cache) >= limit:
        del cache[next(iter(cache))]


def _allowed(candidates: tuple[Credential, ...], wanted: Wanted) -> list[Credential]:
    """The keys that may be used for this model, in their order."""
    if not candidates:
        raise KeyMissing(f"You have no key for {wanted.provider.display_name}.")
    full_name = f"{wanted.provider.name}/{wanted.model}"
    found = [
        each
        for each in candidates
        if each.allowed_models is None or not each.allowed_models.isdisjoint((wanted.model, full_name))
    ]
    if not found:
        raise ModelNotAllowed(f"No key of yours for {wanted.provider.display_name} may be used for this model.")
    return found
