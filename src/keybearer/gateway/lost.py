"""What killed processes left in Valkey: calls that never settled, and credit that nobody uses. One process looks, every few seconds.

A call counts in full until its outcome is in the database. Credit counts in full until the database has everything that its process
ever wrote; then the account is dropped, to be filled anew from there. A window that is over soon is not worth it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final
from uuid import UUID

from keybearer.gateway.counts import Records
from keybearer.gateway.credit import Account, chunks
from keybearer.gateway.valkey import Link

LOOKS_EVERY: Final = 5
"""Seconds between two looks, by whichever process comes first."""
LOST_AFTER: Final = 10
"""Seconds after which a call that has not settled is looked up."""
LOOKED_AT: Final = 1000
"""Of one account, at once."""
RECOVERED: Final = 60
"""Seconds that a window must last still."""


class Lost:
    """See the module."""

    def __init__(
        self,
        link: Link,
        records: Records,
        running: Callable[[], Awaitable[frozenset[UUID]]],
        settle: Callable[[str, Sequence[tuple[str, int]]], None],
        drop: Callable[[Account], None],
    ) -> None:
        """``settle``: a call by its request id; ``drop``: an account, to be filled anew."""
        self._link = link
        self._records = records
        self._running = running
        self._settle = settle
        self._drop = drop

    async def look(self, lease: str, accounts: Sequence[Account]) -> None:
        """Look, unless somebody did: ``lease`` is whose turn it is. Raises ``LimitsUnreachable``."""
        if not await self._link.ask("lease", [lease], [LOOKS_EVERY]):
            return
        running = {str(process) for process in await self._running()}
        complete: dict[frozenset[UUID], bool] = {}
        for some in chunks(accounts):
            waiting = await self._link.ask("waiting", [account.key for account in some], [LOST_AFTER, LOOKED_AT])
            for account, (calls, owners) in zip(some, waiting, strict=True):
                try:
                    gone = _gone([owner.decode() for owner in owners], running)
                except ValueError:  # nonsense that somebody wrote there
                    self._drop(account)
                    continue
                await self._settle_ended(account, [call.decode() for call in calls])
                if gone and gone not in complete:
                    complete[gone] = await self._records.are_complete(gone)
                if gone and complete[gone]:
                    self._recover(account)

    async def _settle_ended(self, account: Account, request_ids: Sequence[str]) -> None:
        if request_ids:
            for request_id, amount in (await self._records.settled(account.budget.kind, request_ids)).items():
                self._settle(request_id, [(account.key, amount)])

    def _recover(self, account: Account) -> None:
        at = time.time()
        if account.bounds(at)[2] - at > RECOVERED:
            self._drop(account)


def _gone(owners: Iterable[str], running: Collection[str]) -> frozenset[UUID]:
    """The journals of those processes that do not run any more. Raises ``ValueError``."""
    pairs = [owner.partition(":") for owner in owners]
    return frozenset(UUID(writer) for process, _, writer in pairs if process not in running)
