"""How often somebody may try to sign in: in memory, bounded, and without a way to lock somebody else out.

Attempts are counted per account *and* address, so that guessing from one place never keeps the owner out elsewhere, and per
address over all accounts. An attempt is counted before the password is looked at, or many at once would all pass, and given
back when it was right. Counters are this process's own.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from keybearer.audit.refusals import place_of
from keybearer.errors import RateLimited


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` attempts at once, then one every ``seconds``."""

    burst: int
    seconds: float


PER_ACCOUNT_AND_ADDRESS = Rate(5, 60.0)
PER_ADDRESS = Rate(30, 10.0)
REMEMBERED = 20_000
"""Counters kept; the longest unused one is dropped first."""

Key = tuple[str | None, str]
"""Account and place; ``None``: over all accounts."""


class Refused(RateLimited):
    """Too many attempts to sign in."""

    def __init__(self, retry_after: float, *, is_first: bool) -> None:
        """``is_first``: no refusal of this counter was told since it last let somebody pass, so this one is news."""
        super().__init__(retry_after=retry_after)
        self.is_first = is_first


@dataclass(slots=True)
class _Counter:
    """``until``: when the burst will be whole again (the GCRA's theoretical arrival time)."""

    until: float
    is_told: bool = False


class Limiter:
    """Counts attempts; see the module."""

    def __init__(
        self,
        account: Rate = PER_ACCOUNT_AND_ADDRESS,
        address: Rate = PER_ADDRESS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._address = address
        self._clock = clock
        self._counters: OrderedDict[Key, _Counter] = OrderedDict()

    def take(self, account: str, ip: str) -> None:
        """Count one attempt. Raises ``Refused`` (and counts nothing) with the seconds to wait."""
        now = self._clock()
        taken = [(self._counter(key), rate) for key, rate in self._keys(account, ip)]
        for counter, rate in taken:
            wait = max(counter.until, now) + rate.seconds - now - rate.burst * rate.seconds
            if wait > 0:
                is_first = not counter.is_told
                counter.is_told = True
                raise Refused(wait, is_first=is_first)
        for counter, rate in taken:
            counter.until = max(counter.until, now) + rate.seconds
            counter.is_told = False

    def give_back(self, account: str, ip: str) -> None:
        """Uncount an attempt that was right."""
        for key, rate in self._keys(account, ip):
            self._counter(key).until -= rate.seconds

    def _keys(self, account: str, ip: str) -> tuple[tuple[Key, Rate], ...]:
        place = place_of(ip)
        return ((account, place), self._account), ((None, place), self._address)

    def _counter(self, key: Key) -> _Counter:
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = _Counter(0.0)
            if len(self._counters) > REMEMBERED:
                self._counters.popitem(last=False)
        self._counters.move_to_end(key)
        return counter
