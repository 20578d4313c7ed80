"""What a password must be, how it is kept, and what checking one costs."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.support.tamper import Tamper
from tests.support.vault import BROWSER, PASSWORD, World

from keybearer.access.fields import Fields
from keybearer.access.passwords import Passwords, check_policy
from keybearer.domain import Role
from keybearer.errors import Invalid, Overloaded, SignInFailed
from keybearer.store.db import Actor
from keybearer.store.schema import user


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("", "needs at least 12"),
        ("eleven char", "needs at least 12"),
        ("e\u0301" * 6, "needs at least 12"),  # six letters, whatever they are made of
        ("x" * 257, "too long"),
        ("😀" * 5000, "too long"),
        ("ada@example.com", "e-mail"),
        (" ADA@example.COM ", "e-mail"),
        ("adalovelace1815", "e-mail"),
        ("aaaaaaaaaaaaaaaa", "different"),
        ("kbtest\x00password", "control"),
        ("kbtest-pass\ud800word", "control"),
    ],
)
def test_weak_passwords_are_refused(password: str, message: str) -> None:
    fields = Fields()
    email = "adalovelace1815@example.com" if "1815" in password else "ada@example.com"
    check_policy(fields, "password", password, email)
    with pytest.raises(Invalid, match=message) as wrong:
        fields.check()
    assert wrong.value.fields[0].field == "password"
    assert len(password) < 12 or password not in wrong.value.message


@pytest.mark.parametrize("password", [PASSWORD, "пароль из слов", "x" * 200 + "yz1!", "ada@example.com and more"])
def test_long_passwords_of_all_languages_are_fine(password: str) -> None:
    fields = Fields()
    check_policy(fields, "password", password, "ada@example.com")
    fields.check()


async def test_the_real_parameters_are_those_of_the_rfc(world: World) -> None:
    """RFC 9106, section 4, second recommended option; an unknown account costs what a known one does."""
    passwords = Passwords(world.keyring)
    user_id = uuid4()
    kept = await passwords.hash(user_id, PASSWORD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert passwords._nobodys.rsplit("$", 2)[0] == kept.rsplit("$", 2)[0]
    assert [len(part) for part in passwords._nobodys.split("$")] == [len(part) for part in kept.split("$")]
    await passwords.check(user_id, kept, PASSWORD)
    started = time.perf_counter()
    for known, of in ((user_id, kept), (None, None), (user_id, None), (user_id, "sha256$damaged")):
        with pytest.raises(SignInFailed):
            await passwords.check(known, of, "kbtest-wrong password")
    assert time.perf_counter() - started > 0.02  # work was done; how long it takes is the machine's business
    with pytest.raises(SignInFailed):
        await passwords.check(user_id, kept, PASSWORD + "x" * 300)


async def test_the_same_text_typed_otherwise_is_the_same_password(world: World) -> None:
    passwords, user_id = world.sessions.passwords, uuid4()
    await passwords.check(user_id, await passwords.hash(user_id, "cafe\u0301 au lait"), "café au lait")


async def test_a_hash_written_into_another_row_opens_nothing(world: World, tamper: Tamper) -> None:
    """Whoever can write to the database and knows one password still cannot be somebody else."""
    admin, mallory = await world.person("admin", Role.ADMIN), await world.person("mallory")
    own = sa.select(user.c.password_hash).where(user.c.id == mallory.user_id).scalar_subquery()
    await tamper(sa.update(user).where(user.c.id == admin.user_id).values(password_hash=own))
    with pytest.raises(SignInFailed):
        await world.sessions.sign_in("admin@example.com", PASSWORD, BROWSER)
    await world.sessions.sign_in("mallory@example.com", PASSWORD, BROWSER)


async def test_only_a_few_are_hashed_at_once_and_a_crowd_is_turned_away(world: World) -> None:
    passwords = Passwords(world.keyring, memory_kib=8192, passes=2, lanes=1, at_once=2, waiting=3)
    results = await asyncio.gather(*(passwords.hash(uuid4(), PASSWORD) for _ in range(12)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(refused) == 12 - 5
    assert all(error.retry_after for error in refused)
    assert len(passwords._threads._threads) == 2
    await passwords.hash(uuid4(), PASSWORD)


async def test_the_event_loop_goes_on_meanwhile(world: World) -> None:
    passwords = Passwords(world.keyring)
    hashing = asyncio.create_task(passwords.hash(uuid4(), PASSWORD))
    turns = 0
    while not hashing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20


async def test_old_parameters_are_renewed_at_sign_in(world: World) -> None:
    ada = await world.person("ada")
    world.sessions.passwords = Passwords(world.keyring, memory_kib=128, passes=1, lanes=1)
    await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
    async with world.db.read(Actor.user(ada.user_id)) as tx:
        kept = (await tx.execute(sa.select(user.c.password_hash))).scalar_one()
    assert "m=128" in kept
    await world.sessions.sign_in("ada@example.com", PASSWORD, BROWSER)
