"""Resolution: whose key serves a call, in which order, and where it stops (MISSION G3).

The model's own key, where it has one; the user's own secrets for the provider, by priority; then those of their teams, team by team
in the user's order, each team's own and what is shared with it alike, by priority; then, where the deployment *and* the user allow
it, the system's. Somebody who has own secrets is never silently served with another's key: if none of them can be used, that is the
answer, unless they opted into fallback for it. After the system's comes, for chats, the system's key for OpenRouter where the deployment
offers it. A team's or the system's secret that cannot be used is as none. All that can be used
of the first scope that has any (one's own, one team, the system) are given, in order, for failover inside it.

A value that a program fetches (MISSION G14) is found in the same order, among what is ``fetchable``. What a person lends to a team is
not: it is lent to be used, and whoever has a value has more than its use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from keybearer.catalog import Provider, Registered
from keybearer.catalog.openrouter import StandIn
from keybearer.crypto.keyring import Keyring
from keybearer.domain import SYSTEM_OWNER_ID, Asked, Credential, Fetched, KeySource, SecretBytes, SecretType
from keybearer.errors import (
    EgressRefused,
    EnvelopeError,
    KeybearerError,
    KeyExpired,
    KeyFailed,
    KeyMissing,
    KeyUnusable,
    NotFound,
)
from keybearer.gateway.egress import egress_set, placed
from keybearer.store.db import Actor, Database
from keybearer.store.queries import secrets as rows
from keybearer.store.queries import users, versions
from keybearer.vault import reach
from keybearer.vault.disclosure import Recipient, why_not_handed_out, why_not_to
from keybearer.vault.external import External, Found, Key, Wanted
from keybearer.vault.keeper import State
from keybearer.vault.reach import Alarms, Membership, Reach
from keybearer.vault.refresh import Refresher, has_expired
from keybearer.vault.sealed import Content, Sealer, Unreadable, console_path, credential_of, egress_of, with_value
from keybearer.vault.standing import named, not_allowed, stopped_by
from keybearer.vault.token_answer import can_refresh

NO_FALLBACK = "none"
OPENROUTER = "openrouter"


class Marks(Protocol):
    """Where a value that does not open is noted, and those that are kept elsewhere are fetched: ``Secrets``."""

    external: External
    refresher: Refresher

    async def mark(self, secret_id: UUID, version: int, state: State, reason: str = "") -> bool: ...


@dataclass(frozen=True, slots=True)
class _Call:
    """What the keys are wanted for."""

    provider: Provider
    model: str
    token_id: str | None
    now: datetime
    stand_in: StandIn | None = None
    """OpenRouter, where it could serve the call."""
    is_past_own: bool = False
    """One's own keys are at their limits."""
    elsewhere: dict[Key, Wanted] = field(default_factory=dict)
    """Of the keys found, what is to be fetched from where it is kept, when the transaction is over."""
    failed: dict[Key, KeybearerError] = field(default_factory=dict)
    """What could not be fetched, and so serves this call as little as a key that is switched off."""
    expired: dict[Key, UUID] = field(default_factory=dict)
    """Of the keys found, the OAuth tokens that must be refreshed first, with their owners."""


@dataclass(slots=True)
class _Search:
    """What was found so far: keys of the scope that serves, and why others do not; the first reason is what is told."""

    usable: list[Credential] = field(default_factory=list)
    problems: list[KeybearerError] = field(default_factory=list)
    hidden: list[KeybearerError] = field(default_factory=list)
    """Problems that are not the caller's to know."""
    is_stopped: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether the next scope is to be asked."""
        return not self.usable and not self.is_stopped


@dataclass(slots=True)
class _Hunt:
    """The search for one value to be fetched."""

    to: Recipient
    now: datetime
    failed: dict[Key, KeybearerError] = field(default_factory=dict)
    """Tokens that could not be refreshed: as for a call."""
    found: Fetched | None = None
    expired: dict[Key, UUID] = field(default_factory=dict)
    elsewhere: dict[Key, Wanted] = field(default_factory=dict)
    """Where the value of what was found is kept instead."""
    problems: list[KeybearerError] = field(default_factory=list)
    hidden: list[KeybearerError] = field(default_factory=list)

    def hide(self) -> None:
        """What is wrong with the system's secrets is not the caller's to know."""
        self.hidden, self.problems = [*self.hidden, *self.problems], []


class Resolver:
    """Finds and opens the keys for a call. ``fallback``: ``none``, ``system`` or ``openrouter`` (which includes ``system``)."""

    def __init__(self, db: Database, keyring: Keyring, secrets: Marks, fallback: str = NO_FALLBACK) -> None:
        self._db = db
        self._secrets = secrets
        self._keyring = keyring
        self._sealer = Sealer(keyring)
        self._alarms = Alarms(db)
        self._falls_back = fallback != NO_FALLBACK
        self._offers_openrouter = fallback == OPENROUTER

    async def resolve(
        self,
        user_id: UUID,
        token_id: str | None,
        provider: Provider,
        model: str,
        stand_in: StandIn | None = None,
        *,
        is_past_own: bool = False,
    ) -> tuple[Credential, ...]:
        """The credentials that may serve this call, best first; at least one.

        ``provider`` is the one of the user's registry, ``model`` the bare name, empty for calls that have none. ``stand_in``: OpenRouter,
        if it could serve the call; credentials of the source ``openrouter`` are for that. ``is_past_own``: the user's own keys are
        exhausted, so that none of them serves, and others' only where all of them say so. Raises
        ``KeyMissing``; where the user or a team has keys but none can be used, what is wrong with the first: ``KeyInactive``,
        ``KeyExpired``, ``KeyFailed``, ``KeyUnreadable``, ``ModelNotAllowed``, ``EgressRefused``, ``KeyUnusable``,
        ``ReferenceUnreachable``. Every hint has the console's path to what can be done.
        """
        call = _Call(provider, model, token_id, datetime.now(UTC), stand_in, is_past_own)
        while True:  # each turn but the last finds one more reference that fails
            found = await self._found(user_id, call)
            if await self._refreshed(found, call):
                continue
            usable = await self._fetched(found, call)
            if usable:
                return usable

    async def _refreshed(self, found: Iterable[Credential], call: _Call | _Hunt) -> bool:
        """Have expired tokens refreshed; whether there were any, so that the vault is to be asked again. No transaction is open."""
        keys = [key for key in map(_key_of, found) if key in call.expired]
        for key in keys:
            # Tried once: what has expired again by the next turn, or could not be refreshed, serves nobody.
            call.failed[key] = KeyExpired("The token has expired.", hint=f"Look at it at {console_path(key[0])}.")
            try:
                await self._secrets.refresher.at_use(key[0], call.expired[key], key[1])
            except KeybearerError as error:
                call.failed[key] = error
        return bool(keys)

    async def _fetched(self, found: tuple[Credential, ...], call: _Call) -> tuple[Credential, ...]:
        """The credentials with what is kept elsewhere, without those for which that failed. No transaction is open."""
        if not call.elsewhere:
            return found
        external = self._secrets.external
        keys = [key for key in map(_key_of, found) if key in call.elsewhere]
        outcomes = await asyncio.gather(*(external.value(key, call.elsewhere[key]) for key in keys), return_exceptions=True)
        fetched: dict[Key, Found] = {}
        for key, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, KeybearerError):
                call.failed[key] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                fetched[key] = outcome
        return tuple(
            with_value(credential, fetched[key].value, fetched[key].until) if key in fetched else credential
            for credential in found
            if (key := _key_of(credential)) not in call.failed
        )

    async def _found(self, user_id: UUID, call: _Call) -> tuple[Credential, ...]:
        """What the vault has for the call; values that are kept elsewhere are noted in it."""
        provider = call.provider
        if provider.registered is not None and (provider.registered.secret_id or provider.registered.needs_no_key):
            return (await self._of_model(user_id, call, provider.registered),)
        async with self._db.read(Actor.user(user_id, system_keys=self._falls_back)) as tx:
            search = _Search()
            await self._ask_own(tx, search, user_id, call)
            mine = await reach.load(tx, self._keyring, user_id) if search.goes_on else Reach(user_id)
            for team in mine.teams:
                if search.goes_on and _is_for_team(provider, team.team_id):
                    await self._ask_team(tx, search, mine, team, call)
            if search.goes_on and await self._may_fall_back(tx, user_id, provider):
                await self._ask_system(tx, search, call)
        await self._alarms.raise_for(mine)
        await self._mark((*search.problems, *search.hidden))
        if search.usable:
            return tuple(search.usable)
        raise search.problems[0] if search.problems else _missing(provider)

    async def fetch(self, to: Recipient, asked: Asked) -> Fetched:
        """The secret asked for, with its value, for the program of this token.

        Where ``asked`` names a provider it names a type, too. Raises ``NotFound`` (no such id among what is the caller's),
        ``KeyMissing``; what is wrong with what was found: ``NotFetchable``, ``Forbidden`` (lent), ``KeyInactive``, ``KeyExpired``,
        ``KeyFailed``, ``KeyUnreadable``, ``KeyUnusable`` (not with this token), ``ProviderNotAllowed``, ``ModelNotAllowed`` (token or
        secret for certain models only); for what is kept elsewhere what ``External.value`` does.
        """
        refused = why_not_to(to, asked.provider)
        if refused is not None:
            raise refused
        hunt = await self._hunted(_Hunt(to, datetime.now(UTC)), asked)
        while hunt.found is not None and await self._refreshed((hunt.found.credential,), hunt):
            hunt = await self._hunted(_Hunt(to, datetime.now(UTC), hunt.failed), asked)
        if hunt.found is not None:
            for key, wanted in hunt.elsewhere.items():
                outside = await self._secrets.external.value(key, wanted)
                return replace(hunt.found, credential=with_value(hunt.found.credential, outside.value, outside.until))
            return hunt.found
        if hunt.problems:
            raise hunt.problems[0]
        if asked.id is not None:
            raise NotFound("You have no secret with this id.")
        raise KeyMissing("You have no such secret.", hint="Add one in the Secrets Vault: /secrets/new")

    async def _hunted(self, hunt: _Hunt, asked: Asked) -> _Hunt:
        """One look for the value that is asked for."""
        to = hunt.to
        async with self._db.read(Actor.user(to.user_id, system_keys=self._falls_back)) as tx:
            mine = await reach.load(tx, self._keyring, to.user_id)
            if asked.id is not None:
                await self._fetch_one(tx, hunt, mine, asked.id)
            else:
                await self._fetch_first(tx, hunt, mine, asked)
        await self._alarms.raise_for(mine)
        await self._mark((*hunt.problems, *hunt.hidden))
        return hunt

    async def _fetch_one(self, tx: AsyncConnection, hunt: _Hunt, mine: Reach, secret_id: UUID) -> None:
        row = await rows.get(tx, secret_id, mine.seen_owners(secret_id))
        if row is not None:
            whose = "" if row.owner_id == mine.user_id else " of your team"
            await self._try(tx, hunt, (row,), whose)
        elif await self._allows_system(tx, mine.user_id):
            row = await rows.get(tx, secret_id, (SYSTEM_OWNER_ID,))
            await self._try(tx, hunt, () if row is None else (row,))
            hunt.hide()

    async def _fetch_first(self, tx: AsyncConnection, hunt: _Hunt, mine: Reach, asked: Asked) -> None:
        """As a call's keys are found: one's own that cannot serve stop the search, unless others may serve instead of them."""
        own = await _asked_of(tx, mine.user_id, asked)
        if await self._try(tx, hunt, own) or any(not row.fallback_allowed for row in own):
            return
        for team in mine.teams:
            if await self._try(tx, hunt, await _asked_of(tx, team.team_id, asked), f" of your team {team.name}"):
                return
        if await self._allows_system(tx, mine.user_id):
            told, hunt.problems = hunt.problems, []
            await self._try(tx, hunt, await _asked_of(tx, SYSTEM_OWNER_ID, asked))
            hunt.hide()
            hunt.problems = told

    async def _try(self, tx: AsyncConnection, hunt: _Hunt, found: Iterable[Any], whose: str = "") -> bool:
        """Open the first that can be fetched; whether there was one."""
        for row in found:
            problem = why_not_handed_out(hunt.to, row, hunt.now, whose) if self._sealer.is_intact(row) else Unreadable(row)
            problem = problem or hunt.failed.get((row.id, row.version))
            if problem is None:
                try:
                    value = _value(row, await self._sealer.open(tx, row), hunt)
                    hunt.found = Fetched(credential_of(row, value, _source_of(row)), SecretType(row.secret_type), row.name)
                except Unreadable as error:
                    problem = error
                else:
                    return True
            hunt.problems.append(problem)
        return False

    async def _mark(self, problems: Iterable[KeybearerError]) -> None:
        for problem in problems:
            if isinstance(problem, Unreadable) and problem.is_news:
                await self._secrets.mark(problem.secret_id, problem.version, "unreadable")

    async def _ask_own(self, tx: AsyncConnection, search: _Search, user_id: UUID, call: _Call) -> None:
        """The user's own: any that cannot serve stops the call there, unless they said that others may instead."""
        found = await rows.for_provider(tx, user_id, call.provider.name, call.provider.secret_type.value)
        if call.is_past_own:
            search.problems = [KeyUnusable(f"{named(row)} is at its limit.") for row in found]
        else:
            search.usable, search.problems = await self._usable(tx, found, call, KeySource.USER)
        if search.usable:
            return
        stopping = [problem for row, problem in zip(found, search.problems, strict=True) if not row.fallback_allowed]
        if stopping:
            search.problems = [*stopping, *(problem for problem in search.problems if problem not in stopping)]
            search.is_stopped = True

    async def _ask_team(self, tx: AsyncConnection, search: _Search, mine: Reach, team: Membership, call: _Call) -> None:
        """One team's, and what is shared with it by others."""
        shared = [share.secret_id for share in mine.shares if share.team_id == team.team_id and share.shared_by != mine.user_id]
        found = await rows.for_provider(tx, team.team_id, call.provider.name, call.provider.secret_type.value, shared)
        search.usable, problems = await self._usable(tx, found, call, KeySource.TEAM, f" of your team {team.name}")
        search.problems += problems

    async def _ask_system(self, tx: AsyncConnection, search: _Search, call: _Call) -> None:
        """The system's own, then its key for OpenRouter."""
        for source in (KeySource.SYSTEM, KeySource.OPENROUTER):
            if source is KeySource.OPENROUTER:
                if search.usable or call.stand_in is None or not self._offers_openrouter:
                    return
                call = replace(call, provider=call.stand_in.provider, model=call.stand_in.model)
            found = await rows.for_provider(tx, SYSTEM_OWNER_ID, call.provider.name, call.provider.secret_type.value)
            search.usable, hidden = await self._usable(tx, found, call, source)
            search.hidden += hidden

    async def _of_model(self, user_id: UUID, call: _Call, model: Registered) -> Credential:
        """The model's own key, which comes first and is never silently replaced by another; or that it needs none."""
        if model.secret_id is None:
            egress = egress_set(call.provider)
            return Credential(
                model.id, 0, model.owner, call.provider.name, KeySource.MODEL, SecretBytes(b"none"), egress, None, None
            )
        async with self._db.read(Actor.user(user_id, system_keys=model.owner.id == SYSTEM_OWNER_ID)) as tx:
            row = await rows.get(tx, model.secret_id, (model.owner.id,))
            found = [row] if row is not None and row.model_id == model.id else []
            usable, problems = await self._usable(tx, found, call, KeySource.MODEL)
        await self._mark(problems)
        if usable:
            return usable[0]
        if model.owner.id != user_id:
            raise KeyUnusable("This model's key cannot be used at the moment.", hint="Ask whoever shares the model with you.")
        if problems:
            raise problems[0]
        raise KeyMissing(
            "This model's own key was deleted.", hint=f"Enter another at /models/{model.id}, or take it off the model."
        )

    async def _may_fall_back(self, tx: AsyncConnection, user_id: UUID, provider: Provider) -> bool:
        """The deployment and the user must both allow it; a provider of the user's own never gets a key of the system's."""
        return provider.owner_id in {None, SYSTEM_OWNER_ID} and await self._allows_system(tx, user_id)

    async def _allows_system(self, tx: AsyncConnection, user_id: UUID) -> bool:
        if not self._falls_back:
            return False
        user = await users.get(tx, user_id)
        return user is not None and bool(user.fallback_allowed)

    async def _usable(
        self, tx: AsyncConnection, found: Iterable[Any], call: _Call, source: KeySource, whose: str = ""
    ) -> tuple[list[Credential], list[KeybearerError]]:
        """The secrets that can serve the call, opened, and what is wrong with the others; both in their order."""
        usable: list[Credential] = []
        problems: list[KeybearerError] = []
        for row in found:
            problem = _problem(row, call, whose) if self._sealer.is_intact(row) else Unreadable(row)
            problem = problem or call.failed.get((row.id, row.version))
            try:
                if problem is None:
                    usable.append(credential_of(row, _value(row, await self._sealer.open(tx, row), call), source))
                else:
                    problems.append(problem)
                if problem is None or isinstance(problem, KeyFailed) or (row.id, row.version) in call.failed:
                    usable.extend(await self._fallback(tx, row, call, source))
            except Unreadable as error:
                problems.append(error)
        return usable, problems

    async def _fallback(self, tx: AsyncConnection, row: Any, call: _Call, source: KeySource) -> list[Credential]:
        """After a rotation, the version before: for as long as the overlap lasts, behind the one in force."""
        if (
            row.fallback_until is None
            or row.fallback_until <= call.now
            or not_allowed(row, call.token_id, call.model) is not None
        ):
            return []
        earlier = await versions.get(tx, row.owner_id, row.id, row.fallback_version)
        if earlier is None or placed(call.provider, egress_of(earlier)) is None or (earlier.id, earlier.version) in call.failed:
            return []
        try:
            value = _value(earlier, await self._sealer.open_version(tx, earlier), call)
        except Unreadable:
            return []
        return [credential_of(earlier, value, source, is_fallback=True)]


def _value(row: Any, content: Content, call: _Call | _Hunt) -> SecretBytes:
    """The value, or nothing yet where it is kept elsewhere."""
    if content.reference is not None:
        call.elsewhere[row.id, row.version] = Wanted(content.reference, row.owner_id, SecretType(row.secret_type))
    if has_expired(row, call.now) and can_refresh(content.oauth):
        call.expired[row.id, row.version] = row.owner_id
    return content.value


def _key_of(credential: Credential) -> Key:
    return credential.secret_id, credential.secret_version


def _is_for_team(provider: Provider, team_id: UUID) -> bool:
    """A key of a team's goes to providers of the catalogue, the system's and its own, and to nobody else's of the same name."""
    return provider.owner_id in {None, SYSTEM_OWNER_ID, team_id}


def _problem(row: Any, call: _Call, whose: str) -> KeybearerError | None:
    """Why a secret cannot serve the call, as far as its row tells; ``whose``: it is another's than the user's."""
    problem = stopped_by(row, call.now, whose) or not_allowed(row, call.token_id, call.model, whose)
    if problem is not None:
        return problem
    try:
        bound = egress_of(row)
    except EnvelopeError:
        return Unreadable(row)
    if placed(call.provider, bound) is None:
        hint = f"If that is right, confirm the new address at {console_path(row.id)}."
        if call.provider.registered is not None and call.provider.registered.base_url:
            hint = f"Give the model a key of its own at /models/{call.provider.registered.id}."
        return EgressRefused(
            f"{named(row, whose)} is not bound to {call.provider.base_url}, where the provider is now.",
            hint=hint,
        )
    return None


async def _asked_of(tx: AsyncConnection, owner_id: UUID, asked: Asked) -> list[Any]:
    """An owner's secrets that are asked for, by priority."""
    secret_type = "" if asked.secret_type is None else asked.secret_type.value
    found = await rows.for_provider(tx, owner_id, asked.provider, secret_type)
    return [row for row in found if asked.name is None or row.name == asked.name]


def _source_of(row: Any) -> KeySource:
    return KeySource.MODEL if row.model_id is not None else KeySource(row.owner_kind)


def _missing(provider: Provider) -> KeyMissing:
    return KeyMissing(
        f"You have no key for {provider.display_name or provider.name}.",
        hint=f"Add one in the Secrets Vault: /secrets/new?provider={provider.name}",
    )
