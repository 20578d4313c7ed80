"""How often one person, their tokens included, may do something that a stolen session would do by the hundred.

Counters are this process's own. Of many refusals in a row the first is on record.
"""

from __future__ import annotations

from dataclasses import dataclass

from keybearer.access.attempts import attempt
from keybearer.access.limiter import Limiter, Rate, Refused
from keybearer.domain import Caller
from keybearer.errors import RateLimited
from keybearer.store.db import Database

EVERYBODY = Rate(1000, 0.05)
"""Of all people of a process together."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What is bounded."""

    action: str
    """As it stands on record."""
    rate: Rate
    """Of one person."""
    told: str


class Pace:
    """Counts what is done of one kind; see the module."""

    def __init__(self, db: Database, bound: Bound) -> None:
        self._db = db
        self._bound = bound
        self._limiter = Limiter(bound.rate, EVERYBODY)

    async def take(self, caller: Caller, subject: str = "") -> None:
        """Count one, before it is done. Raises ``RateLimited``."""
        try:
            self._limiter.take(str(caller.user_id), self._bound.action)
        except Refused as refused:
            told = RateLimited(self._bound.told, retry_after=refused.retry_after)
            if refused.is_first:
                async with attempt(self._db, self._bound.action, caller, subject):
                    raise told from None
            raise told from None
