"""Three doors for a value, fetched, revealed, exported, and one decision: a table of what a token may not, asked at each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.vault import BROWSER, OPENAI_KEY, World, value

from keybearer.access import freeze
from keybearer.access.policy import caller_of_grant
from keybearer.access.tokens import NewToken
from keybearer.catalog import Catalog
from keybearer.domain import Asked, Caller, Grant, Scope, Secret, SecretType
from keybearer.errors import Frozen, KeybearerError
from keybearer.vault.secrets import NewSecret
from keybearer.vault.transfer.exports import Exports

REFUSED: dict[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "not fetchable": ({}, {"fetchable": False}, "not_fetchable"),
    "a token for another provider": ({"allowed_providers": frozenset({"anthropic"})}, {}, "provider_not_allowed"),
    "a token for certain models": ({"allowed_models": frozenset({"openai/gpt-5"})}, {}, "model_not_allowed"),
    "a secret for certain models": ({}, {"allowed_models": ("gpt-5",)}, "model_not_allowed"),
    "a secret for other tokens": ({}, {"allowed_tokens": ("0" * 12,)}, "key_unusable"),
    "switched off": ({}, {"is_active": False}, "key_inactive"),
    "expired": ({}, {"expires_in": 0.1}, "key_expired"),
    "failed": ({}, {"state": "failed"}, "key_failed"),
}
"""What is so of the token, what of the secret, and what a program is told."""


async def grant_of(world: World, caller: Caller, **limits: Any) -> Grant:
    _, text = await world.tokens.create(caller, NewToken("kbtest", frozenset({Scope.SECRETS_READ}), **limits))
    return await world.tokens.verify(text.encode())


async def stored(world: World, caller: Caller, *, expires_in: float = 0.0, state: Any = "ok", **fields: Any) -> Secret:
    made = await world.secrets.create(caller, NewSecret("openai", value(OPENAI_KEY), **{"fetchable": True, **fields}))
    if expires_in:
        await world.secrets.update(caller, made.id, {"expires_at": datetime.now(UTC) + timedelta(seconds=expires_in)})
        await asyncio.sleep(expires_in)
    await world.secrets.mark(made.id, made.version, state)
    return made


async def fetched(world: World, grant: Grant, made: Secret) -> str:
    del made
    found = await world.resolver.fetch(grant, Asked(provider="openai", secret_type=SecretType.API_KEY))
    return found.credential.value.reveal().decode()


async def fetched_by_id(world: World, grant: Grant, made: Secret) -> str:
    return (await world.resolver.fetch(grant, Asked(id=made.id))).credential.value.reveal().decode()


async def revealed(world: World, grant: Grant, made: Secret) -> str:
    return (await world.secrets.reveal(caller_of_grant(grant, BROWSER), made.id)).value.reveal().decode()


async def exported(world: World, grant: Grant, made: Secret) -> str:
    """The value; else why the export has left it out."""
    del made
    done = await Exports(world.db, world.keyring, Catalog.load()).run(caller_of_grant(grant, BROWSER), "json")
    entries = json.loads(done.content.reveal())["secrets"]
    return str(entries[0]["value"]) if entries else done.left_out[0].reason


Door = Callable[[World, Grant, Secret], Awaitable[str]]
DOORS: tuple[Door, ...] = (fetched, fetched_by_id, revealed, exported)


async def said(door: Door, world: World, grant: Grant, made: Secret) -> tuple[str, str]:
    """A door's refusal, its code and words; an export that leaves out what is refused has words alone."""
    try:
        return "", await door(world, grant, made)
    except KeybearerError as error:
        return error.code, error.message


@pytest.mark.parametrize("what", REFUSED)
async def test_what_a_token_may_not_have_it_gets_at_no_door(world: World, what: str) -> None:
    limits, fields, code = REFUSED[what]
    ada = await world.person("ada")
    made, grant = await stored(world, ada, **fields), await grant_of(world, ada, **limits)
    told = [await said(door, world, grant, made) for door in DOORS]
    assert [each for each, _ in told[:3]] == [code] * 3
    assert told[3][0] in {"", code}
    assert len({words for _, words in told}) == 1, told
    assert OPENAI_KEY not in str(told)


async def test_what_a_token_may_have_it_gets_at_every_door(world: World) -> None:
    ada = await world.person("ada")
    grant = await grant_of(world, ada, allowed_providers=frozenset({"openai"}))
    made = await stored(world, ada, allowed_tokens=(grant.token_id,))
    assert [await door(world, grant, made) for door in DOORS] == [OPENAI_KEY] * 4


async def test_while_frozen_no_token_is_shown_a_value_and_a_person_still_sees_their_own(world: World) -> None:
    """What a program fetches is stopped by the gateway (``tests/plane/test_fetch.py``)."""
    ada = await world.person("ada")
    made, grant = await stored(world, ada), await grant_of(world, ada)
    await freeze.freeze(world.db, ada)
    for door in (revealed, exported):
        with pytest.raises(Frozen):
            await door(world, grant, made)
    assert (await world.secrets.reveal(ada, made.id)).value.reveal() == OPENAI_KEY.encode()
    assert (await Exports(world.db, world.keyring, Catalog.load()).run(ada, "json")).count == 1
    await freeze.unfreeze(world.db, ada)
    assert [await door(world, grant, made) for door in DOORS] == [OPENAI_KEY] * 4
