"""Guessing from one place is slowed; nobody can lock somebody else out."""

from __future__ import annotations

import pytest

from keybearer.access.limiter import PER_ACCOUNT_AND_ADDRESS, PER_ADDRESS, REMEMBERED, Limiter, Refused

HERE, THERE = "198.51.100.7", "203.0.113.9"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def exhausted(limiter: Limiter, account: str, ip: str, attempts: int) -> Refused:
    for _ in range(attempts):
        limiter.take(account, ip)
    with pytest.raises(Refused) as refused:
        limiter.take(account, ip)
    return refused.value


def test_a_burst_is_let_through_then_one_by_one() -> None:
    clock = Clock()
    limiter = Limiter(clock=clock)
    refused = exhausted(limiter, "ada@example.com", HERE, PER_ACCOUNT_AND_ADDRESS.burst)
    assert refused.retry_after == pytest.approx(PER_ACCOUNT_AND_ADDRESS.seconds)
    clock.now += 59.0
    with pytest.raises(Refused) as still:
        limiter.take("ada@example.com", HERE)
    assert still.value.retry_after == pytest.approx(1.0)
    clock.now += 1.0
    exhausted(limiter, "ada@example.com", HERE, 1)


def test_guessing_at_an_account_does_not_keep_its_owner_out() -> None:
    limiter = Limiter()
    exhausted(limiter, "ada@example.com", HERE, PER_ACCOUNT_AND_ADDRESS.burst)
    limiter.take("ada@example.com", THERE)
    limiter.take("bob@example.com", HERE)


def test_guessing_at_many_accounts_from_one_address_is_slowed() -> None:
    limiter = Limiter()
    for number in range(PER_ADDRESS.burst):
        limiter.take(f"user{number}@example.com", HERE)
    with pytest.raises(Refused):
        limiter.take("another@example.com", HERE)
    limiter.take("another@example.com", THERE)


def test_an_ipv6_customer_is_one_address() -> None:
    limiter = Limiter()
    for number in range(PER_ACCOUNT_AND_ADDRESS.burst):
        limiter.take("ada@example.com", f"2001:db8:1:2::{number:x}")
    with pytest.raises(Refused):
        limiter.take("ada@example.com", "2001:db8:1:2:ffff::1")
    limiter.take("ada@example.com", "2001:db8:1:3::1")
    exhausted(limiter, "bob@example.com", "::ffff:203.0.113.9", PER_ACCOUNT_AND_ADDRESS.burst)
    with pytest.raises(Refused):
        limiter.take("bob@example.com", "203.0.113.9")


def test_right_attempts_cost_nothing() -> None:
    limiter = Limiter()
    for _ in range(1000):
        limiter.take("ada@example.com", HERE)
        limiter.give_back("ada@example.com", HERE)


def test_only_the_first_refusal_is_news() -> None:
    clock = Clock()
    limiter = Limiter(clock=clock)
    assert exhausted(limiter, "ada@example.com", HERE, PER_ACCOUNT_AND_ADDRESS.burst).is_first
    assert not exhausted(limiter, "ada@example.com", HERE, 0).is_first
    clock.now += PER_ACCOUNT_AND_ADDRESS.seconds
    assert exhausted(limiter, "ada@example.com", HERE, 1).is_first


def test_memory_is_bounded() -> None:
    limiter = Limiter()
    for number in range(REMEMBERED + 100):
        limiter.take("ada@example.com", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(limiter._counters) == REMEMBERED
