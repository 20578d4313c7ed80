"""How keys fare, at given times: what a mark does, how it grows, and what is told of it. No socket, no clock."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from keybearer.gateway.health import (
    LONGEST_BACKOFF,
    LONGEST_REST,
    REFUSED_SECONDS,
    TRIAL_SECONDS,
    Fitness,
    Health,
    Healths,
    stated_wait,
)

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_a_key_cools_then_one_call_tries_it_then_it_is_fit() -> None:
    health = Health()
    assert health.fitness("m", 0) is Fitness.FIT
    health.failed(429, "m", 100, 7)
    assert (health.fitness("m", 106.9), health.fitness("other", 100)) == (Fitness.RESTING, Fitness.FIT)
    health.served("m", 103)  # the answer to an earlier call
    assert health.fitness("m", 107) is Fitness.DUE
    health.begin_trial("m", 107)
    assert health.fitness("m", 107.1) is Fitness.LAST_RESORT
    assert health.fitness("m", 107 + TRIAL_SECONDS) is Fitness.DUE  # that call never had an answer
    health.served("m", 108)
    assert (health.fitness("m", 108), health.marks) == (Fitness.FIT, {})


def test_an_unstated_rest_doubles_with_each_trial_that_fails_and_not_with_calls_under_way() -> None:
    health, now, rests = Health(), 0.0, []
    for _ in range(9):
        for _ in range(32):  # calls that went out together
            health.failed(429, "m", now, None)
        rests.append(health.rests_for("m", now))
        now += rests[-1]
    assert rests == [1, 2, 4, 8, 16, 32, LONGEST_BACKOFF, LONGEST_BACKOFF, LONGEST_BACKOFF]
    health.served("m", now)
    health.failed(429, "m", now, None)
    assert health.rests_for("m", now) == 1


def test_a_later_answer_shortens_no_rest() -> None:
    health = Health()
    health.failed(429, "m", 0, 60)
    health.failed(429, "m", 1, 2)
    assert health.rests_for("m", 1) == 59
    health.failed(429, "m", 2, 10**9)
    assert health.rests_for("m", 2) == LONGEST_REST


@pytest.mark.parametrize(("status", "everywhere"), [(401, True), (402, True), (403, False)])
def test_a_refused_key_is_a_last_resort(status: int, everywhere: bool) -> None:  # noqa: FBT001
    health = Health()
    health.failed(status, "m", 0, 5)
    assert health.fitness("m", 1) is Fitness.LAST_RESORT
    assert health.fitness("other", 1) is (Fitness.LAST_RESORT if everywhere else Fitness.FIT)
    assert health.is_refused("m")
    assert health.fitness("m", REFUSED_SECONDS) is Fitness.DUE
    health.served("m", 2)
    assert not health.is_refused("m")


def test_many_models_do_not_fill_the_memory() -> None:
    health = Health()
    for number in range(1_000):
        health.failed(429, f"m{number}", 0, 60)
    assert len(health.marks) == 64
    assert health.fitness("m999", 1) is Fitness.RESTING


def test_what_people_are_told() -> None:
    health, healths, key = Health(), Healths(), uuid4()
    assert healths.report(key, 1, 0).state == "ok"
    health.last_status = 200
    assert (health.report(0, AT).state, health.report(0, AT).last_status) == ("ok", 200)
    health.failed(429, "m", 0, 6.5)
    found = health.report(0, AT)
    assert (found.state, found.until, found.reason) == (
        "cooling",
        AT.replace(second=7),
        "The provider answered 429 (asked too often) for the model m.",
    )
    health.failed(403, "<b>\x1b[0m\n", 0, None)
    found = health.report(0, AT)
    assert (found.state, found.reason) == ("refused", "The provider answered 403 (refused).")  # not in a stranger's words
    assert health.report(3600, AT).state == "ok"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"retry-after", b"0")], 0),
        ([(b"retry-after", b" 120 ")], 120),
        ([(b"retry-after", b"1.5")], 1.5),
        ([(b"retry-after-ms", b"250"), (b"retry-after", b"9")], 0.25),
        ([(b"retry-after-ms", b"x"), (b"retry-after", b"9")], 9),
        ([(b"retry-after", b"Sat, 21 Nov 2026 12:00:30 GMT")], 30),
        ([(b"retry-after", b"Saturday, 21-Nov-26 12:00:30 GMT")], 30),
        ([(b"retry-after", b"Sat Nov 21 12:00:30 2026")], 30),
        ([(b"retry-after", b"Sat, 21 Nov 2026 11:00:00 GMT")], 0),
        ([(b"date", b"Sat, 21 Nov 2026 13:00:00 GMT"), (b"retry-after", b"Sat, 21 Nov 2026 13:00:05 GMT")], 5),
        ([(b"retry-after", b"-1")], None),
        ([(b"retry-after", b"1e9")], None),
        ([(b"retry-after", b"\xff\xfe")], None),
        ([(b"retry-after", b"Sat, 99 Nov 2026 99:99:99 GMT")], None),
        ([(b"retry-after", b"Mon, 1 Jan 99999 00:00:00 GMT")], None),
        ([(b"retry-after", b"9" * 5_000)], None),
        ([(b"retry-after", b"a, " * 5_000)], None),
        ([(b"retry-after", b"5"), (b"retry-after", b"500")], 5),
    ],
    ids=str,
)
def test_how_long_a_provider_wants_to_be_left_alone(headers: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    assert stated_wait(headers, AT) == seconds
