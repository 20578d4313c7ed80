"""Reading values again: only after a fresh sign-in, and not many at a time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.support.vault import BROWSER, OPENAI_KEY, PASSWORD, World, value

from keybearer.access import sessions
from keybearer.errors import RateLimited, SignInAgain
from keybearer.vault.secrets import REVEALS, NewSecret


async def test_a_sign_in_of_long_ago_is_not_enough(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.person("ada")
    caller, _ = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    made = await world.secrets.create(caller, NewSecret("openai", value(OPENAI_KEY), fetchable=True))
    for action in ("secret.reveal", "secret.export"):
        await world.sessions.require_fresh(caller, action, str(made.id))
    monkeypatch.setattr(sessions, "FRESH", timedelta(0))  # ten minutes later
    for action in ("secret.reveal", "secret.export"):
        with pytest.raises(SignInAgain):
            await world.sessions.require_fresh(caller, action, str(made.id))
        assert (action, "sign_in_again") in await world.recorded()
    again, _ = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    monkeypatch.undo()
    await world.sessions.require_fresh(again, "secret.reveal", str(made.id))


async def test_values_are_read_one_by_one_and_not_by_the_hundred(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made = await world.secrets.create(ada, NewSecret("openai", value(OPENAI_KEY), fetchable=True))
    his = await world.secrets.create(bob, NewSecret("openai", value(OPENAI_KEY), fetchable=True))
    for _ in range(REVEALS.rate.burst):
        assert (await world.secrets.reveal(ada, made.id)).value.reveal() == OPENAI_KEY.encode()
    for _ in range(3):
        with pytest.raises(RateLimited) as refused:
            await world.secrets.reveal(ada, made.id)
        assert 0 < (refused.value.retry_after or 0) <= REVEALS.rate.seconds
    recorded = await world.recorded()
    assert recorded.count(("secret.reveal", "ok")) == REVEALS.rate.burst
    assert recorded.count(("secret.reveal", "rate_limited")) == 1, "of a flood the first"
    await world.secrets.reveal(bob, his.id)
