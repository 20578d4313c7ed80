"""Credit: what this process has drawn of limits ahead, so that most calls reserve in its memory and wait for nobody.

To Valkey an account's credit is taken, as a reservation is. Here it is *free*, or held by calls; what a call did use is told within
``TOLD_WITHIN`` of a second, the rest of what it had reserved is free again. Told are sums since the account began, so an answer that was
lost is asked for again, and nothing is counted twice.

Credit counts while Valkey says so: each answer confirms it for ``LASTS``, counted from when the question was sent, and no longer than
the window. It is *suspended*, until a question sent from then on confirms it, while this process owes a round: what it let pass
before is in the records that are read, and after that it lets pass nothing of an account that may be gone. Where an account was filled
anew meanwhile (its *mark* is another), calls settle by their request ids, as records knew them.

How much: twice what was needed since the last look, or until now where many ask, and of what remains a small share at most. Who does
not use it gives it back; and everybody does, once a call is short of something that others have free. Of limits that only show there is
always enough: it is counted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar, Final, NamedTuple, TypeVar

from keybearer.domain import Budget
from keybearer.gateway.ready import now
from keybearer.usage.limits import NOTHING, PLACES, Most, settlement, window

LASTS: Final = 0.5
"""Seconds for which credit counts that nobody confirms: far less than a process that fell silent is waited for."""
TOLD_WITHIN: Final = 0.05
"""Seconds until Valkey is told what was used."""
FEW: Final = 4
"""Calls between two looks from which on it is worth to draw ahead."""
UNTOLD: Final = 100_000
"""Calls kept until it is certain that what they used was counted; older ones are found in the database if need be."""
VALUES: Final = 4
"""Of the answer to a report."""
_KEYS: Final = 200
_NEVER: Final = 2**62
"""More than any account has."""

T = TypeVar("T")
Settled = tuple[str, int]
"""A request id, and what it counted for."""


class Report(NamedTuple):
    """What was said of an account's credit, to understand the answer."""

    mark: str
    suspensions: int
    told: int
    """How many calls of this term."""
    is_open: bool
    is_wish: bool
    """Whether more was asked for, or would be if less were free."""
    values: tuple[str | int, ...]
    """As ``report`` in the script takes them."""


class Account:
    """One limit, where it is counted, and this process's credit of it."""

    terms: ClassVar[int] = 0
    """The last that any account has begun."""

    __slots__ = (
        "_bounds", "_drawn", "_mark", "_over", "_returned", "_suspensions", "_target", "_told", "_window_ends",
        "asked", "budget", "floor", "free", "is_due", "is_open", "key", "low", "needed", "place", "term", "until", "untold", "used",
    )  # fmt: skip

    def __init__(self, budget: Budget, key: str) -> None:
        self.budget = budget
        self.floor = _floor(budget)
        """Calls may not leave less than that free."""
        self.key = key
        self._bounds = (0, 0, 0, 0)
        self.place = PLACES[budget.kind]
        """Where in a ``Most`` stands what it counts."""
        self.until = 0.0
        """Until then (``now``) calls may use what is free."""
        self.needed = self.asked = 0
        """What calls have reserved since the last look, and how many of them asked Valkey."""
        self.is_due = False
        """Whether there is something to tell."""
        self._suspensions = self._target = 0
        """How much should be free."""
        self._mark = self._over = ""
        """Of the window that was over last: it does not come again."""
        self._begin("")

    def _begin(self, mark: str) -> None:
        """Count what is drawn from now on."""
        self.term = Account.terms = Account.terms + 1
        """Who reserved before it began settles by its request id."""
        self.free = 0
        """Less than nothing: calls used more than they had reserved."""
        self.low = -math.inf
        """With less than that, more is asked for."""
        self.until = 0.0
        self._mark = mark
        self._drawn = self._returned = self.used = 0
        """All in this term; what is not free of the difference is held by calls."""
        self.untold: list[Settled] = []
        """Calls that have ended, and what each used: until it is certain that this was counted."""
        self._told = 0
        self.is_open = False
        """Whether what calls leave may be used again: else it is given back."""
        self._window_ends = math.inf

    def bounds(self, at: float) -> tuple[int, int, int, int]:
        """When the windows before, now and next begin, and when the last of them ends, by this machine's clock."""
        if not self._bounds[1] <= at < self._bounds[2]:
            kind = self.budget.kind
            start, stop = window(kind, at)
            bounds = (window(kind, start - 1)[0], start, stop, window(kind, stop)[1])
            self._bounds = (int(bounds[0]), int(bounds[1]), int(bounds[2]), int(bounds[3]))
        return self._bounds

    def hold_to(self, budget: Budget) -> None:
        """Count for this limit from now on: the same one, perhaps changed."""
        if budget != self.budget:
            self.budget = budget
            self.floor = _floor(budget)
            self.suspend()
            if budget.is_tampered:
                self.close()

    def suspend(self) -> None:
        """Let calls use nothing until a question that is sent from now on has confirmed what there is."""
        self.until = 0.0
        self._suspensions += 1

    def look(self) -> bool:
        """Draw so much as was needed lately, or give back; whether there is something to tell. Every so often."""
        was_open = self.is_open
        is_used = self.asked >= FEW or (self._target > 0 and self.needed > 0)
        self._target = max(2 * self.needed, self._target // 2, 1) if is_used and not self.budget.is_tampered else 0
        self.asked = self.needed = 0
        if not self._target:
            self.close()
        if len(self.untold) > UNTOLD:
            surplus = len(self.untold) - UNTOLD
            del self.untold[:surplus]
            self._told += surplus
        return bool(was_open or self._target or self.free or self.untold)

    def aim(self) -> bool:
        """Whether so many calls ask since the last look that more should be drawn at once: then it is aimed at."""
        if self.asked < FEW or self.needed <= self._target or self.budget.is_tampered:
            return False
        self._target = 2 * self.needed
        return True

    @property
    def is_told(self) -> bool:
        """Whether it is certain that what calls used was counted."""
        return not self.untold

    def close(self) -> None:
        """Give back what is free, and what calls leave."""
        self._target = 0
        self.is_open = False
        self.until = 0.0

    def lift(self) -> None:
        """Nobody counts here any more; calls that are under way settle by their request ids, where somebody still knows them."""
        self.close()
        self._begin("")

    def report(self) -> Report:
        """What is to be said. See ``report`` in the script."""
        kept = 2 * self._target if self.is_open else 0
        if self.free > kept:
            self._returned += self.free - kept
            self.free = kept
        self.is_due = False
        budget = self.budget
        least = self._drawn + max(0, -self.free)
        wish = self._drawn + max(0, self._target - self.free) if self._target else 0
        openness = 2 if self.is_open else int(self._target > 0)
        values = (
            self._mark, self._drawn, self.used, self._returned, least, wish, max(0, self.free), openness,
            budget.amount if budget.is_hard else -1,
        )  # fmt: skip
        return Report(self._mark, self._suspensions, self._told + len(self.untold), self.is_open, self._target > 0, values)

    def hear(self, report: Report, answer: Sequence[bytes | int], sent: float) -> tuple[list[Settled], bool]:
        """Understand the answer to a report that was composed at ``sent``.

        Returns calls that must settle by their request ids, and whether there is more to say at once.
        """
        said, drawn, left_ms, is_recalled = answer
        mark = bytes(said).decode("utf-8", "replace") if isinstance(said, bytes) else ""
        if report.mark != self._mark:
            return [], False  # of another term
        if not mark or mark == self._over:
            self.until = 0.0
            if now() > self._window_ends:
                self._over = self._mark
                self._begin("")
            return [], False
        if mark != self._mark:
            untold = self.untold
            self._begin(mark)
            return untold, self._target > 0
        heard = report.told - self._told
        if heard > 0:
            del self.untold[:heard]
            self._told = report.told
        self.free += max(0, int(drawn) - self._drawn)
        self._drawn = max(int(drawn), self._drawn)
        lasts = int(left_ms) / 1000
        self._window_ends = sent + lasts
        if is_recalled or not self._target or not report.is_wish:
            self.is_open = False
            self.until = 0.0
            return [], self.free > 0 or report.is_open or (report.is_wish and not is_recalled)
        self.is_open = True
        if report.suspensions == self._suspensions:
            self.until = sent + min(LASTS, lasts)
        self.low = self._target / 4 if self.free > self._target / 2 else -math.inf
        return [], False


def _floor(budget: Budget) -> float:
    return 0 if budget.is_hard else -math.inf


class CreditHold:
    """What one call has reserved of this process's credit."""

    __slots__ = ("_accounts", "_credits", "_request_id", "_term", "most")

    def __init__(self, credits_: Credits, request_id: str, accounts: Sequence[Account], most: Most) -> None:
        self._credits = credits_
        self._request_id = request_id
        self._accounts = accounts
        self._term = Account.terms
        """The last that had begun."""
        self.most = most

    def settle(self, outcome: str, status: int, used: Most) -> None:
        """See ``Hold``."""
        accounts, self._accounts, most = self._accounts, (), self.most
        for account in accounts:
            place = account.place
            reserved = most[place] or 0
            amount = used[place]
            if outcome != "ok":
                amount = settlement(account.budget.kind, outcome, status, used, most)
            elif amount is None:
                amount = reserved
            if account.term > self._term:
                self._credits.settle_elsewhere(self._request_id, [(account.key, amount)])
                continue
            account.free += reserved - amount
            account.used += amount
            account.untold.append((self._request_id, amount))
            if not account.is_due:
                self._credits.tell_of(account)

    def release(self) -> None:
        """See ``Hold``."""
        self.settle("refused", 0, NOTHING)


class Credits:
    """This process's credit of all accounts that it has some of, or may want some of."""

    def __init__(self, wake: Callable[[], None], settle: Callable[[str, Sequence[tuple[str, int]]], None]) -> None:
        """``wake``: lets somebody ask for ``due`` reports; ``settle``: a call by its request id."""
        self.settle_elsewhere = settle
        self._wake = wake
        self._watched: dict[str, Account] = {}
        self._due: dict[str, Account] = {}
        self._telling: asyncio.TimerHandle | None = None

    # --- calls ----------------------------------------------------------------------------------------------------------

    def take(self, request_id: str, accounts: Sequence[Account], most: Most) -> CreditHold | None:
        """Take ``most`` from every account, or from none: ``None``, then ask Valkey."""
        clock = now()
        for account in accounts:
            need = most[account.place]
            if need is None:
                need = _NEVER if account.budget.is_hard else 0
            free = account.free - need
            if free < account.floor or clock >= account.until:
                for taken in accounts[: accounts.index(account)]:  # as if nobody had asked
                    need = most[taken.place] or 0
                    taken.free += need
                    taken.needed -= need or 1
                return None
            account.free = free
            account.needed += need or 1
            if free < account.low:
                account.low = -math.inf
                self.tell(account)
        return CreditHold(self, request_id, accounts, most)

    def asked(self, accounts: Sequence[Account], needs: Sequence[int]) -> None:
        """A call asks Valkey. So much of it may be done here next time."""
        for account, need in zip(accounts, needs, strict=True):
            account.asked += 1
            account.needed += need or 1
            self._watched[account.key] = account
            if account.aim():
                self.tell(account)

    def recall(self, account: Account) -> None:
        """A call needs what is left: give back what is free here."""
        if account.is_open or account.free > 0:
            account.close()
            self.tell(account)

    def tell_of(self, account: Account) -> None:
        """A call has settled: tell it soon, and what is wanted back at once."""
        if not account.is_open:
            self.tell(account)
            return
        account.is_due = True
        self._due[account.key] = account
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TOLD_WITHIN, self._on_telling)

    def tell(self, account: Account) -> None:
        """There is something to tell at once."""
        account.is_due = True
        self._due[account.key] = account
        self._wake()

    def _on_telling(self) -> None:
        self._telling = None
        self._wake()

    # --- questions ------------------------------------------------------------------------------------------------------

    def of(self, keys: Iterable[str]) -> list[Account]:
        """Those accounts of which there is something to tell."""
        return [account for key in keys if (account := self._watched.get(key) or self._due.get(key)) is not None]

    @property
    def waiting(self) -> int:
        """Of how many accounts there is something to tell."""
        return len(self._due)

    def due(self, most: int) -> list[Account]:
        """Accounts to tell of in one question. If it fails, ``keep`` them."""
        found = list(self._due.values())[:most]
        for account in found:
            del self._due[account.key]
        return found

    def keep(self, accounts: Sequence[Account]) -> None:
        """What was said of these may not have been heard: say it when next something is asked."""
        for account in accounts:
            account.is_due = True
            self._due[account.key] = account

    def hear(self, account: Account, report: Report, answer: Sequence[bytes | int], sent: float) -> None:
        """An account's answer has come."""
        elsewhere, is_more = account.hear(report, answer, sent)
        for request_id, amount in elsewhere:
            self.settle_elsewhere(request_id, [(account.key, amount)])
        if is_more:
            self.tell(account)
        elif not account.is_told:
            self._watched[account.key] = account

    # --- what happens ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Draw, confirm and give back. Every so often."""
        for account in tuple(self._watched.values()):
            if account.look():
                self.keep([account])
            else:
                del self._watched[account.key]

    def suspend(self) -> None:
        """This process owes a round."""
        for account in self._watched.values():
            account.suspend()

    def forget(self, account: Account) -> None:
        """A limit was lifted."""
        account.lift()
        self._watched.pop(account.key, None)
        self._due.pop(account.key, None)

    def close(self) -> None:
        """Give back everything."""
        if self._telling is not None:
            self._telling.cancel()
        for account in tuple(self._watched.values()):
            account.close()
            self.keep([account])


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """So many at a time as one question may concern."""
    return (items[start : start + _KEYS] for start in range(0, len(items), _KEYS))
