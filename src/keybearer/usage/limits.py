"""Budgets as arithmetic: windows of time, what a window's account holds, what is reserved and what is settled. Pure: times come in.

A call reserves the most it may use of every limit that concerns it, all of them or none; when its outcome is known, what it did use
takes the place of the reservation. What is not known to have been less counts in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final, NamedTuple, Protocol

from keybearer.domain import Budget, BudgetKind, BudgetSubject
from keybearer.errors import CallUnbounded, KeybearerError, LimitExceeded, LimitReached, LimitTampered, PriceUnknown

MINUTE = 60.0
CLIENT_GONE = 499
_FIRST_ERROR = 400
_ENDLESS: Final = 2**62
"""More than any account has."""
_USD = frozenset({BudgetKind.USD_DAY, BudgetKind.USD_MONTH})
_UNITS = {
    BudgetKind.USD_DAY: "dollars a day",
    BudgetKind.USD_MONTH: "dollars a month",
    BudgetKind.REQUESTS_MINUTE: "requests a minute",
    BudgetKind.TOKENS_MINUTE: "tokens a minute",
}
_OF = {
    BudgetSubject.TOKEN: "this access token",
    BudgetSubject.USER: "this user",
    BudgetSubject.TEAM: "this team",
    BudgetSubject.SECRET: "this key",
    BudgetSubject.PROVIDER: "this provider",
    BudgetSubject.DEPLOYMENT: "this deployment",
}


class Most(NamedTuple):
    """The most that a call may use. ``None``: nobody knows, or no limit asks."""

    tokens: int | None
    micro_usd: int | None
    requests: int = 1


NOTHING = Most(None, None)
PLACES = {
    BudgetKind.USD_DAY: 1,
    BudgetKind.USD_MONTH: 1,
    BudgetKind.REQUESTS_MINUTE: 2,
    BudgetKind.TOKENS_MINUTE: 0,
}
"""Where in a ``Most`` stands what a limit counts."""


def window(kind: BudgetKind, at: float) -> tuple[float, float]:
    """From when to when (Unix time, the end exclusive) what counts together that happens at ``at``."""
    if kind in (BudgetKind.REQUESTS_MINUTE, BudgetKind.TOKENS_MINUTE):
        start = at - at % MINUTE
        return start, start + MINUTE
    day = datetime.fromtimestamp(at, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind is BudgetKind.USD_DAY:
        return day.timestamp(), (day + timedelta(days=1)).timestamp()
    first = day.replace(day=1)
    return first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()


def is_usd(kind: BudgetKind) -> bool:
    """Whether amounts of this kind are millionths of a US dollar."""
    return kind in _USD


def part(kind: BudgetKind, most: Most) -> int | None:
    """What of ``most`` a limit of this kind counts."""
    return most[PLACES[kind]]


def charged(outcome: str, status: int, used: int | None, reserved: int | None) -> int:
    """What counts of a call that ended so. ``used``: as the provider said; ``reserved``: ``None`` where no limit asked.

    Nothing, where the key stayed here. Of errors, what the provider says, else nothing. Of an answer that broke off, or that nobody
    waited for, no less than was reserved: a provider that says anything then has not counted to the end. ``queries.budgets`` says
    the same to the database.
    """
    if outcome == "refused":
        return 0
    if outcome == "ok":
        return used if used is not None else reserved or 0
    if status >= _FIRST_ERROR and status != CLIENT_GONE:
        return used or 0
    return max(used or 0, reserved or 0)


def alone(budget: Budget, need: int | None, *, price_known: bool = True) -> KeybearerError | None:
    """Why a limit refuses a call that needs so much, however little was used yet; ``None``: it does not."""
    if budget.is_tampered:
        return LimitTampered(f"The limit of {_UNITS[budget.kind]} of {_OF[budget.subject]} was changed outside Keybearer.")
    if not budget.is_hard:
        return None
    if need is None:
        return PriceUnknown() if budget.kind in _USD and not price_known else CallUnbounded()
    if need > budget.amount:
        return LimitExceeded(
            f"This call alone may use more than the limit of {_UNITS[budget.kind]} of {_OF[budget.subject]} allows."
        )
    return None


def reached(budget: Budget, seconds: float) -> LimitReached:
    """What remains is not enough, for so many seconds."""
    message = f"The limit of {_UNITS[budget.kind]} of {_OF[budget.subject]} is reached."
    error = LimitReached(message, retry_after=max(1.0, seconds))
    error.is_of_key = budget.subject is BudgetSubject.SECRET
    return error


class Account:
    """What one limit has left in the window that runs."""

    __slots__ = ("budget", "counted", "end", "place", "room", "round", "start", "unknown", "unsettled", "used")

    rounds: ClassVar[int] = 0
    """The last round that any account has begun."""

    def __init__(self, budget: Budget, at: float) -> None:
        self.place = PLACES[budget.kind]
        """Where in a ``Most`` stands what it counts: for good, so that what calls have reserved is what they give back."""
        self.hold_to(budget)
        self.begin(at)

    def hold_to(self, budget: Budget) -> None:
        """Count for this limit from now on: the same one, perhaps changed."""
        self.budget = budget
        self.room = -1 if budget.is_tampered else budget.amount if budget.is_hard else _ENDLESS
        """Up to where it surely takes calls; beyond, ``refusal`` says whether and why not."""
        self.unknown = _ENDLESS if budget.is_hard else 0
        """What a call takes of which nobody knows how much it needs."""

    def begin(self, at: float, used: int = 0, unsettled: Mapping[str, int] | None = None) -> None:
        """Count anew in the window of ``at``, from what records say."""
        self.start, self.end = window(self.budget.kind, at)
        self.round = Account.rounds = Account.rounds + 1
        """Who reserved before it began settles nothing in it."""
        self.used = used
        """Settled."""
        self.unsettled = dict(unsettled or {})
        """What may still become less: by request id, what uses without an outcome count for that the database knew."""
        self.counted = used + sum(self.unsettled.values())
        """All that counts: also what calls of this process have reserved that are under way."""

    def roll(self, at: float) -> None:
        """Begin the window that ``at`` lies in, if this one is over. A clock that goes back changes nothing."""
        if at >= self.end:
            self.begin(at)

    def hear(self, request_id: str, amount: int) -> None:
        """The outcome of a use that the database knew has come: it counts for so much."""
        before = self.unsettled.pop(request_id, None)
        if before is not None:
            self.used += amount
            self.counted += amount - before

    def refusal(self, need: int | None, at: float, *, price_known: bool = True) -> KeybearerError | None:
        """Why a call that needs so much may not be made; ``None``: it may."""
        self.roll(at)
        refusal = alone(self.budget, need, price_known=price_known)
        if refusal is None and self.budget.is_hard and self.counted + (need or 0) > self.budget.amount:
            return reached(self.budget, self.end - at)
        return refusal


def settlement(kind: BudgetKind, outcome: str, status: int, used: Most, most: Most) -> int:
    """What a call that ended so, and had reserved ``most``, counts for in a limit of this kind."""
    if kind is BudgetKind.REQUESTS_MINUTE:
        return 0 if outcome == "refused" else 1
    return charged(outcome, status, part(kind, used), part(kind, most))


class Hold(Protocol):
    """What one call has reserved, until it is settled or released: once, a second time changes nothing."""

    most: Most

    def settle(self, outcome: str, status: int, used: Most) -> None:
        """The call has ended: what it used takes the place of what it reserved, in the windows that still run."""

    def release(self) -> None:
        """Nothing was sent."""


class Reserving(Protocol):
    """A call that wants to be made: it hears once which of the two it is, perhaps before ``Limits.reserve`` returns."""

    request_id: str

    def reserved(self, hold: Hold) -> None:
        """It may be made."""

    def unreserved(self, error: KeybearerError) -> None:
        """It may not."""


class Limits:
    """The limits that calls which look alike are held to. Where their counts are is a subclass's."""

    __slots__ = ("asks_price", "asks_tokens")

    def __init__(self, kinds: Iterable[BudgetKind]) -> None:
        kinds = frozenset(kinds)
        self.asks_price = not kinds.isdisjoint(_USD)
        self.asks_tokens = self.asks_price or BudgetKind.TOKENS_MINUTE in kinds

    def reserve(self, call: Reserving, most: Most, at: float, *, price_known: bool = True) -> None:
        """Take ``most`` from every limit, or from none, and tell the call. Raises ``LimitReached`` and its fellows."""
        raise NotImplementedError


class OwnHold:
    """What one call has reserved in this process's memory."""

    __slots__ = ("_accounts", "_round", "most")

    def __init__(self, accounts: Sequence[Account], most: Most) -> None:
        self._accounts = accounts
        self._round = Account.rounds
        """The last that had begun."""
        self.most = most

    def settle(self, outcome: str, status: int, used: Most) -> None:
        """See ``Hold``."""
        accounts, self._accounts, most = self._accounts, (), self.most
        for account in accounts:
            if account.round <= self._round:
                place = account.place
                reserved = most[place] or 0
                amount = used[place]
                if outcome != "ok":
                    amount = settlement(account.budget.kind, outcome, status, used, most)
                elif amount is None:
                    amount = reserved
                account.used += amount
                account.counted += amount - reserved

    def release(self) -> None:
        """See ``Hold``."""
        self.settle("refused", 0, NOTHING)


def take(accounts: Sequence[Account], most: Most, at: float, *, price_known: bool = True) -> OwnHold:
    """Take ``most`` from every account, or from none. Raises ``LimitReached`` and its fellows."""
    for account in accounts:
        need = most[account.place]
        if need is None:
            need = account.unknown
        if account.counted + need > account.room or at >= account.end:
            refusal = account.refusal(most[account.place], at, price_known=price_known)
            if refusal is not None:
                OwnHold(accounts[: accounts.index(account)], most).release()
                raise refusal
        account.counted += need
    return OwnHold(accounts, most)
