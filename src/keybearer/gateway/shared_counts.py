"""The counts of limits in Valkey, for several processes and machines. What is done there is ``shared_counts.lua``.

A call asks to *take*, and later to *settle*, by its request id: settling twice, or after somebody else did, changes nothing. Wishes of
one turn of the event loop go together in one question; its clock is the one that counts. Calls without limits never come here.

**Credit.** Most calls do not ask: what they need was drawn ahead by this process (``credit``), and is told later. A call for which there
is not enough asks; if others have drawn what it needs, they are asked to give back what is free, and it waits for that.

**Filling.** An account that Valkey does not have (a new limit, a server that was restarted, emptied or short of memory) is filled from
the database, which is the truth. For that everything must be there that any process has let pass: whoever fills begins a *round*,
which every running process follows by bringing its records to the database, knowing the limits of that moment. Only then records are
read. What was let pass before the account was lost is in them; after that nobody could take from it. Meanwhile calls wait.

**Away.** While Valkey does not answer, hard limits refuse; soft ones let pass what nobody counts, so their accounts are dropped and
filled anew when it is back. A take whose answer was lost is settled with nothing before anything else is asked.

**Lost.** What a killed process had reserved counts in full until its outcome arrives in the database, where one process looks every
few seconds, or the window ends. So does a take of a process that was killed before the use was on record. See ``lost``.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from keybearer.domain import Budget
from keybearer.errors import KeybearerError, LimitsUnreachable
from keybearer.gateway.counts import Records, State, state_of
from keybearer.gateway.credit import VALUES, Account, Credits, chunks
from keybearer.gateway.lost import Lost
from keybearer.gateway.ready import now
from keybearer.gateway.valkey import Link
from keybearer.gateway.wishes import TOGETHER, Settle, Take, Wishes, some
from keybearer.store.changes import Feed
from keybearer.usage.limits import Limits, Most, Reserving, alone, part, reached, settlement, window

SETTLED_WITHIN: Final = 0.01
"""Seconds for which a settlement waits for a take to go with, which most do: half the questions are saved."""
WAITS: Final = 10.0
"""Seconds for which a call waits until an account is filled."""
SEEN_EVERY: Final = 0.25
"""Seconds after which an idle process looks whether a round was begun."""
FOLLOWED_EVERY: Final = 0.1
"""Seconds between two looks whether all have followed it."""
RECALLED_EVERY: Final = 0.03
"""Seconds until a call asks again that others must give something back for."""
UNSENT: Final = 100_000
"""Settlements kept while Valkey is away; the oldest are dropped, and found in the database later."""
_FILLED: Final = 2**61
"""As what an account begins, at most: more than any limit, and what the script can still add to."""
_MISSING: Final = -1
_RECALLED: Final = -2
_BEFORE_CODES: Final = 3

log = structlog.get_logger(__name__)


class SharedHold:
    """What one call has reserved in Valkey."""

    __slots__ = ("_accounts", "_counts", "_request_id", "most")

    def __init__(self, counts: SharedCounts, request_id: str, accounts: Sequence[Account], most: Most) -> None:
        self._counts = counts
        self._request_id = request_id
        self._accounts = accounts
        self.most = most

    def settle(self, outcome: str, status: int, used: Most) -> None:
        """See ``Hold``."""
        parts = [(account.key, settlement(account.budget.kind, outcome, status, used, self.most)) for account in self._accounts]
        self._counts.settle(self._request_id, parts)

    def release(self) -> None:
        """See ``Hold``."""
        self._counts.settle(self._request_id, [(account.key, 0) for account in self._accounts])


class SharedLimits(Limits):
    """Limits whose counts are in Valkey."""

    __slots__ = ("_accounts", "_counts")

    def __init__(self, counts: SharedCounts, accounts: Sequence[Account]) -> None:
        super().__init__(account.budget.kind for account in accounts)
        self._counts = counts
        self._accounts = accounts

    def reserve(self, call: Reserving, most: Most, at: float, *, price_known: bool = True) -> None:  # noqa: ARG002  # Valkey's clock counts
        """See ``Limits``."""
        hold = self._counts.credits.take(call.request_id, self._accounts, most)
        if hold is not None:
            call.reserved(hold)
            return
        needs = []
        for account in self._accounts:
            need = part(account.budget.kind, most)
            refusal = alone(account.budget, need, price_known=price_known)
            if refusal is not None:
                raise refusal
            needs.append(need or 0)
        self._counts.take(call, self._accounts, needs, most)


class SharedCounts:
    """See the module. ``process``: this one's id among those that are ``running``, for which a round must wait."""

    def __init__(
        self,
        url: str,
        deployment: UUID,
        records: Records,
        feed: Feed,
        process: UUID,
        running: Callable[[], Awaitable[frozenset[UUID]]],
    ) -> None:
        self._link = Link(url, _tell_operator)
        self._records = records
        self._feed = feed
        self._process = str(process)
        self._owner = f"{process}:{records.writer}"
        """As whose credit is known."""
        self._running = running
        # A server may be shared: names tell deployments apart, and nothing of them. In braces: what belongs to one place.
        # 2: what other versions of the script left, or count elsewhere, is as if it were not there.
        self._prefix = f"keybearer:2:{{{hashlib.sha256(deployment.bytes).hexdigest()[:16]}}}:"
        self._round = f"{self._prefix}round"
        self._accounts: dict[UUID, Account] = {}
        self._takes: deque[Take] = deque()
        self._settles: deque[Settle] = deque()
        """Asked before the takes: what is given back is there for them, and what may have been granted is undone first."""
        self._drops: dict[str, None] = {}
        """Keys of accounts that are not right, or not needed any more. Asked before all else."""
        self._wake = asyncio.Event()
        self.credits = Credits(self._wake.set, self.settle)
        self._lost = Lost(self._link, records, running, self.settle, self._drop)
        self._settling: asyncio.TimerHandle | None = None
        self._missing: dict[str, Account] = {}
        self._parked: list[Take] = []
        """Calls that wait for missing accounts."""
        self._short: list[Take] = []
        """Calls that wait for others to give back what they drew ahead."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_troubled = self._is_elsewhen = False
        """What was logged already."""

    async def close(self) -> None:
        """See ``Counts``: settles what it can."""
        if self._settling is not None:
            self._settling.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.credits.close()
        with suppress(LimitsUnreachable):
            while wishes := self._next(takes=False):
                await self._ask(wishes)
        await self._link.close()

    def _spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Do ``work`` unless that is being done."""
        if name in self._tasks:
            work.close()
            return
        task = self._tasks[name] = asyncio.create_task(work)
        task.add_done_callback(partial(self._on_done, name))

    def _on_done(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("counting limits in Valkey failed unexpectedly", work=name, exc_info=error)

    # --- limits ---------------------------------------------------------------------------------------------------------

    async def keep(self, budgets: Sequence[Budget], gone: Iterable[UUID]) -> None:
        """See ``Counts``. Accounts are filled when somebody first takes from them."""
        self._spawn("tick", self._tick())
        for budget in budgets:
            self._accounts.setdefault(budget.id, Account(budget, self._key(budget))).hold_to(budget)
        for budget_id in gone:
            if (lifted := self._accounts.pop(budget_id, None)) is not None:
                self._drops[lifted.key] = None
                self.credits.forget(lifted)

    def limits(self, budget_ids: Sequence[UUID]) -> Limits:
        """See ``Counts``."""
        return SharedLimits(self, [self._accounts[budget_id] for budget_id in budget_ids])

    async def states(self, budgets: Iterable[Budget]) -> Mapping[UUID, State]:
        """See ``Counts``. Of what is not counted there at this moment records say."""
        budgets = list(budgets)
        found: dict[UUID, State] = {}
        at = time.time()
        with suppress(LimitsUnreachable):
            for drawn in chunks(
                self.credits.of(self._key(budget) for budget in budgets)
            ):  # what calls have reserved here is seen
                await self._ask_or_return(Wishes([], [], [], drawn))
            for part_of_all in chunks(budgets):
                at, *told = await self._link.ask("look", [self._key(budget) for budget in part_of_all])
                for budget, used, reserved in zip(part_of_all, told[::2], told[1::2], strict=True):
                    if used:
                        found[budget.id] = state_of(budget, int(used), int(reserved), at)
        rest = [budget for budget in budgets if budget.id not in found]
        return found | await self._records.states(rest, at) if rest else found

    def _key(self, budget: Budget) -> str:
        return self._prefix + budget.id.hex

    # --- wishes ---------------------------------------------------------------------------------------------------------

    def take(self, call: Reserving, accounts: Sequence[Account], needs: Sequence[int], most: Most) -> None:
        """Ask for what a call needs; it is told."""
        self.credits.asked(accounts, needs)
        self._takes.append(Take(call, accounts, needs, most, time.monotonic() + WAITS))
        self._wake.set()

    def settle(self, request_id: str, parts: Sequence[tuple[str, int]]) -> None:
        """Say what a call counts for."""
        self._settles.append(Settle(request_id, parts))
        if len(self._settles) > UNSENT:
            self._settles.popleft()
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLED_WITHIN, self._on_settling)

    def _on_settling(self) -> None:
        self._settling = None
        self._wake.set()

    async def _tick(self) -> None:
        while True:
            self._spawn("ask", self._run())
            self.credits.look()
            self._wake.set()
            await asyncio.sleep(SEEN_EVERY)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while await self._turn():
                pass
            self._refuse_late()

    async def _turn(self) -> bool:
        """Ask once, for some; whether there is more to ask at once."""
        if self._link.is_resting:
            for take in some(self._takes):
                self._fail(take)
            return bool(self._takes)
        wishes = self._next() or Wishes([], [], [], [])
        try:
            answer = await self._ask_or_return(wishes)
        except LimitsUnreachable:
            return bool(self._takes)
        self._tell(wishes.takes, answer)
        # What did not find room goes right after it; what has come meanwhile waits a little, for others to go with.
        is_rest = (len(wishes.settles) == TOGETHER and self._settles) or (len(wishes.tells) == TOGETHER and self.credits.waiting)
        return bool(self._takes or self._drops or is_rest)

    async def _ask_or_return(self, wishes: Wishes) -> list[int]:
        is_answered = False
        try:
            answer = await self._ask(wishes)
            is_answered = True
        finally:
            if not is_answered:
                self._return(wishes)
        return answer

    def _next(self, *, takes: bool = True) -> Wishes | None:
        """What is asked in one question; ``None``: nobody wishes anything."""
        takes_ = some(self._takes) if takes else []
        wishes = Wishes(takes_, some(self._settles), list(self._drops)[:TOGETHER], self.credits.due(TOGETHER))
        for key in wishes.drops:
            del self._drops[key]
        return wishes if any(wishes) else None

    async def _ask(self, wishes: Wishes) -> list[int]:
        """What is answered: Valkey's time, the round that is owed and its position, and how each take ended."""
        keys: dict[str, int] = {self._round: 1}

        def place(key: str) -> int:
            return keys.setdefault(key, len(keys) + 1)

        at, sent = time.time(), now()
        drops = [place(key) for key in wishes.drops]
        settles = [
            (wish.request_id, [value for key, amount in wish.parts for value in (place(key), amount)]) for wish in wishes.settles
        ]
        said = [(account, account.report()) for account in wishes.tells]
        reports = [(place(account.key), *report.values) for account, report in said]
        takes = []
        for take in wishes.takes:
            parts: list[int] = []
            for account, need in zip(take.accounts, take.needs, strict=True):
                budget = account.budget
                parts += (place(account.key), need, budget.amount if budget.is_hard else -1, *account.bounds(at))
            takes.append((take.call.request_id, parts))
        # Packed as one: the client library takes a microsecond for each argument.
        told = msgspec.json.encode((drops, settles, reports, takes))
        answer: list[Any] = await self._link.ask("calls", list(keys), [self._process, told, self._owner])
        before = _BEFORE_CODES + VALUES * len(said)
        if len(answer) != before + len(wishes.takes):  # whoever can write to Valkey must not be able to stop us
            raise LimitsUnreachable
        for index, (account, report) in enumerate(said):
            start = _BEFORE_CODES + VALUES * index
            self.credits.hear(account, report, answer[start : start + VALUES], sent)
        if answer[1]:
            self.credits.suspend()
        return answer[:_BEFORE_CODES] + answer[before:]

    def _tell(self, takes: Sequence[Take], answer: Sequence[int]) -> None:
        """Tell calls what was answered; follow a round that was begun, fill what is missing."""
        at, owed, position, *codes = answer
        for take, code in zip(takes, codes, strict=True):
            if code == 0:
                take.call.reserved(self._hold(take))
            elif 0 < code <= len(take.accounts):
                self._refuse(take, code - 1, at)
            elif 0 < (place := _RECALLED - code) <= len(take.accounts):
                self._wait_for_credit(take, place - 1, at)
            elif code == _MISSING:
                self._parked.append(take)
                self._missing |= {account.key: account for account in take.accounts}
            else:
                self._tell_of_clocks()
                self._fail(take)
        if owed:
            self._spawn("follow", self._follow_owed(owed, position))
        if self._missing:
            self._spawn("fill", self._fill())
        if self._short:
            self._spawn("recall", self._ask_again())

    def _hold(self, take: Take) -> SharedHold:
        return SharedHold(self, take.call.request_id, take.accounts, take.most)

    def _tell_of_clocks(self) -> None:
        if not self._is_elsewhen:
            log.error("this machine's clock and Valkey's are more than a window apart: limited calls are refused")
        self._is_elsewhen = True

    def _refuse(self, take: Take, place: int, at: float) -> None:
        budget = take.accounts[place].budget
        take.call.unreserved(reached(budget, window(budget.kind, at)[1] - at))

    def _wait_for_credit(self, take: Take, place: int, at: float) -> None:
        """Others are asked to give back what they have drawn ahead, this process among them."""
        if time.monotonic() > take.until:
            self._refuse(take, place, at)
            return
        self.credits.recall(take.accounts[place])
        self._short.append(take)

    async def _ask_again(self) -> None:
        """For what others may have given back meanwhile."""
        await asyncio.sleep(RECALLED_EVERY)
        self._takes.extendleft(reversed(self._short))
        self._short = []
        self._wake.set()

    def _return(self, wishes: Wishes) -> None:
        """The answer was lost: takes may have been granted, so they are settled with nothing first. They get a second try."""
        self._drops |= dict.fromkeys(wishes.drops)
        self._settles.extendleft(reversed(wishes.settles))
        self.credits.keep(wishes.tells)
        for take in reversed(wishes.takes):
            self._settles.appendleft(Settle(take.call.request_id, [(account.key, 0) for account in take.accounts]))
            if take.is_tried:
                self._fail(take)
            else:
                take.is_tried = True
                self._takes.appendleft(take)

    def _fail(self, take: Take) -> None:
        """Nobody can count this call: it is refused, unless its limits only show."""
        if any(account.budget.is_hard for account in take.accounts):
            take.call.unreserved(LimitsUnreachable(retry_after=1.0))
            return
        self._drops |= dict.fromkeys(account.key for account in take.accounts)
        take.call.reserved(self._hold(take))

    def _refuse_late(self) -> None:
        if self._parked:
            now = time.monotonic()
            late = [take for take in self._parked if take.until < now]
            self._parked = [take for take in self._parked if take.until >= now]
            for take in late:
                self._fail(take)

    # --- rounds ---------------------------------------------------------------------------------------------------------

    async def _follow_owed(self, n: int, position: int) -> None:
        """Follow a round that another process began; if it fails, it is owed still."""
        with suppress(KeybearerError):
            await self._follow(n, position)

    async def _follow(self, n: int, position: int) -> None:
        """Bring this process's records to the database, and say so. From ``position`` on its calls know the limits in question."""
        self.credits.suspend()
        while True:
            if self._feed.position >= min(position, await self._records.newest_change()):
                break
            await asyncio.sleep(FOLLOWED_EVERY)
        await self._records.ship()
        await self._link.ask("follow", [self._round], [self._process, n])

    async def _fill(self) -> None:
        """Fill what is missing, and let those who wait for it ask again."""
        try:
            while self._missing:
                wanted = list(self._missing)
                position = await self._records.newest_change()
                n, _, *states = await self._link.ask("ask", [self._round, *wanted], [position])
                async with asyncio.timeout(WAITS):
                    await self._follow(n, position)
                    if not await self._all_follow(n):
                        continue
                # No others: of what was there when the round began, more may have passed than these records tell.
                missing = [self._missing[key] for key, is_missing in zip(wanted, states, strict=False) if is_missing]
                await self._fill_from_records(missing, n)
                for key in wanted:
                    del self._missing[key]
                self._takes.extend(self._parked)
                self._parked = []
                self._wake.set()
            self._is_troubled = False
        except (KeybearerError, TimeoutError) as error:
            if not self._is_troubled:
                reason = error.message if isinstance(error, KeybearerError) else "another process does not follow"
                log.warning("limits cannot be read from the database: limited calls are refused", reason=reason)
            self._is_troubled = True
            self._missing.clear()
            parked, self._parked = self._parked, []
            for take in parked:
                self._fail(take)

    async def _all_follow(self, n: int) -> bool:
        """Wait until every process that runs has followed the round; ``False``: nobody knows of it any more."""
        while True:
            running = [str(process) for process in await self._running()]
            newest, *followed = await self._link.ask("followed", [self._round], running)
            if newest < n:
                return False
            if min(followed) >= n:
                return True
            await asyncio.sleep(FOLLOWED_EVERY)

    async def _fill_from_records(self, accounts: Sequence[Account], n: int) -> None:
        (at,) = await self._link.ask("look", [])
        found = await self._records.used([account.budget for account in accounts], at)
        for account in accounts:
            used = found[account.budget.id]
            calls = [value for pair in used.unsettled.items() for value in pair]
            mark = secrets.token_hex(8)
            end = int(window(account.budget.kind, at)[1])
            # If it is not filled by this, who asks finds it missing again.
            settled = min(used.settled, _FILLED)
            await self._link.ask("fill", [account.key, self._round], [end, mark, settled, self._process, n, *calls])

    # --- lost outcomes --------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """See ``Counts``: look for what killed processes left."""
        with suppress(LimitsUnreachable):
            if self._accounts:
                await self._lost.look(f"{self._prefix}lease", list(self._accounts.values()))

    def _drop(self, account: Account) -> None:
        self._drops[account.key] = None
        self._wake.set()


def _tell_operator(reason: str) -> None:
    if reason:
        log.warning("limits cannot be counted in Valkey: calls with hard limits are refused", reason=reason)
    else:
        log.info("limits are counted in Valkey again")
