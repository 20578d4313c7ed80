"""Long lists come as pages: everything once, in order, whatever is made meanwhile, and nothing by a made-up cursor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from tests.support.vault import BROWSER, PASSWORD, World

from keybearer.access.tokens import NewToken
from keybearer.domain import Caller, Role, Scope
from keybearer.errors import Invalid
from keybearer.store.queries import cursors

Row = TypeVar("Row")


async def all_pages(page: Callable[[str | None], Awaitable[tuple[list[Row], str | None]]], most: int) -> list[Row]:
    """Read page by page, as a client does."""
    found, following = await page(None)
    while following is not None:
        more, following = await page(following)
        assert 0 < len(more) <= most
        found += more
    return found


async def make_token(world: World, caller: Caller, name: str) -> str:
    made, _ = await world.tokens.create(caller, NewToken(name=name, scopes=frozenset({Scope.GATEWAY_USE})))
    return made.id


async def test_tokens_come_newest_first_each_once(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    made = [await make_token(world, ada, f"app {number}") for number in range(7)]
    await make_token(world, bob, "his")
    assert {token.id for token in await all_pages(lambda at: world.tokens.page(ada, None, at, 3), 3)} == set(made)
    first, following = await world.tokens.page(ada, limit=3)
    await make_token(world, ada, "made while she reads")
    second, _ = await world.tokens.page(ada, cursor=following, limit=3)
    assert not {token.id for token in first} & {token.id for token in second}
    assert [token.created_at for token in first + second] == sorted((t.created_at for t in first + second), reverse=True)
    whole, end = await world.tokens.page(ada, limit=8)
    assert (len(whole), end) == (8, None), "a page that holds the rest is the last"


async def test_accounts_come_by_address_each_once(world: World) -> None:
    admin = await world.person("admin", Role.ADMIN)
    for name in ("zoe", "ben", "ada", "ämilie", "tom"):
        await world.person(name)
    found = [user.email for user in await all_pages(lambda at: world.users.page(admin, at, 2), 2)]
    assert len(found) == len(set(found)) == 6
    assert found == [user.email for user in (await world.users.page(admin))[0]]


async def test_sessions_come_newest_first_each_once(world: World) -> None:
    await world.person("ada")
    callers = [(await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER))[0] for _ in range(5)]
    found = await all_pages(lambda at: world.sessions.page(callers[0], at, 2), 2)
    assert {view.id for view in found} == {caller.session_id for caller in callers}
    assert len(found) == 5
    assert [view.is_current for view in found] == [view.id == callers[0].session_id for view in found]


async def test_a_cursor_opens_nothing_of_others(world: World) -> None:
    ada, bob = await world.person("ada"), await world.person("bob")
    for number in range(3):
        await make_token(world, ada, f"app {number}")
    _, following = await world.tokens.page(ada, limit=1)
    assert following is not None
    assert await world.tokens.page(bob, cursor=following) == ([], None)


async def test_made_up_cursors_are_refused(world: World) -> None:
    admin = await world.person("admin", Role.ADMIN)
    now = (await world.users.get(admin.user_id)).created_at + timedelta(hours=1)
    of_users, of_tokens = cursors.encode(("a@example.com",)), cursors.encode((now, "aaaaaaaaaaaa"))
    lists: list[tuple[Callable[[str], Awaitable[Any]], str]] = [
        (lambda at: world.users.page(admin, at), of_tokens),
        (lambda at: world.tokens.page(admin, cursor=at), of_users),
        (lambda at: world.sessions.page(admin, at), of_users),
    ]
    for page, foreign in lists:
        for made_up in (foreign, "", "!", "bm8", "W10", cursors.encode(("a", "b", "c")), "é", "W" * 10_000):
            with pytest.raises(Invalid):
                await page(made_up)
