"""Several processes count together in Valkey, whatever happens to them, to it, or on the way."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
import trustme
from structlog.testing import capture_logs
from tests.limits.counting import Call, Process, budget, person, process
from tests.support import valkey as servers
from tests.support.valkey import Valkey

from keybearer.domain import BudgetKind
from keybearer.errors import LimitReached, LimitsUnreachable, SettingsInvalid
from keybearer.gateway import lost, shared_counts
from keybearer.gateway.valkey import check, connector
from keybearer.usage.limits import Most


class Pair(NamedTuple):
    """Two processes of two machines, as it were."""

    here: Process
    there: Process


@pytest.fixture
async def pair(database_urls: tuple[str, str], tmp_path: Path, valkey: Valkey) -> AsyncIterator[Pair]:
    async with (
        process(database_urls, tmp_path / "here", valkey.url) as here,
        process(database_urls, tmp_path / "there", valkey.url) as there,
    ):
        for each in (here, there):
            await each.keep()  # as a start does
        yield Pair(here, there)


async def until(ask: Callable[[], Awaitable[Call]]) -> Call:
    """Ask until it is granted."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await ask()
        except LimitsUnreachable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_two_processes_take_what_there_is_and_nothing_more(pair: Pair) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 100 * 7 + 6)
    for each in pair:
        await each.keep(day)
    calls = [each.wish(ada, Most(1, 7)) for _ in range(500) for each in pair]
    answers = await asyncio.gather(*(call.answer for call in calls), return_exceptions=True)
    assert sum(isinstance(answer, LimitReached) for answer in answers) == 900
    for call in calls:
        if call.hold is not None:
            call.end(1, 2)
    await pair.there.until(day, 200, 0)
    assert (await pair.here.state(day)).remaining == 506


async def test_what_was_let_pass_before_a_restart_is_counted_after_it(pair: Pair, valkey: Valkey) -> None:
    ada, bob = person(), person()
    hard, soft = budget(ada, BudgetKind.USD_DAY, 10_000), budget(bob, BudgetKind.USD_MONTH, 100, is_hard=False)
    for each in pair:
        await each.keep(hard, soft)
    one, two, three = [pair.here.wish(ada, Most(1, cost), [hard]) for cost in (1000, 2000, 3000)]
    four = pair.there.wish(ada, Most(1, 500), [hard])
    for call in (one, two, three, four):
        await call.answer
    one.end(1, 10)
    valkey.kill()
    refused = pair.there.wish(ada, Most(1, 1), [hard])
    with pytest.raises(LimitsUnreachable) as said:
        await refused.answer
    assert said.value.status == 503
    assert "KEYBEARER_REDIS_URL" in said.value.hint
    passed = pair.here.wish(bob, Most(1, 40), [soft])
    await passed.answer
    two.end(1, 20)  # nobody hears it, but the journal
    valkey.start()

    async def ask() -> Call:
        call = pair.there.wish(ada, Most(1, 100), [hard])
        await call.answer
        return call

    await until(ask)
    await pair.here.until(hard, 30, 3600)
    after = pair.there.wish(bob, Most(1, 2), [soft])
    await after.answer
    await pair.here.until(soft, 0, 42)
    passed.end(1, 30)
    three.end(1, 5)
    await pair.there.until(soft, 30, 2)
    await pair.there.until(hard, 35, 600)


async def test_an_emptied_server_is_filled_again(pair: Pair, valkey: Valkey) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 1000)
    for each in pair:
        await each.keep(day)
    calls = [await each.take(ada, Most(1, 100)) for each in pair for _ in range(3)]
    with valkey.client() as client:
        client.flushall()
        client.script_flush()
    await pair.here.take(ada, Most(1, 50))
    assert (await pair.there.state(day))[:2] == (0, 650)
    for call in calls:
        call.end(1, 1)
    await pair.here.until(day, 6, 50)


async def test_a_round_of_before_a_lost_memory_is_none_of_after(pair: Pair, valkey: Valkey) -> None:
    """Who says too late that it has followed must not be taken to have followed what it never heard of."""
    link, name = pair.here.counts._link, pair.here.counts._round  # type: ignore[attr-defined]
    before, _ = await link.ask("ask", [name], [0])
    with valkey.client() as client:
        client.flushall()
    await link.ask("follow", [name], ["late", before])
    after, _ = await link.ask("ask", [name], [0])
    newest, late = await link.ask("followed", [name], ["late"])
    assert newest == after > late


async def test_an_answer_that_is_lost_takes_nothing(pair: Pair, valkey: Valkey) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 100_000)
    await pair.here.keep(day)
    await pair.here.take(ada, Most(1, 1))
    with valkey.client() as client:
        for _ in range(5):
            calls = [pair.here.wish(ada, Most(1, 100)) for _ in range(20)]
            await asyncio.sleep(0)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for call in calls:
                with suppress(LimitsUnreachable):
                    (await call.answer).release()
    await pair.here.until(day, 0, 1)


async def test_what_a_killed_process_had_taken_counts_until_its_outcome_arrives(
    database_urls: tuple[str, str], tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost, "LOST_AFTER", 0)
    monkeypatch.setattr(lost, "LOOKS_EVERY", 1)
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 1000)
    async with process(database_urls, tmp_path / "here", valkey.url) as here:
        await here.keep(day)
        async with process(database_urls, tmp_path / "there", valkey.url) as there:
            await there.keep(day)
            known, unknown = await there.take(ada, Most(1, 300)), await there.take(ada, Most(1, 400))
            known.report(1, 3)  # and then it is killed
            await there.records.ship()
            assert (await here.state(day))[:2] == (0, 700)
        deadline = time.monotonic() + 30
        while (await here.state(day))[:2] != (3, 400):
            await here.counts.turn()
            assert time.monotonic() < deadline, await here.state(day)
            await asyncio.sleep(0.05)
        assert unknown.hold is not None


async def test_without_all_processes_nothing_is_guessed(
    pair: Pair, database_urls: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_counts, "WAITS", 0.5)
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 1000)
    await pair.here.keep(day)
    async with process(database_urls, tmp_path / "alone"):  # counts in its own memory
        with capture_logs() as logs:
            with pytest.raises(LimitsUnreachable):
                await pair.here.take(ada, Most(1, 1))
            deadline = time.monotonic() + 30
            while not any(entry.get("reason") == "another process does not follow" for entry in logs):
                assert time.monotonic() < deadline, logs
                await asyncio.sleep(0.05)
    await until(lambda: pair.here.take(ada, Most(1, 1)))


async def test_a_window_ends_by_valkeys_clock(pair: Pair, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = person()
    minute = budget(ada, BudgetKind.REQUESTS_MINUTE, 1)
    for each in pair:
        await each.keep(minute)
    call = await pair.here.take(ada, Most(None, None))
    with valkey.client() as client:
        (key,) = client.keys(f"*{minute.id.hex}")
        client.hset(key, "end", int(time.time()) - 1)
    await pair.there.take(ada, Most(None, None))
    with pytest.raises(LimitReached):
        await pair.here.take(ada, Most(None, None))
    call.end(1)  # of a window that is over
    await asyncio.sleep(0.1)
    assert (await pair.here.state(minute))[:2] == (0, 1)
    # A clock that lives in another time is not believed.
    with valkey.client() as client:
        client.hset(key, "end", 1)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(LimitsUnreachable):
        await pair.here.take(ada, Most(None, None))


async def test_nonsense_in_valkey_is_filled_anew_and_holds_nobody(pair: Pair, valkey: Valkey) -> None:
    ada, bob = person(), person()
    one, other = budget(ada, BudgetKind.USD_DAY, 1000), budget(bob, BudgetKind.USD_DAY, 1000)
    await pair.here.keep(one, other)
    await pair.here.wish(ada, Most(1, 1), [one]).answer
    with valkey.client() as client:
        (key,) = client.keys(f"*{one.id.hex}")
        client.hset(key, "reserved", "nonsense")
    await pair.here.wish(ada, Most(1, 1), [one]).answer
    await pair.here.until(one, 0, 2)
    with valkey.client() as client:
        client.delete(key)
        client.set(key, "nonsense")
    await pair.here.wish(ada, Most(1, 1), [one]).answer
    await pair.here.wish(bob, Most(1, 1), [other]).answer
    await pair.here.until(one, 0, 3)


async def test_a_round_that_is_forgotten_is_begun_anew(pair: Pair, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 1000)
    for each in pair:
        await each.keep(day)
    ship, may_ship = pair.there.records.ship, asyncio.Event()

    async def late() -> None:
        await may_ship.wait()
        await ship()

    monkeypatch.setattr(pair.there.records, "ship", late)
    call = pair.here.wish(ada, Most(1, 1))
    await asyncio.sleep(0.5)  # the round waits for the other process
    with valkey.client() as client:
        client.flushall()
    may_ship.set()
    await asyncio.wait_for(call.answer, shared_counts.WAITS / 2)
    await pair.there.until(day, 0, 1)


async def test_valkey_knows_nobody_and_forgets_what_is_over(pair: Pair, valkey: Valkey) -> None:
    ada = person()
    day = budget(ada, BudgetKind.USD_DAY, 1000)
    for each in pair:
        await each.keep(day)
    call = await pair.here.take(ada, Most(1, 1))
    call.end(1, 1)
    await pair.here.until(day, 1, 0)
    with valkey.client() as client:
        names = [name.decode() for name in client.keys("*")]
        assert all(client.ttl(name) > 0 for name in names)
        content = " ".join(names) + "".join(str(client.hgetall(name)) for name in names if not name.endswith("lease"))
    for told in (ada.user_id, ada.secret_id):
        assert str(told) not in content
        assert told.hex not in content
    assert ada.token_id not in content
    assert call.request_id not in content


async def test_a_wrong_password_is_said_and_never_shown(valkey: Valkey, database_urls: tuple[str, str], tmp_path: Path) -> None:
    wrong = f"redis://:kbtest-wrong-password@127.0.0.1:{valkey.port}/0"
    with pytest.raises(SettingsInvalid) as refused:
        await check(wrong)
    assert "password" in refused.value.message
    with capture_logs() as logs:
        async with process(database_urls, tmp_path / "journal", wrong) as here:
            ada = person()
            await here.keep(budget(ada, BudgetKind.USD_DAY, 1))
            with pytest.raises(LimitsUnreachable) as away:
                await here.take(ada, Most(1, 1))
            shown = f"{refused.value!r} {refused.value.hint} {away.value!r} {vars(here.counts)} {vars(here.counts._link)} {logs}"  # type: ignore[attr-defined]
    assert "refuses the user name or password" in shown
    assert "kbtest-wrong" not in shown
    await check(valkey.url)


async def test_a_user_may_have_no_more_rights_than_the_docs_say(
    valkey: Valkey, database_urls: tuple[str, str], tmp_path: Path
) -> None:
    (rules,) = re.findall(r"`ACL SETUSER keybearer on >… (.*)`", (servers.ROOT / "docs" / "budgets.md").read_text())
    password = "kbtest-p@ss/word:%"
    with valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "keybearer", "on", f">{password}", *rules.split())
    url = f"redis://keybearer:{quote(password, safe='')}@127.0.0.1:{valkey.port}/0"
    await check(url)
    async with process(database_urls, tmp_path / "journal", url) as here:
        ada = person()
        day = budget(ada, BudgetKind.USD_DAY, 10)
        await here.keep(day)
        call = await here.take(ada, Most(1, 9))
        await here.counts.turn()
        call.end(1, 3)
        await here.until(day, 3, 0)
        await here.counts.keep((), [day.id])
    with valkey.client() as client:
        assert not client.exists(*client.keys(f"*{day.id.hex}") or ["none"])
        client.execute_command("ACL", "SETUSER", "keybearer", "-evalsha")
    with pytest.raises(SettingsInvalid) as refused:
        await check(url)
    assert "EVALSHA" in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "http://kbtest-password@localhost", "redis://", "redis://localhost:port", "redis://localhost/nought", "redis://localhost?a=1",
        "redis://localhost?ca=/a.pem", "unix:relative", "kbtest-password",
    ],
)  # fmt: skip
def test_what_is_no_url_is_said_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsInvalid) as refused:
        connector(url)
    assert refused.value.hint
    assert "kbtest" not in f"{refused.value!r}{refused.value.hint}"


async def test_tls_is_verified(valkey: Valkey, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    for name, is_right in (("127.0.0.1", True), ("other.example.com", False)):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        async with servers.behind_tls(valkey, context) as port:
            url = f"rediss://:{valkey.password}@127.0.0.1:{port}/0"
            for ca in ("", "?ca=stranger.pem", "?ca=none.pem", "?ca=ca.pem"):
                asked = check(url + ca.replace("=", f"={tmp_path}/"))
                if is_right and ca == "?ca=ca.pem":
                    await asked
                    continue
                with pytest.raises(SettingsInvalid) as refused:
                    await asked
                assert valkey.password not in f"{refused.value!r}"
