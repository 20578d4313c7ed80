"""Who reads what of the access log and of the usage records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import Person, add_person, outcome

from keybearer.audit import management
from keybearer.audit.access_log import Access, AccessLog
from keybearer.audit.journal import Journal
from keybearer.audit.ship import Shipper
from keybearer.domain import MEMBER_SCOPES, Caller, Client, KeySource, ManagementRecord, Owner, OwnerKind, Role, Scope, Usage
from keybearer.errors import Invalid
from keybearer.store import schema
from keybearer.store.db import Actor, Database
from keybearer.store.queries import cursors
from keybearer.store.queries.audit import Filter
from keybearer.usage.record import Filter as UsageFilter
from keybearer.usage.record import UsageRecords, UsageSum

START = datetime(2026, 3, 1, 22, tzinfo=UTC)
ALL = Filter(None)
ALL_USAGE = UsageFilter(None)


def member(person: Person) -> Caller:
    return Caller(person.user_id, Role.MEMBER, MEMBER_SCOPES, token_id=person.token_id, client=Client("192.0.2.7", "kbtest"))


def admin() -> Caller:
    return Caller(uuid4(), Role.ADMIN, frozenset(Scope))


@pytest.fixture
async def ann(database: Database) -> Person:
    return await add_person(database)


@pytest.fixture
async def ben(database: Database, ann: Person, tmp_path: Path) -> Person:
    """Ben, when both have called for two days: Ann with her key, Ben with his and once with Ann's."""
    ben = await add_person(database)
    journal = await Journal.open(database, tmp_path, "journal")
    for number in range(6):
        at = (START + timedelta(hours=number)).timestamp()
        journal.use(
            ann.use(f"ann{number}", at=at, workflow="" if number < 3 else "nightly", node="reply" if number == 5 else "summary")
        )
        if number < 5:
            cost = None if number == 0 else 1000 * number
            failed = "upstream_error" if number == 1 else "ok"
            journal.outcome(
                outcome(f"ann{number}", at=at + 1, outcome=failed, usage=Usage(10, 2, 1, None, 1), cost_micro_usd=cost)
            )
    later = (START + timedelta(hours=9)).timestamp()
    journal.use(ben.use("ben0", at=later, provider="anthropic", model="claude"))
    journal.use(
        ben.use("ben1", at=later + 1, secret_id=ann.secret_id, owner=Owner(OwnerKind.USER, ann.user_id), operation="test")
    )
    await journal.close()
    await Shipper(database, tmp_path, journal).ship_once()
    async with database.write(Actor.user(ann.user_id)) as tx:
        record = ManagementRecord(
            "secret.update",
            member(ann),
            str(ann.secret_id),
            owner=Owner(OwnerKind.USER, ann.user_id),
            detail=(("provider", "openai"), ("name", "work\n")),
        )
        await management.record(database, tx, record)
    async with database.write(Actor.lookup()) as tx:
        refused = ManagementRecord("session.sign_in", None, "who@example.com", "sign_in_failed")
        await management.record(database, tx, refused)
    return ben


async def everything(log: AccessLog, caller: Caller, wanted: Filter, limit: int = 3) -> list[Access]:
    found, cursor = await log.page(caller, wanted, None, limit)
    while cursor is not None:
        more, cursor = await log.page(caller, wanted, cursor, limit)
        assert 0 < len(more) <= limit
        found += more
    return found


def requests(found: list[Access]) -> list[str]:
    return [row.request_id for row in found if row.request_id]


async def test_a_member_reads_what_they_did_and_what_was_done_with_their_keys(
    database: Database, ann: Person, ben: Person
) -> None:
    log = AccessLog(database)
    hers = await everything(log, member(ann), ALL)
    assert [row.at for row in hers] == sorted((row.at for row in hers), reverse=True)
    assert requests(hers) == ["ben1", "ann5", "ann4", "ann3", "ann2", "ann1", "ann0"]
    assert len({(row.writer_id, row.seq) for row in hers}) == len(hers) == 8
    assert requests(await everything(log, member(ben), ALL)) == ["ben1", "ben0"]
    assert await everything(log, member(ben), replace(ALL, seen_by=None, user_id=ann.user_id)) == []
    assert await everything(log, member(ben), replace(ALL, seen_by=ann.user_id, request_id="ann1")) == []


async def test_an_administrator_reads_everything(database: Database, ann: Person, ben: Person) -> None:
    found = await everything(AccessLog(database), admin(), ALL)
    assert len(requests(found)) == 8
    assert [row.action for row in found if not row.request_id] == ["session.sign_in", "secret.update", "audit.open"]
    kinds = replace(ALL, kinds=("open", "outcome", "close"))
    assert len(await everything(AccessLog(database), admin(), kinds)) == 8


async def test_without_the_admin_scope_an_administrator_is_a_member(database: Database, ann: Person, ben: Person) -> None:
    caller = replace(member(ben), role=Role.ADMIN)
    assert requests(await everything(AccessLog(database), caller, ALL)) == ["ben1", "ben0"]


async def test_a_row_tells_who_when_which_key_where_and_how_it_ended(database: Database, ann: Person, ben: Person) -> None:
    log = AccessLog(database)
    (row,), _ = await log.page(member(ann), replace(ALL, request_id="ann4"))
    assert (row.action, row.outcome, row.at) == ("secret.use", "ok", START + timedelta(hours=4))
    assert (row.user_id, row.owner_id, row.secret_id, row.token_id) == (ann.user_id, ann.user_id, ann.secret_id, ann.token_id)
    assert (row.provider, row.model, row.operation, row.key_source) == ("openai", "gpt-5-mini", "chat.completions", "user")
    assert (row.workflow, row.node, row.ip, row.user_agent) == ("nightly", "summary", "127.0.0.1", "openai-python/2.0")
    (row,), _ = await log.page(member(ann), replace(ALL, action="secret.update"))
    assert (row.outcome, row.subject, row.secret_id) == ("ok", str(ann.secret_id), ann.secret_id)
    assert (row.ip, row.user_agent, row.token_id) == ("192.0.2.7", "kbtest", ann.token_id)
    assert row.detail == {"provider": "openai", "name": r"work\n"}


async def test_filters(database: Database, ann: Person, ben: Person) -> None:
    log = AccessLog(database)

    async def found(**changes: object) -> list[str]:
        return requests(await everything(log, admin(), replace(ALL, **changes)))  # type: ignore[arg-type]

    assert await found(user_id=ben.user_id) == ["ben1", "ben0"]
    assert await found(secret_id=ann.secret_id, user_id=ben.user_id) == ["ben1"]
    assert await found(action="secret.test") == ["ben1"]
    assert await found(outcome="unknown") == ["ben1", "ben0", "ann5"]
    assert await found(outcome="upstream_error") == ["ann1"]
    assert await found(request_id="ann2") == ["ann2"]
    hour = timedelta(hours=1)
    assert await found(since=START + hour, until=START + 3 * hour) == ["ann2", "ann1"]
    assert await found(user_id=UUID(int=5)) == []
    refused = await everything(log, admin(), replace(ALL, outcome="sign_in_failed"))
    assert [row.subject for row in refused] == ["who@example.com"]


async def test_a_cursor_with_a_number_that_no_database_holds_is_refused(database: Database) -> None:
    for number in (2**63, -1, 2**70):
        with pytest.raises(Invalid):
            await AccessLog(database).page(admin(), ALL, cursors.encode((datetime.now(UTC), uuid4(), number)))


@pytest.mark.parametrize(
    "cursor", ["", "x", "é", "e30", "W10", "WyJ4Il0", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwiYSIsMV0", "A" * 10_000]
)
async def test_a_foreign_cursor_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(Invalid):
        await AccessLog(database).page(admin(), ALL, cursor)
    with pytest.raises(Invalid):
        await UsageRecords(database).page(admin(), ALL_USAGE, cursor)


# --- usage


async def test_usage_is_read_page_by_page_by_who_called_and_who_paid(database: Database, ann: Person, ben: Person) -> None:
    usage = UsageRecords(database)
    for caller, expected in (
        (member(ann), ["ben1", "ann5", "ann4", "ann3", "ann2", "ann1", "ann0"]),
        (member(ben), ["ben1", "ben0"]),
        (admin(), ["ben1", "ben0", "ann5", "ann4", "ann3", "ann2", "ann1", "ann0"]),
    ):
        found, cursor = await usage.page(caller, ALL_USAGE, None, 2)
        while cursor is not None:
            more, cursor = await usage.page(caller, ALL_USAGE, cursor, 2)
            found += more
        assert [row.request_id for row in found] == expected
    rows, _ = await usage.page(member(ben), replace(ALL_USAGE, seen_by=ann.user_id, user_id=ann.user_id))
    assert rows == []
    rows, _ = await usage.page(admin(), replace(ALL_USAGE, provider="openai", outcome="unknown"))
    assert [row.request_id for row in rows] == ["ben1", "ann5"]
    rows, _ = await usage.page(admin(), replace(ALL_USAGE, request_id="ann2", since=START, until=START + timedelta(hours=3)))
    assert [(row.cost_micro_usd, row.input_tokens) for row in rows] == [(2000, 10)]


async def test_an_edited_row_takes_no_other_along(database: Database, ann: Person, ben: Person) -> None:
    """SQLite lets anything into any column."""
    edits = "cost_micro_usd = 0.5, input_tokens = 'many', status = 'x', owner_id = 'nobody', model = CAST(x'6b62ff' AS TEXT)"
    if database.name == "postgresql":
        edits = "cost_micro_usd = -1, input_tokens = -1, status = -1, owner_id = 'ffffffff-ffff-ffff-ffff-ffffffffffff', model = 'kb\ufffd'"
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.text(f"UPDATE usage_record SET {edits} WHERE request_id = 'ann2'"))  # from the lines above
    usage = UsageRecords(database)
    found = {row.request_id: row for row in (await usage.page(member(ann), ALL_USAGE))[0]}
    assert len(found) == 7
    assert (found["ann2"].cost_micro_usd, found["ann2"].input_tokens, found["ann2"].status) == (-1, -1, -1)
    assert found["ann2"].model == "kb\ufffd"
    assert found["ann3"].cost_micro_usd == 3000
    (all_of_it,) = await usage.summary(member(ben), [], ALL_USAGE)
    assert all_of_it.requests == 2
    (all_of_it,) = await usage.summary(member(ann), [], ALL_USAGE)
    assert all_of_it.requests == 7


async def test_sums(database: Database, ann: Person, ben: Person) -> None:
    usage = UsageRecords(database)
    one_day = UsageSum(("2026-03-01",), 2, 1, 20, 4, 2, 2, 1000, 1)
    assert await usage.summary(member(ann), ["day"], ALL_USAGE) == [
        one_day,
        UsageSum(("2026-03-02",), 5, 2, 30, 6, 3, 3, 9000, 2),
    ]
    assert await usage.summary(member(ann), [], replace(ALL_USAGE, until=START + timedelta(hours=2))) == [
        replace(one_day, group=())
    ]

    async def groups(caller: Caller, *names: str) -> dict[tuple[str, ...], int]:
        return {found.group: found.requests for found in await usage.summary(caller, names, ALL_USAGE)}  # type: ignore[arg-type]

    assert await groups(admin(), "provider", "model") == {("anthropic", "claude"): 1, ("openai", "gpt-5-mini"): 7}
    assert await groups(admin(), "secret") == {(str(ann.secret_id),): 7, (str(ben.secret_id),): 1}
    assert await groups(admin(), "user") == {(str(ann.user_id),): 6, (str(ben.user_id),): 2}
    assert await groups(admin(), "token") == {(ann.token_id,): 6, (ben.token_id,): 2}
    assert await groups(admin(), "day", "workflow") == {
        ("2026-03-01", ""): 2,
        ("2026-03-02", ""): 1,
        ("2026-03-02", "nightly"): 5,
    }
    assert await groups(admin(), "workflow", "node") == {("", "summary"): 3, ("nightly", "summary"): 4, ("nightly", "reply"): 1}
    assert await groups(member(ben), "user") == {(str(ben.user_id),): 2}
    assert await groups(member(await add_person(database)), "day") == {}


async def test_a_teams_sum_is_of_what_it_owns(database: Database, ann: Person, ben: Person, tmp_path: Path) -> None:
    team = uuid4()
    async with database.write(Actor.system()) as tx:
        await tx.execute(sa.insert(schema.owner).values(id=team, kind="team", created_at=START))
    journal = await Journal.open(database, tmp_path, "journal")
    for number, owner in enumerate(
        (Owner(OwnerKind.TEAM, team), Owner(OwnerKind.USER, ann.user_id))
    ):  # its own, and one lent to it
        journal.use(ben.use(f"team{number}", at=START.timestamp(), owner=owner, source=KeySource.TEAM))
        journal.outcome(outcome(f"team{number}", at=START.timestamp()))
    await journal.close()
    await Shipper(database, tmp_path, journal).ship_once()
    found = {
        one.group: (one.requests, one.cost_micro_usd)
        for one in await UsageRecords(database).summary(admin(), ["team"], ALL_USAGE)
    }
    assert found[str(team),] == (1, 1234)
    assert found["",][0] == 9
