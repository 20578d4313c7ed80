"""Refused attempts are on record, and nobody can fill the disk with them."""

from __future__ import annotations

from uuid import uuid4

import pytest
import sqlalchemy as sa
from tests.audit.audit_samples import rows

from keybearer.access.attempts import attempt
from keybearer.audit import refusals
from keybearer.audit.access_log import Access, readable
from keybearer.audit.refusals import BURST, PER_MINUTE, Refusal, Refusals
from keybearer.domain import Caller, Client, Role
from keybearer.errors import (
    InvalidRequest,
    KeybearerError,
    KeyInactive,
    NotFound,
    RouteUnknown,
    ScopeMissing,
    TokenInvalid,
    Unavailable,
)
from keybearer.store import schema
from keybearer.store.db import Database
from keybearer.store.queries.audit import Record


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(ip: str = "198.51.100.7", token_id: str = "", **more: object) -> Refusal:
    return Refusal("gateway.refuse", "token_invalid", Client(ip, "kbtest"), token_id=token_id, **more)  # type: ignore[arg-type]


async def recorded(database: Database) -> list[Access]:
    found = await rows(database, schema.audit_record, sa.and_(schema.audit_record.c.kind == "manage"))
    return [readable(Record(*row)) for row in sorted(found, key=lambda row: row.seq)]


async def test_each_refusal_tells_who_from_where_asking_for_what(database: Database) -> None:
    some = Refusals(database)
    user_id = uuid4()
    some.note(refusal(token_id="AbCdEf123456", detail=(("model", "gpt-5-mini"), ("workflow", "nightly"), ("node", "sum"))))
    some.note(refusal(user_id=user_id, token_id="AbCdEf123456"))
    assert await some.flush() == 2
    stranger, known = await recorded(database)
    assert (stranger.action, stranger.outcome, stranger.user_id) == ("gateway.refuse", "token_invalid", None)
    assert (stranger.ip, stranger.user_agent, stranger.token_id) == ("198.51.100.7", "kbtest", "AbCdEf123456")
    assert (stranger.model, stranger.workflow, stranger.node) == ("gpt-5-mini", "nightly", "sum")
    assert (known.user_id, known.ip, known.token_id) == (user_id, "198.51.100.7", "AbCdEf123456")
    assert await some.flush() == 0


async def test_of_one_address_a_few_are_told_and_the_rest_is_counted(database: Database) -> None:
    clock = Clock()
    some = Refusals(database, clock)
    for _ in range(1000):
        some.note(refusal())
    some.note(refusal("203.0.113.9"))
    assert await some.flush() == PER_MINUTE + 1
    clock.now = 61.0
    assert await some.flush() == 1
    *_, last = await recorded(database)
    assert (last.ip, last.detail["more"]) == ("198.51.100.7", str(1000 - PER_MINUTE))
    clock.now = 200.0
    assert await some.flush() == 0


async def test_a_flood_from_everywhere_costs_a_bounded_number_of_records(database: Database) -> None:
    clock = Clock()
    some = Refusals(database, clock)
    hours, total = 3, 0
    for minute in range(60 * hours):
        clock.now = minute * 60.0
        for number in range(500):
            some.note(refusal(f"2001:db8:{minute:x}:{number:x}::1"))
        total += await some.flush()
    total += await some.flush(ends=True)
    assert total <= BURST + hours * 3600 / refusals.EVERY + 60 * hours + 1
    told = await recorded(database)
    assert len(told) == total
    assert sum(int(row.detail.get("more", 1)) for row in told) == 60 * hours * 500  # none is lost


async def test_memory_is_bounded_too(database: Database) -> None:
    some = Refusals(database, Clock())
    for number in range(3 * refusals.REMEMBERED):
        some.note(refusal(f"2001:db8:0:{number:x}::1"))
    assert len(some._counts) <= refusals.REMEMBERED + 1
    assert len(some._queue) <= BURST


async def test_addresses_of_one_network_are_one(database: Database) -> None:
    some = Refusals(database, Clock())
    for number in range(100):
        some.note(refusal(f"2001:db8::{number:x}"))
    some.note(refusal("::ffff:192.0.2.1"))
    some.note(refusal("192.0.2.1"))
    some.note(refusal("no address"))
    assert len(some._counts) == 3


async def test_refused_changes_share_the_budget(database: Database) -> None:
    caller = Caller(uuid4(), Role.MEMBER, frozenset(), client=Client("198.51.100.7", "kbtest"))
    for _ in range(refusals.PER_MINUTE_KNOWN + 40):
        with pytest.raises(NotFound):
            async with attempt(database, "secret.read", caller, str(uuid4())):
                raise NotFound
    assert len(await recorded(database)) == refusals.PER_MINUTE_KNOWN
    assert await Refusals.of(database).flush(ends=True) == 1
    *_, last = await recorded(database)
    assert (last.action, last.user_id, last.detail["more"]) == ("secret.read", caller.user_id, "40")


async def test_what_cannot_be_written_waits(database: Database) -> None:
    some = Refusals(database, Clock())
    some.note(refusal())
    await database.close()
    broken = Refusals.__new__(Refusals)
    broken.__dict__.update(some.__dict__)

    class Away:
        def write(self, actor: object) -> object:
            raise Unavailable

    broken._db = Away()  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        await broken.flush()
    assert len(broken._queue) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TokenInvalid(), True),
        (ScopeMissing(), True),
        (KeyInactive(), True),
        (RouteUnknown(), False),
        (InvalidRequest(), False),
        (Unavailable(), False),
    ],
)
def test_what_counts_as_a_refusal(error: KeybearerError, expected: bool) -> None:  # noqa: FBT001  # a parameter of the test
    assert refusals.is_refusal(error) is expected
    error.is_recorded = True
    assert not refusals.is_refusal(error)


def test_only_ids_are_taken_from_paths() -> None:
    assert refusals.harmless("sk-kbtest-secret") == ""
    assert refusals.harmless("AAAAAAAA-0000-0000-0000-000000000000") == "aaaaaaaa-0000-0000-0000-000000000000"
