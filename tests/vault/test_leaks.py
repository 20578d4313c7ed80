"""Marked values are stored, used, broken and refused; then everything that was written down is searched for them."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import BROWSER, PASSWORD, World, value

from keybearer.access.tokens import NewToken
from keybearer.domain import Role
from keybearer.errors import KeybearerError
from keybearer.store.db import Actor
from keybearer.store.schema import audit_record, secret_version
from keybearer.vault.providers import NewProvider
from keybearer.vault.secrets import NewSecret

MARK = "kbtestMARKER"
KEY = f"sk-proj-{MARK}-0123456789{MARK}abcdefghijkl{MARK}mnop"


def shown(thing: object) -> Iterator[str]:
    """All that a log, a debugger or an error page would print of it."""
    yield repr(thing)
    yield str(thing)
    yield f"{thing}"
    if isinstance(thing, BaseException):
        yield "".join(traceback.TracebackException.from_exception(thing, capture_locals=False).format())
    if isinstance(thing, KeybearerError):
        yield f"{thing.message} {thing.hint} {thing.fields}"


async def recorded_lines(world: World) -> str:
    async with world.db.read(Actor.system()) as tx:
        return "\n".join((await tx.execute(sa.select(audit_record.c.line))).scalars())


def files_of(world: World, url: str) -> bytes:
    """SQLite's file and log as they lie on the disk; PostgreSQL's are not this user's to read."""
    if world.db.name != "sqlite":
        return b""
    path = url.removeprefix("sqlite+aiosqlite:///")
    return Path(path).read_bytes() + Path(f"{path}-wal").read_bytes()


async def test_a_marked_value_is_nowhere_but_where_it_is_borne(
    world: World, tamper: Tamper, caplog: pytest.LogCaptureFixture, database_urls: tuple[str, str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []
    admin, ada = await world.person("admin", Role.ADMIN), await world.person("ada")
    new = NewSecret("openai", value(KEY))
    made = await world.secrets.create(ada, new)
    seen += [new, made, await world.secrets.list(ada), await world.secrets.get(admin, made.id)]
    openai = (await world.providers.registry(ada.user_id)).get("openai")
    (credential,) = await world.resolver.resolve(ada.user_id, None, openai, "gpt-5")
    assert credential.value.reveal() == KEY.encode()
    seen += [credential, await world.providers.list(ada)]
    with pytest.raises(TypeError):
        pickle.dumps(credential)
    custom = NewProvider("acme", "https://x.example", api_key=value(f"{MARK}-acme-0123456789"))
    seen += [custom, await world.providers.create(ada, custom)]
    failing = [
        world.secrets.create(ada, new),
        world.secrets.create(ada, replace(new, name="swapped", provider="anthropic")),
        world.secrets.create(ada, replace(new, name="newline", value=value(f"{KEY}\nx"))),
        world.secrets.create(ada, replace(new, name="nul", value=value(f"{KEY}\x00"))),
        world.secrets.create(ada, replace(new, name="long", value=value(KEY * 2000))),
        world.secrets.create(ada, replace(new, name=KEY)),
        world.secrets.create(ada, replace(new, provider=KEY)),
        world.secrets.update(ada, made.id, {"value": value(f"{KEY} {KEY}")}),
        world.secrets.update(ada, made.id, {KEY: "x"}),
        world.providers.update(ada, "openai", {"api_key": value(f"{KEY}\r\n{KEY}")}),
        world.providers.create(ada, NewProvider("y", f"https://u:{KEY}@x.example")),
        world.sessions.sign_in(KEY, PASSWORD + MARK, BROWSER),
        world.sessions.sign_in("ada@example.com", MARK * 4, BROWSER),
        world.users.create("new@example.com", MARK + "\x00", "", Role.MEMBER, admin),
        world.tokens.create(ada, NewToken("x" * 300 + KEY)),
    ]
    for call in failing:
        with pytest.raises(KeybearerError) as error:
            await call
        seen.append(error.value)
    await tamper(sa.update(secret_version).values(envelope=b"KB\x01\x01broken"))
    for call in (
        world.secrets.credential(ada, made.id),
        world.secrets.update(ada, made.id, {"fetchable": True}),
        world.resolver.resolve(ada.user_id, None, openai, "gpt-5"),
    ):
        with pytest.raises(KeybearerError) as error:
            await call
        seen.append(error.value)
    for thing in seen:
        for text in shown(thing):
            assert MARK not in text, thing
    for record in caplog.records:
        assert MARK not in record.getMessage() + str(record.args), record.name
    assert MARK not in await recorded_lines(world)
    assert MARK.encode() not in files_of(world, database_urls[0])


async def test_token_and_password_are_not_kept_in_clear(
    world: World, caplog: pytest.LogCaptureFixture, database_urls: tuple[str, str]
) -> None:
    caplog.set_level(logging.DEBUG)
    ada = await world.person("ada")
    made, text = await world.tokens.create(ada, NewToken("ci"))
    caller, cookie = await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    grant = await world.tokens.verify(text.encode())
    for thing in (made, caller, grant, (await world.sessions.page(caller))[0], await world.users.get(ada.user_id)):
        for shape in shown(thing):
            assert text[16:] not in shape
            assert cookie not in shape
            assert PASSWORD not in shape
    for record in caplog.records:
        assert text[16:] not in record.getMessage()
        assert PASSWORD not in record.getMessage() + str(record.args)
    content = files_of(world, database_urls[0])
    for mark in (text[16:], cookie, PASSWORD):
        assert mark.encode() not in content
