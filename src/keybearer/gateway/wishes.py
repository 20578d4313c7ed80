"""What is asked of Valkey in one question, by ``shared_counts``."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from keybearer.gateway.credit import Account
from keybearer.usage.limits import Most, Reserving

TOGETHER: Final = 64
"""Wishes in one question: some 100 µs of the server's time."""

T = TypeVar("T")


class Take:
    """A call's wish to be made."""

    __slots__ = ("accounts", "call", "is_tried", "most", "needs", "until")

    def __init__(self, call: Reserving, accounts: Sequence[Account], needs: Sequence[int], most: Most, until: float) -> None:
        self.call = call
        self.accounts = accounts
        self.needs = needs
        self.most = most
        self.is_tried = False
        """Whether a connection broke over it: another may, then it is refused."""
        self.until = until
        """After that it is refused, whatever it waits for."""


class Settle(NamedTuple):
    """What a call counts for in the end."""

    request_id: str
    parts: Sequence[tuple[str, int]]
    """Keys of accounts, and amounts."""


class Wishes(NamedTuple):
    """What is asked in one question."""

    takes: list[Take]
    settles: list[Settle]
    drops: list[str]
    tells: Sequence[Account]
    """To say of what credit of them there is."""


def some(queue: deque[T]) -> list[T]:
    """So many as go together, taken from the queue."""
    return [queue.popleft() for _ in range(min(TOGETHER, len(queue)))]
